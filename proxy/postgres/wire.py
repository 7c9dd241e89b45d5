"""Messages of the frontend/backend protocol, version 3.

They are described in the PostgreSQL documentation's chapter "Frontend/Backend Protocol": 54 in the edition that this
package cites (it is 53 or 55 in others, with the same sections), formats in 54.7 Message Formats.

A message is one byte of kind, four of length (its own four included, the kind not), and a body. The first packet of a
connection has no kind (`auth.startup`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

HEADER = struct.Struct(">BI")
read_header = HEADER.unpack_from
HEADER_SIZE = 5
_INT32 = struct.Struct(">i")

# From the client.
BIND, CLOSE, DESCRIBE, EXECUTE, FUNCTION_CALL, FLUSH, PARSE, PASSWORD, QUERY, SYNC, TERMINATE = b"BCDEFHPpQSX"
# Either way, inside COPY.
COPY_DATA, COPY_DONE, COPY_FAIL = b"dcf"
# From the server.
AUTHENTICATION, BACKEND_KEY_DATA, PARAMETER_STATUS, READY_FOR_QUERY, ERROR, NOTICE, NOTIFICATION, NEGOTIATE_VERSION = (
    b"RKSZENAv"
)
ROW_DESCRIPTION, DATA_ROW, COMMAND_COMPLETE, EMPTY_QUERY, PORTAL_SUSPENDED, NO_DATA, PARAMETER_DESCRIPTION = b"TDCIsnt"
PARSE_COMPLETE, BIND_COMPLETE, CLOSE_COMPLETE, COPY_IN, COPY_OUT, COPY_BOTH, FUNCTION_RESPONSE = b"123GHWV"

FRONTEND_KINDS = frozenset(b"BCDEFHPpQSXdcf")
BACKEND_KINDS = frozenset(b"RKSZENAvTDCIsnt123dcGHWV")

STATUS_IDLE, STATUS_IN_TRANSACTION, STATUS_FAILED = b"ITE"


def message(kind: int, body: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(body) + 4) + body


def query_message(text: bytes) -> bytes:
    return message(QUERY, text + b"\0")


def parse_message(name: bytes, body: bytes) -> bytes:
    """`body` is a Parse's after its name: text, number of parameter types, types."""
    return message(PARSE, name + b"\0" + body)


def close_statement_message(name: bytes) -> bytes:
    return message(CLOSE, b"S" + name + b"\0")


def describe_statement_message(name: bytes) -> bytes:
    return message(DESCRIBE, b"S" + name + b"\0")


def parameter_status(name: bytes, value: bytes) -> bytes:
    return message(PARAMETER_STATUS, name + b"\0" + value + b"\0")


def ready_for_query(status: int = STATUS_IDLE) -> bytes:
    return message(READY_FOR_QUERY, bytes((status,)))


def error_response(
    code: str, text: str, *, severity: str = "ERROR", hint: str = "", routine: str = "", kind: int = ERROR
) -> bytes:
    """An ErrorResponse, or with `kind` a NoticeResponse; `code` is an SQLSTATE, `routine` the function of PostgreSQL's
    that would say so (asyncpg goes by it)."""
    fields = [("S", severity), ("V", severity), ("C", code), ("M", text), ("H", hint), ("R", routine)]
    return message(kind, b"".join(f"{name}{value}\0".encode() for name, value in fields if value) + b"\0")


def fatal_response(code: str, text: str, *, hint: str = "") -> bytes:
    """An ErrorResponse after which the connection ends."""
    return error_response(code, text, severity="FATAL", hint=hint)


def error_fields(body: bytes) -> dict[str, str]:
    """An ErrorResponse's fields by their one-letter names."""
    return {part[:1].decode("latin-1"): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}


def data_row(values: Iterable[bytes | None]) -> bytes:
    """A DataRow of values in text format."""
    cells = [b"\xff\xff\xff\xff" if value is None else _INT32.pack(len(value)) + value for value in values]
    return message(DATA_ROW, struct.pack(">h", len(cells)) + b"".join(cells))


def row_values(body: bytes) -> list[bytes | None]:
    """A DataRow's values."""
    found: list[bytes | None] = []
    pos = 2
    for _ in range(struct.unpack_from(">h", body)[0]):
        (size,) = _INT32.unpack_from(body, pos)
        pos += 4
        found.append(None if size < 0 else body[pos : pos + size])
        pos += max(size, 0)
    return found


def row_description(names: Iterable[str]) -> bytes:
    """A RowDescription of text columns."""
    described = [name.encode() + b"\0" + struct.pack(">ihihih", 0, 0, 25, -1, -1, 0) for name in names]
    return message(ROW_DESCRIPTION, struct.pack(">h", len(described)) + b"".join(described))


def split_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole messages of `data`, each as its kind and body; a begin of one at the end is left out."""
    pos = 0
    while pos + HEADER_SIZE <= len(data):
        kind, length = read_header(data, pos)
        end = pos + 1 + length
        if length < 4 or end > len(data):
            return
        yield kind, data[pos + HEADER_SIZE : end]
        pos = end


def result_shape(described: bytes) -> bytes:
    """What a client that knows a RowDescription (or NoData) relies on: names, types and sizes of the columns, not the
    table they are from."""
    if described[:1] != bytes((ROW_DESCRIPTION,)):
        return b""
    found: list[bytes] = []
    pos = HEADER_SIZE + 2
    while pos < len(described):
        # A column is its name, six bytes of table and attribute, ten of type and sizes, two of format.
        end = described.index(b"\0", pos)
        found.append(described[pos : end + 1] + described[end + 7 : end + 17])
        pos = end + 19
    return b"".join(found)
