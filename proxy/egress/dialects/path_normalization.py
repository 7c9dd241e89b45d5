"""Which path a vendor takes a path for: what decides whether a call is metered, whatever way it is spelled.

Servers differ in what they forgive (RFC 3986 section 6.2, WHATWG URL section 4.4, and what frameworks do beyond
them), so here all of it is forgiven at once. A spelling that the vendor does not know gets its 404, which costs
nothing; one that it knows is never free. The bytes that go out stay the app's own.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

# What a plain path has none of. Upper case is no oddity: names are compared without it.
_UNUSUAL = re.compile(r"[^\w/.~!$&'()*+,=:@-]|//|/\.|/$", re.ASCII)
MAX_UNESCAPES = 3  # a path may pass as many servers that unescape it and pass on what they read
_SLASHES = re.compile(r"/+")


def normalize_path(path: str) -> str:
    """Unescaped, without fragment, query, parameters, empty and dot segments; case as it was."""
    # Nearly every path is plain, and costs one search.
    if _UNUSUAL.search(path) is None:
        return path
    for _ in range(MAX_UNESCAPES):
        path = unquote(path)
    # After unescaping: `%3F` and `%5C` are a query and a slash for servers that unescape first.
    path = re.split(r"[?#]", path, maxsplit=1)[0].replace("\\", "/")
    kept: list[str] = []
    for segment in _SLASHES.split(path):
        name = segment.partition(";")[0].strip(" \t\r\n\0")
        # Above the root there is nothing to drop, as in RFC 3986 section 5.2.4.
        if name == "..":
            del kept[-1:]
        elif name not in ("", "."):
            kept.append(name)
    return "/" + "/".join(kept)


def path_below(path: str, base: str) -> str | None:
    """The part of a normalized path below a base; None if its dots led out of it."""
    if not base.strip("/"):
        return path
    root = base.rstrip("/")
    rest = path[len(root) :]
    return rest if path[: len(root)].lower() == root.lower() and rest[:1] in ("", "/") else None


def path_suffixes(path: str) -> list[str]:
    """A path from each of its segments on, for a vendor whose root is not known."""
    return [path[match.start() :] for match in _SLASHES.finditer(path)]
