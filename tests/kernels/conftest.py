"""Shared by the tests of the kernels: the C half and its twin in turn."""

from __future__ import annotations

import pytest

from edgert import kernels


@pytest.fixture(params=["native", "twin"])
def half(request, monkeypatch):
    """Whoever uses it runs twice: once in C, once in numpy."""
    if request.param == "twin":
        monkeypatch.setattr(kernels, "_native", None)
    elif not kernels.NATIVE:
        pytest.skip("the C extension is not in use")
