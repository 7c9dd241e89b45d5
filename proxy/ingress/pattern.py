"""Path patterns, and the ways in which a path can be read.

A server may decode `%61` before it routes or after, take `//` for `/`, resolve `/../` or hand it on, treat
`%2F` or a backslash as a slash, and ignore case or a slash at the end. Which of these the app does is not
known here, so a pattern is matched against every reading that differs (`readings`): a client cannot step
around a limit by writing a path in another way. What the app gets stays as it was sent.

Equal in every match: letters of either case, one slash or several, a slash at the end or none. Escapes are
decoded once, as servers do: `%2561` is `%61`, not `a`. Matrix parameters (`;x=1`) are part of their segment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

FLAGS = re.DOTALL | re.IGNORECASE

_UNUSUAL = re.compile(r"[%\\#]|//|/\.{1,2}(?:/|\Z)").search
_ESCAPED_SLASH = re.compile(r"%2[fF]")
_DOTS = re.compile(r"/\.{1,2}(?:/|\Z)")
_SLASHES = re.compile(r"//+")
_TOKEN = re.compile(r"\*+|\{[A-Za-z_][A-Za-z0-9_]*\}")


def is_plain(path: str) -> bool:
    """Whether a path has one reading, itself: true of nearly all, and cheap to know."""
    return _UNUSUAL(path) is None


def readings(path: str) -> tuple[str, ...]:
    """Every way in which a server may read this path, the commonest first."""
    if _UNUSUAL(path) is None:
        return (path,)
    return tuple(dict.fromkeys(_readings(path)))


def _readings(path: str) -> Iterator[str]:
    for spelling in _spellings(path):
        for decoded in _decodings(spelling):
            merged = _SLASHES.sub("/", decoded)
            if _DOTS.search(merged):
                yield _resolve(merged)
                yield _SLASHES.sub("/", _resolve(decoded))
            yield merged


def _spellings(path: str) -> Iterator[str]:
    yield path
    head, mark, _ = path.partition("#")
    if mark:
        yield head
    if "\\" in path:  # the URL Standard's parser, which many a JavaScript server uses
        yield head.replace("\\", "/")


def _decodings(path: str) -> Iterator[str]:
    yield unquote(path)
    if _ESCAPED_SLASH.search(path):  # routers that split first and decode each segment later
        yield unquote(_ESCAPED_SLASH.sub("%252F", path))


def _resolve(path: str) -> str:
    """RFC 3986 section 5.2.4, for a path that begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1:] in (["."], [".."]):
        kept.append("")
    return "/" + "/".join(kept)


def regex(pattern: str, *, capture: bool = False) -> str:
    """The regular expression of a pattern, to be matched with FLAGS and ended by `\\Z`.

    `*` as a segment stands for one segment that is not empty, within a segment for any run of its
    characters, and at the end of the pattern for everything that follows; `/*` at the end also matches
    without its slash. `{name}` stands for one segment, or part of one, and is a group where `capture`.
    """
    path = _SLASHES.sub("/", "/" + unquote(pattern))
    if path.endswith("*"):
        stem = path.rstrip("*")
        if stem == "/":
            return ".*"  # `OPTIONS *` too
        if stem.endswith("/"):
            return _segments(stem[:-1], capture) + r"(?:/.*)?"
        return _segments(stem, capture) + ".*"
    return _segments(path.rstrip("/"), capture) + "/?"


def _segments(path: str, capture: bool) -> str:
    return "/".join(_segment(segment, capture) for segment in path.split("/"))


def _segment(segment: str, capture: bool) -> str:
    if segment == "*":
        return "[^/]+"
    tokens = list(_TOKEN.finditer(segment))
    out, end = [], 0
    for index, token in enumerate(tokens):
        out.append(re.escape(segment[end : token.start()]))
        end = token.end()
        following = tokens[index + 1].start() if index + 1 < len(tokens) else None
        if token[0][0] == "{":
            out.append("([^/]+)" if capture else "[^/]+")
        elif following is None or following == end:
            out.append("[^/]*")
        else:  # the first place where the next words stand is as good as any: no need to try others
            words = re.escape(segment[end:following])
            out.append(f"(?>[^/]*?{words})")
            end = following
    out.append(re.escape(segment[end:]))
    return "".join(out)
