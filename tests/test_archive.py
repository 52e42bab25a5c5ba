from __future__ import annotations

import io
import warnings
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import archive
from edgert.errors import ArtifactError

NAMES = ("a", "b")


@given(st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=64)))
def test_what_is_packed_is_unpacked(members):
    packed = archive.sealed(b"{}", members, b"sig")
    assert archive.unpack(packed, NAMES) == {archive.MANIFEST: b"{}", archive.SIGNATURE: b"sig", **members}
    archive.check_members(archive.listed(members), members)


def test_equal_content_gives_equal_bytes():
    assert archive.pack({"a": b"x"}) == archive.pack({"a": b"x"})


def archived(*members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice, which is the point
        for name, content in members:
            made.writestr(zipfile.ZipInfo(name), content)  # dated 1980: it names the test, for every worker alike
    return packed.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no archive", "not a readable ZIP"),
        (archived(("c", b"")), "unexpected member 'c'"),
        (archived(("a", b""), ("a", b"")), "second member 'a'"),
        (archived((archive.SIGNATURE, bytes(5000))), "larger than"),
    ],
)
def test_what_is_no_bundle_is_refused(data, said):
    with pytest.raises(ArtifactError, match=said):
        archive.unpack(data, NAMES)


@pytest.mark.parametrize(
    ("found", "said"), [({}, "missing"), ({"a": b"y"}, "not what"), ({"a": b"x", "b": b""}, "unexpected member 'b'")]
)
def test_members_are_held_against_the_list(found, said):
    with pytest.raises(ArtifactError, match=said):
        archive.check_members(archive.listed({"a": b"x"}), found)


def test_a_signature_has_a_limit():
    with pytest.raises(ArtifactError, match="too many"):
        archive.sealed(b"{}", {}, bytes(5000))
