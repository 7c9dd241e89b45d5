"""Messages of the frontend/backend protocol, version 3 (PostgreSQL documentation, chapter 54).

A message is one byte of kind, four of length (its own four included, the kind not), and a body.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

HEAD = struct.Struct(">BI")
read_head = HEAD.unpack_from
HEAD_SIZE = 5
_INT = struct.Struct(">i")

# From the client.
BIND, CLOSE, DESCRIBE, EXECUTE, FUNCTION, FLUSH, PARSE, PASSWORD, QUERY, SYNC, TERMINATE = b"BCDEFHPpQSX"
# Either way, inside COPY.
COPY_DATA, COPY_DONE, COPY_FAIL = b"dcf"
# From the server.
AUTHENTICATION, KEY_DATA, PARAMETER, READY, ERROR, NOTICE, NOTIFICATION, NEGOTIATE = b"RKSZENAv"
ROW_DESCRIPTION, DATA_ROW, COMPLETE, EMPTY_QUERY, SUSPENDED, NO_DATA, PARAMETERS = b"TDCIsnt"
PARSED, BOUND, CLOSED, COPY_IN, COPY_OUT, COPY_BOTH, FUNCTION_RESULT = b"123GHWV"

FRONTEND = frozenset(b"BCDEFHPpQSXdcf")
BACKEND = frozenset(b"RKSZENAvTDCIsnt123dcGHWV")

IDLE, IN_TRANSACTION, FAILED = b"ITE"


def message(kind: int, body: bytes = b"") -> bytes:
    return HEAD.pack(kind, len(body) + 4) + body


def query(text: bytes) -> bytes:
    return message(QUERY, text + b"\0")


def parse(name: bytes, rest: bytes) -> bytes:
    """`rest` is a Parse's body after its name: text, number of parameter types, types."""
    return message(PARSE, name + b"\0" + rest)


def close_statement(name: bytes) -> bytes:
    return message(CLOSE, b"S" + name + b"\0")


def describe_statement(name: bytes) -> bytes:
    return message(DESCRIBE, b"S" + name + b"\0")


def parameter(name: bytes, value: bytes) -> bytes:
    return message(PARAMETER, name + b"\0" + value + b"\0")


def ready(status: int = IDLE) -> bytes:
    return message(READY, bytes((status,)))


def error(
    code: str, text: str, *, severity: str = "ERROR", hint: str = "", routine: str = "", kind: int = ERROR
) -> bytes:
    """An ErrorResponse, or a NoticeResponse; `code` is an SQLSTATE, `routine` PostgreSQL's own that would say so
    (asyncpg goes by it)."""
    fields = [("S", severity), ("V", severity), ("C", code), ("M", text), ("H", hint), ("R", routine)]
    return message(kind, b"".join(f"{name}{value}\0".encode() for name, value in fields if value) + b"\0")


def fatal(code: str, text: str, *, hint: str = "") -> bytes:
    return error(code, text, severity="FATAL", hint=hint)


def fields(body: bytes) -> dict[str, str]:
    """An ErrorResponse's fields by their one-letter names."""
    return {part[:1].decode("latin-1"): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}


def row(values: Iterable[bytes | None]) -> bytes:
    """A DataRow of values in text format."""
    cells = [b"\xff\xff\xff\xff" if value is None else _INT.pack(len(value)) + value for value in values]
    return message(DATA_ROW, struct.pack(">h", len(cells)) + b"".join(cells))


def cells(body: bytes) -> list[bytes | None]:
    """A DataRow's values."""
    found: list[bytes | None] = []
    pos = 2
    for _ in range(struct.unpack_from(">h", body)[0]):
        (size,) = _INT.unpack_from(body, pos)
        pos += 4
        found.append(None if size < 0 else body[pos : pos + size])
        pos += max(size, 0)
    return found


def columns(names: Iterable[str]) -> bytes:
    """A RowDescription of text columns."""
    described = [name.encode() + b"\0" + struct.pack(">ihihih", 0, 0, 25, -1, -1, 0) for name in names]
    return message(ROW_DESCRIPTION, struct.pack(">h", len(described)) + b"".join(described))


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole messages of `data`, each its kind and body."""
    pos = 0
    while pos + HEAD_SIZE <= len(data):
        kind, length = read_head(data, pos)
        end = pos + 1 + length
        if length < 4 or end > len(data):
            return
        yield kind, data[pos + HEAD_SIZE : end]
        pos = end


def shape(described: bytes) -> bytes:
    """What of a RowDescription (or NoData) a client that knows it relies on: names, types and sizes of the
    columns, not the table they are from."""
    if described[:1] != bytes((ROW_DESCRIPTION,)):
        return b""
    found: list[bytes] = []
    pos = HEAD_SIZE + 2
    while pos < len(described):
        end = described.index(b"\0", pos)
        found.append(described[pos : end + 1] + described[end + 7 : end + 17])
        pos = end + 19
    return b"".join(found)
