"""Paths as code has them, and as a policy can say them: what no policy can say is left out."""

from __future__ import annotations

import re
from urllib.parse import quote

from proxy.policy.value_types import PATH, Kind

LONGEST = 500  # characters; a path that is longer is no route that a person wrote


def as_sent(path: str) -> str | None:
    """As a request has it, letters outside of ASCII percent-encoded (RFC 3986 section 2.5); None where none can."""
    path = re.sub(r"(?<=\w)\?(?=/|$)", "", path)  # Express's mark of what may be left out
    path = path if path.startswith("/") else f"/{path}"
    if len(path) > LONGEST or not path.isprintable() or re.search(r"[?#]", path):
        return None
    try:
        return re.sub(r"[^!-~]", lambda found: quote(found[0]), path)
    except UnicodeEncodeError:  # half of a pair
        return None


def fits(kind: Kind, text: str) -> bool:
    try:
        kind.parse(text)
    except ValueError:
        return False
    return True


def is_path(text: str) -> bool:
    return fits(PATH, text)
