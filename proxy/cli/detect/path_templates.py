"""Paths out of an app's code, made fit for a policy: percent-encoded, and checked by the policy's own types."""

from __future__ import annotations

import re
from urllib.parse import quote

from proxy.policy.value_types import PATH, ValueType

MAX_PATH_LENGTH = 500  # characters; a path that is longer is no route that a person wrote


def encode_path(path: str) -> str | None:
    """The path as a request has it, letters outside ASCII percent-encoded (RFC 3986 section 2.5); None if none can."""
    path = re.sub(r"(?<=\w)\?(?=/|$)", "", path)  # Express's mark of what may be left out
    path = path if path.startswith("/") else f"/{path}"
    # What routing never sees (a query, a fragment) or a policy cannot write makes no route.
    if len(path) > MAX_PATH_LENGTH or not path.isprintable() or re.search(r"[?#]", path):
        return None
    try:
        return re.sub(r"[^!-~]", lambda found: quote(found[0]), path)
    except UnicodeEncodeError:  # half of a pair
        return None


def is_valid(kind: ValueType, text: str) -> bool:
    try:
        kind.parse(text)
    except ValueError:
        return False
    return True


def is_policy_path(text: str) -> bool:
    return is_valid(PATH, text)
