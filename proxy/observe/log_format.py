"""Formats an event as one line: JSON for machines or text for people. No content can break out of its line.

Measured for an access line of twenty fields (tests/bench/logs.py): python-json-logger's formatter 10 µs,
the standard library's json 4 µs, the line written out by hand over its C string escape 2 µs, orjson 0.4 µs.
A request costs well over 100 µs, so the last two differ by one per cent of it: no package for that.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from json.encoder import c_make_encoder, encode_basestring_ascii  # type: ignore[attr-defined]  # not in its stubs

MAX_LINE_LENGTH = 64 * 1024  # characters of an event's attributes; past that, long strings and lists are clipped
_MAX_STRING_LENGTH = 4096
_MAX_ITEMS = 100
_MAX_DEPTH = 6

quote_json = encode_basestring_ascii  # a string as a JSON string in ASCII, written in C

_BARE = re.compile(r"[!#-<>-~]+")  # printable ASCII without space, quote and equals sign


class TimestampFormatter:
    """Formats times by RFC 3339, in UTC with milliseconds. What was formatted last is kept: under load many lines are
    of one millisecond, and nearly all of one second."""

    __slots__ = ("_kept", "_kept_second")

    def __init__(self) -> None:
        # One attribute for both halves of a pair, so that threads see a consistent one.
        self._kept = (-1, "")
        self._kept_second = (-1, "")

    def __call__(self, moment: float) -> str:
        """Format `moment`, in seconds since the epoch."""
        millisecond = int(moment * 1000)
        kept = self._kept
        if kept[0] == millisecond:
            return kept[1]
        second, rest = divmod(millisecond, 1000)
        begun = self._kept_second
        if begun[0] != second:
            begun = self._kept_second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        stamp = f"{begun[1]}.{rest:03d}Z"
        self._kept = (millisecond, stamp)
        return stamp


def format_json_line(
    stamp: str,
    level: str,
    event: str,
    message: str,
    attributes: Mapping[str, object],
    longest: int = MAX_LINE_LENGTH,
) -> str:
    """An event as a line of JSON. `request_id` and `trace_id` are always there, null if the event belongs to no
    request. `longest` limits the message and the attributes, each."""
    rest = {"request_id": None, "trace_id": None, **attributes}
    text = encode_json(rest, longest)
    head = quote_json(message)
    if len(head) > longest or "\\ud" in head:
        head = encode_json({"": message}, longest)[4:-1]
    return (
        f'{{"time":"{stamp}","level":"{level}","event":{quote_json(event)},"message":{head},'
        f"{text[1:] if len(text) > 2 else '}'}\n"
    )


def format_text_line(
    stamp: str,
    level: str,
    event: str,
    message: str,
    attributes: Mapping[str, object],
    longest: int = MAX_LINE_LENGTH,
) -> str:
    """An event as `TIME LEVEL event: message key=value …`; attributes that are None are left out. `longest` limits each
    attribute; the message is never clipped here."""
    parts = [f"{stamp} {level.upper():<7} {printable(event)}: {printable(message)}"]
    parts += [
        f"{printable(key)}={_format_value(value, longest)}" for key, value in attributes.items() if value is not None
    ]
    return " ".join(parts) + "\n"


def encode_json(attributes: Mapping[str, object], longest: int = MAX_LINE_LENGTH) -> str:
    """Any attributes as strict JSON in ASCII: no NaN, no lone surrogates, no cycles, nothing too long."""
    try:
        text = _encode(attributes)
    except (TypeError, ValueError, RecursionError):
        text = _encode(_sanitize_value(attributes, 0))
    if len(text) > longest:
        return _encode(_sanitize_value(attributes, 0))
    # Strict readers refuse escaped lone surrogates. Pairs begin alike, and pass through `_sanitize` unchanged.
    if "\\ud" in text:
        text = _encode(_sanitize_value(attributes, 0, clips=False))
    return text


def printable(text: str) -> str:
    """Text in which every character that could end the line, colour it or change its direction is escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _format_value(value: object, longest: int) -> str:
    if isinstance(value, str) and _BARE.fullmatch(value):
        return value
    text = encode_json({"": value}, longest)[4:-1]
    if isinstance(value, str):
        return text
    return text[1:-1] if text[0] == '"' and _BARE.fullmatch(text[1:-1]) else text


def _to_serializable(value: object) -> object:
    """A value of a type that `json` does not know, as one that it does."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return str(value)


def _make_encoder() -> Callable[[object], str]:
    """`JSONEncoder.encode`, whose C encoder is made once and not for each text: 3 µs of 9 a line. It looks for no
    cycles: those end in RecursionError."""
    if c_make_encoder is None:
        return json.JSONEncoder(separators=(",", ":"), default=_to_serializable, allow_nan=False).encode
    encode = c_make_encoder(None, _to_serializable, quote_json, None, ":", ",", False, False, False)
    return lambda value: "".join(encode(value, 0))


_encode = _make_encoder()


def _sanitize_value(value: object, depth: int, *, clips: bool = True) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        text = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        long = clips and len(text) > _MAX_STRING_LENGTH
        return f"{text[:_MAX_STRING_LENGTH]}… ({len(text)} characters)" if long else text
    if depth >= _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        pairs = list(value.items())[: _MAX_ITEMS if clips else None]
        return {
            str(_sanitize_value(str(key), depth + 1, clips=clips)): _sanitize_value(item, depth + 1, clips=clips)
            for key, item in pairs
        }
    if isinstance(value, list | tuple):
        items = value[: _MAX_ITEMS if clips else None]
        return [_sanitize_value(item, depth + 1, clips=clips) for item in items]
    return _sanitize_value(_to_serializable(value), depth + 1, clips=clips)
