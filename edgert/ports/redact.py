"""Text without secrets, for files that leave the machine: what looks like one goes, and what is known to be one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

GONE = "[redacted]"
SECRET_LETTERS = 4
"""A shorter secret would be found in every second word."""
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_USER = re.compile(r"(?<=://)[^/\s\"']+@")
"""Up to the last @, as a password may hold one."""
_NAMED = re.compile(
    r"""(?ix) ( (?: passw(?:or)?d | passphrase | secret | token | api[_-]?key | private[_-]?key | psk | authorization
    | cookie ) (?! [\w.-]{0,32} (?: _file | _path | _dir ) ) [\w.-]{0,32} \\{0,4} ["']? \s{0,8} [:=] \s{0,8} )
    ( \"{3}[\s\S]{0,4096}?\"{3} | '{3}[\s\S]{0,4096}?'{3} | (\\{1,4}["'])[^\n]{0,4096}?\3
    | "(?:[^"\\]|\\.)*" | '[^']*' | (?:bearer|basic|digest|token)\s+[^\s,;}]+ | [^\s,;}\]]+ )"""
)
"""Whatever a name begins with: bounded, as texts are of strangers, and a name may be as long as they like. Values may
be TOML's of several lines, or stand in JSON that is text in other JSON."""


def address(url: str) -> str:
    """Where a URL leads, for people: without user, password, query and fragment, which may let somebody in."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return GONE


def redacted(text: str, known: Iterable[str] = ()) -> str:
    """The text with every secret in it replaced.

    Args:
        text: a configuration, a log, a document.
        known: secrets themselves, wherever they stand.
    """
    text = _PEM.sub(GONE, text)
    plain = {each.strip() for each in known}
    plain = {each for each in plain if len(each) >= SECRET_LETTERS}
    for secret in sorted({*plain, *(json.dumps(each)[1:-1] for each in plain)}, key=len, reverse=True):
        text = text.replace(secret, GONE)
    text = _USER.sub(f"{GONE}@", text)
    return _NAMED.sub(rf"\1{GONE}", text)
