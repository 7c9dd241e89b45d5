"""The Prefer field (RFC 7240): what a client would like, and may be denied."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_WAIT = 60.0  # seconds: clients, and what is between them and us, give up at about that time

# A preference is a token, with a value that is a token or a quoted text, and parameters that mean nothing here.
_PREFERENCE = re.compile(
    r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([!#$%&'*+.^_`|~0-9A-Za-z-]*)))?"""
)


@dataclass(frozen=True, slots=True)
class Preferences:
    """`respond_async`: 202 and the answer later. `wait`: seconds that the client would wait for it, at most MAX_WAIT;
    None if it did not say."""

    respond_async: bool = False
    wait: float | None = None


def parse_prefer(text: str | None) -> Preferences:
    """All lines of the field as one. What cannot be understood is not there (RFC 7240 section 2); of a preference that
    is stated twice the first counts."""
    if not text:
        return Preferences()
    respond_async, wait = False, None
    for member in _split_members(text):
        found = _PREFERENCE.match(member.strip())
        if found is None:
            continue
        name = found[1].lower()
        value = found[2] if found[2] is not None else (found[3] or "")
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and wait is None and value.isascii() and value.isdigit() and len(value) < 10:
            wait = min(MAX_WAIT, float(value))
    return Preferences(respond_async, wait)


def _split_members(text: str) -> list[str]:
    """The members of a list (RFC 9110 section 5.6.1): a comma within a quoted text separates nothing."""
    if '"' not in text:
        return text.split(",")
    members, begin, quoted, escaped = [], 0, False, False
    # Letter by letter, since a regular expression that looks ahead takes quadratic time of a client's choosing.
    for at, letter in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and letter == "\\":
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            members.append(text[begin:at])
            begin = at + 1
    return [*members, text[begin:]]
