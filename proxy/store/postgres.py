"""The store in PostgreSQL: a schema of its own, one statement a decision.

asyncpg connects and logs in (addresses in all spellings, TLS, SCRAM, several hosts); then its transport is taken over
(`set_protocol`, as asyncpg itself does when it starts TLS), because asyncpg cannot have two statements under way and
needs two round trips for one that is not prepared. Here each decision is Parse, Bind, Execute and Sync in one write
(PostgreSQL documentation, chapter Frontend/Backend Protocol, Extended Query), which is a transaction of its own, so it
goes through a transaction pooler: no prepared statement, no session state, no LISTEN.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import asyncpg

from proxy.policy.urls import mask_password, without_foreign_options
from proxy.store.interface import SchemaPart, Script, StoreAway
from proxy.store.pipelined import PipelinedConnection
from proxy.store.postgres_schema import KEPT, migrate, quote_name

CONNECT_TIMEOUT = 5.0  # seconds
MAX_SWEPT_ROWS = 1000  # deleted at once, a few milliseconds
PARSE_COMPLETE, DATA_ROW, READY_FOR_QUERY, ERROR_RESPONSE = b"1DZE"
_HEADER = struct.Struct(">BI")
_INT16, _INT32 = struct.Struct(">h"), struct.Struct(">i")
_EXECUTE_AND_SYNC = b"E\0\0\0\x09\0\0\0\0\0" + b"S\0\0\0\x04"
_TEXT, _BINARY = 0, 1
_IS_TEXT, _IS_BINARY = _INT16.pack(_TEXT), _INT16.pack(_BINARY)
# Classes of errors after which no statement can succeed here: connection, resources, an operator stops the server.
UNABLE = ("08", "53", "57", "58", "25", "XX")

# ValueError: what asyncpg raises for an address that it cannot read.
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)
_CONNECT_OPTIONS = {"timeout": CONNECT_TIMEOUT, "statement_cache_size": 0}


class Statement:
    """A statement as its Parse message. `result` is the format of its column."""

    __slots__ = ("decode", "parse", "result")

    def __init__(self, text: str, decode: Callable[[bytes | None], Any], *, result: int = _TEXT) -> None:
        self.parse = _message(b"P", b"\0" + text.encode() + b"\0\0\0")
        self.decode = decode
        self.result = _INT16.pack(1) + _INT16.pack(result)

    def render(self, *values: str | bytes) -> bytes:
        """Everything that runs it, with texts and bytes as its parameters."""
        count = _INT16.pack(len(values))
        parts = [b"\0\0", count, *[_IS_BINARY if isinstance(value, bytes) else _IS_TEXT for value in values], count]
        for value in values:
            data = value if isinstance(value, bytes) else value.encode()
            parts += (_INT32.pack(len(data)), data)
        parts.append(self.result)
        return self.parse + _message(b"B", b"".join(parts)) + _EXECUTE_AND_SYNC


class PostgresConnection(PipelinedConnection):
    """asyncpg's connection, taken over. `schema` is quoted."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[str], None],
        connection: Any,
        schema: str,
        scripts: dict[str, Statement],
        expiring: Sequence[str],
    ) -> None:
        super().__init__(loop, on_lost)
        self._connection = connection  # kept: asyncpg complains of one that is collected while it is open
        self._foreign_protocol = connection._protocol
        self._scripts = scripts
        self._input = b""
        self._row: bytes | None = None
        self._error: str | None = None
        live = f"key = $1 AND expires > {schema}.clock_us()"
        expires = f"{schema}.clock_us() + $3::bigint * 1000"
        kept = f"{schema}.{KEPT}"
        self._get = Statement(f"SELECT value FROM {kept} WHERE {live}", lambda row: row, result=_BINARY)
        put = f"INSERT INTO {kept} (key, value, expires) VALUES ($1, $2, {expires}) ON CONFLICT (key) DO UPDATE"
        put += " SET value = excluded.value, expires = excluded.expires"
        self._set = Statement(f"{put} RETURNING 1", bool)
        self._add = Statement(f"{put} WHERE kept.expires <= {schema}.clock_us() RETURNING 1", bool)
        self._delete = Statement(f"DELETE FROM {kept} WHERE key = ANY($1::text[])", bool)
        self._delete_if = Statement(f"DELETE FROM {kept} WHERE {live} AND value = $2 RETURNING 1", bool)
        # Instances that sweep at once take different rows in place of waiting for each other.
        self._sweeps = [
            Statement(
                f"DELETE FROM {schema}.{table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {schema}.{table}"
                f" WHERE expires < {schema}.clock_us() LIMIT {MAX_SWEPT_ROWS} FOR UPDATE SKIP LOCKED))",
                bool,
            )
            for table in expiring
        ]
        transport = connection._transport
        transport.set_protocol(self)
        self.connection_made(transport)

    def execute(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> asyncio.Future[list[Any]]:
        statement = self._scripts[script.name]
        return self._send(statement.render(render_array(keys), render_array(args)), statement.decode)

    def get(self, key: str) -> asyncio.Future[bytes | None]:
        return self._run(self._get, key)

    def set(self, key: str, value: bytes, ttl: float, *, only_new: bool) -> asyncio.Future[bool]:
        return self._run(self._add if only_new else self._set, key, value, str(max(1, round(ttl * 1000))))

    def delete(self, keys: Sequence[str]) -> asyncio.Future[Any]:
        return self._run(self._delete, render_array(keys))

    def delete_if(self, key: str, value: bytes) -> asyncio.Future[bool]:
        return self._run(self._delete_if, key, value)

    async def describe(self) -> Mapping[str, str]:
        version = await self.run_text("SHOW server_version")
        return {"server": "PostgreSQL", "version": (version or b"").decode().partition(" ")[0]}

    def sweep(self) -> None:
        for statement in self._sweeps:
            self._run(statement)

    def run_text(self, text: str) -> asyncio.Future[bytes | None]:
        """Any statement; the first column of its last row."""
        return self._run(Statement(text, lambda row: row))

    def abort(self, reason: str) -> None:
        super().abort(reason)
        self._connection.terminate()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # asyncpg's own protocol hears of the end as well, so that it lets go of what it holds.
        self._foreign_protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._input:
            data = self._input + data
        position, size = 0, len(data)
        while position + 5 <= size:
            kind, length = _HEADER.unpack_from(data, position)
            end = position + 1 + length
            if end > size:
                break
            if kind == DATA_ROW:
                (width,) = _INT32.unpack_from(data, position + 7)
                self._row = data[position + 11 : position + 11 + width] if width >= 0 else None
            elif kind == ERROR_RESPONSE:
                self._error = _describe_error(data[position + 5 : end])
            elif kind == READY_FOR_QUERY:
                self._deliver()
            position = end
        self._input = data[position:]

    def _run(self, statement: Statement, *values: str | bytes) -> asyncio.Future[Any]:
        return self._send(statement.render(*values), statement.decode)

    def _deliver(self) -> None:
        row, error = self._row, self._error
        self._row = self._error = None
        if not self._waiting:
            return
        reply, decode = self._waiting.popleft()
        if error is None:
            if not reply.done():
                reply.set_result(decode(row))
            return
        if not reply.done():
            reply.set_exception(StoreAway(f"it said: {error}"))
            reply.exception()  # seen: whoever waits raises it
        if error.startswith(UNABLE):
            self.abort(f"it said: {error}")


class PostgresBackend:
    """One database and schema. `where` is its address without the password."""

    kind: Literal["postgresql"] = "postgresql"

    def __init__(self, url: str, prefix: str, scripts: Sequence[Script], parts: Sequence[SchemaPart]) -> None:
        self.where = mask_password(url)
        self._url = without_foreign_options(url)
        self._schema = quote_name(prefix)
        self._schema_name = prefix
        self._parts = parts
        self._scripts = {
            script.name: Statement(f"SELECT {self._schema}.{script.sql}($1::text[], $2::text[])", _decode_json)
            for script in scripts
        }

    async def connect(self, on_lost: Callable[[str], None]) -> PostgresConnection:
        try:
            connection = await asyncpg.connect(
                self._url, **_CONNECT_OPTIONS, server_settings={"application_name": "outrigger-store"}
            )
            try:
                await migrate(connection, self._schema_name, self._parts)
            except BaseException:
                connection.terminate()
                raise
        except FAILURES as error:
            raise StoreAway(f"it cannot be used: {describe_failure(error)}") from error
        expiring = [table for part in self._parts for table in part.expiring]
        loop = asyncio.get_running_loop()
        return PostgresConnection(loop, on_lost, connection, self._schema, self._scripts, expiring)


def render_array(values: Sequence[str]) -> str:
    """A `text[]` as PostgreSQL reads it."""
    if not values:
        return "{}"
    joined = '","'.join(values)
    # Keys and numbers need no escapes; one look at all of them takes a quarter of the time.
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        joined = '","'.join([value.replace("\\", "\\\\").replace('"', '\\"') for value in values])
    return '{"' + joined + '"}'


def describe_failure(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        text += "; make the schema that store.prefix names and give it to this user, or let the user create it"
    return text


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + _INT32.pack(len(body) + 4) + body


def _decode_json(row: bytes | None) -> Any:
    return [] if row is None else json.loads(row.decode())


def _describe_error(body: bytes) -> str:
    """An ErrorResponse: its SQLSTATE and message."""
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    return f"{fields.get(b'C', 'XX000')} {fields.get(b'M', '')}"
