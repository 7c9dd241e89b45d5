"""The store in Valkey 7.2 or Redis 6.2 and later: one server, over TCP or TLS, with a password or an ACL user.

The protocol is RESP2 (valkey.io/topics/protocol); hiredis packs and parses it. A client of our own above it takes 20 µs
of CPU a decision, and 4 µs where several leave in one turn; redis-py takes 59 and more, and 7 MiB of memory. Scripts
are loaded when the connection opens and called by their SHA; one that the server has lost (SCRIPT FLUSH, a failover) is
sent again whole.

A cluster is refused: a decision may concern several keys, which a cluster keeps on several servers. So is Sentinel,
which only tells where the server is.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha1
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote

import hiredis

from proxy.policy.urls import mask_password, split_url
from proxy.store.interface import Script, StoreAway
from proxy.store.pipelined import PipelinedConnection

DEFAULT_PORT = 6379
CLIENT_NAME = "outrigger"
# What a server says if it cannot decide anything now: loading its data, a replica, out of memory or of disk.
UNABLE = ("LOADING", "READONLY", "OOM", "MISCONF", "BUSY", "MASTERDOWN", "NOREPLICAS", "NOAUTH", "NOPERM")
_NOTHING = object()  # hiredis has no whole reply yet
# `now` is made in the script: a decision is atomic, so no other clock than the server's own could order them.
LUA_CLOCK = "local time = redis.call('TIME') local now = time[1] * 1000000 + time[2]\n"
_DELETE_IF = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

Decode = Callable[[Any], Any]
# A command of any length as the protocol has it; the package declares tuples of one.
pack: Callable[[tuple[str | bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class LuaScript:
    """A script as the server knows it. `text` is its whole source, with the clock in front."""

    __slots__ = ("sha", "text")

    def __init__(self, body: str, clock: str = LUA_CLOCK) -> None:
        self.text = (clock + body).encode()
        # The name that the protocol gives a script, no protection of anything.
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest().encode()


class ValkeyConnection(PipelinedConnection):
    """A connection that is logged in, or about to be. `prefix` ends in a colon and begins every key."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[str], None],
        prefix: str,
        scripts: Mapping[str, LuaScript],
    ) -> None:
        super().__init__(loop, on_lost)
        self._prefix = prefix.encode()
        self._scripts = scripts
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)

    def execute(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> asyncio.Future[list[Any]]:
        prefix, known = self._prefix, self._scripts[script.name]
        words: list[str | bytes] = [b"%d" % len(keys)]
        words += [prefix + key.encode() for key in keys]
        words += args
        return self._send(pack((b"EVALSHA", known.sha, *words)), (_decode_list, known, words))

    def get(self, key: str) -> asyncio.Future[bytes | None]:
        return self.command(b"GET", self._prefix + key.encode())

    def set(self, key: str, value: bytes, ttl: float, *, only_new: bool) -> asyncio.Future[bool]:
        words: list[bytes] = [b"SET", self._prefix + key.encode(), value, b"PX", b"%d" % max(1, round(ttl * 1000))]
        if only_new:
            words.append(b"NX")
        return self.command(*words, decode=_decode_set)

    def delete(self, keys: Sequence[str]) -> asyncio.Future[Any]:
        # UNLINK in place of DEL: a large answer is freed by another thread of the server.
        return self.command(b"UNLINK", *(self._prefix + key.encode() for key in keys))

    def delete_if(self, key: str, value: bytes) -> asyncio.Future[bool]:
        return self.command(b"EVAL", _DELETE_IF.encode(), b"1", self._prefix + key.encode(), value, decode=bool)

    async def describe(self) -> Mapping[str, str]:
        greeting = await self.command("HELLO", "2")
        told = {str(name, "utf-8"): value for name, value in zip(greeting[::2], greeting[1::2], strict=True)}
        server = told.get("server", b"redis").decode().replace("valkey", "Valkey").replace("redis", "Redis")
        facts = {"server": server, "version": told.get("version", b"").decode()}
        try:
            # Many a host hides CONFIG; INFO says the same.
            info = await self.command("INFO", "memory")
        except StoreAway:
            return facts
        for line in info.decode("utf-8", "replace").splitlines():
            if line.startswith("maxmemory_policy:"):
                facts["eviction policy"] = line.partition(":")[2]
        return facts

    def sweep(self) -> None:
        """Nothing to do: the server drops what has expired."""

    def command(self, *words: bytes | str, decode: Decode | None = None) -> asyncio.Future[Any]:
        """Any command; its reply as hiredis gives it, through `decode`."""
        return self._send(pack(words), (decode, None, None))

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        while True:
            try:
                found = reader.gets()
            except hiredis.ProtocolError as error:
                self.abort(f"it does not speak the protocol of Valkey ({error})")
                return
            if found is _NOTHING:
                return
            if not self._waiting:
                self.abort("it said something that nobody asked for")
                return
            self._deliver(found)

    def _deliver(self, found: Any) -> None:
        reply, (decode, script, words) = self._waiting.popleft()
        if not isinstance(found, hiredis.ReplyError):
            if not reply.done():
                reply.set_result(found if decode is None else decode(found))
            return
        text = str(found)
        if script is not None and text.startswith("NOSCRIPT") and self._ended is None:
            # EVAL keeps the script as well, so that the next call finds it by its SHA.
            self._send(pack((b"EVAL", script.text, *words)), (decode, None, None), reply)
            return
        if not reply.done():
            reply.set_exception(StoreAway(f"it said: {text}"))
            reply.exception()  # seen: whoever waits raises it
        if text.startswith(UNABLE):
            self.abort(f"it said: {text}")


class ValkeyBackend:
    """One address. `where` is it without the password; every script is loaded at each connection."""

    kind: Literal["valkey"] = "valkey"

    def __init__(self, url: str, prefix: str, scripts: Sequence[Script], *, clock: str = LUA_CLOCK) -> None:
        self.where = mask_password(url)
        self._parts = split_url(url)
        self._prefix = f"{prefix}:"
        self._scripts = {script.name: LuaScript(script.lua, clock) for script in scripts}

    async def connect(self, on_lost: Callable[[str], None]) -> ValkeyConnection:
        loop = asyncio.get_running_loop()
        parts = self._parts
        try:
            _, connection = await loop.create_connection(
                lambda: ValkeyConnection(loop, on_lost, self._prefix, self._scripts),
                parts.hostname or "",
                parts.port or DEFAULT_PORT,
                ssl=make_tls_context(parts),
            )
        except OSError as error:
            raise StoreAway(f"it cannot be reached: {describe_os_error(error)}") from error
        try:
            await self._log_in(connection)
        except BaseException:
            connection.abort("the login was given up")
            raise
        return connection

    async def _log_in(self, connection: ValkeyConnection) -> None:
        parts = self._parts
        words: list[bytes | str] = ["HELLO", "2"]
        if parts.password is not None:
            words += ["AUTH", unquote(parts.username or "default"), unquote(parts.password)]
        greeting = await connection.command(*words, "SETNAME", CLIENT_NAME)
        told = dict(zip(greeting[::2], greeting[1::2], strict=True))
        mode = told.get(b"mode", b"standalone").decode()
        if mode != "standalone":
            name = {"cluster": "a cluster", "sentinel": "a Sentinel"}.get(mode, mode)
            raise StoreAway(f"it is {name}, and only a single server can decide; name that server in store.url")
        database = parts.path.strip("/")
        if database:
            await connection.command("SELECT", database)
        # All at once; the last reply is the last of them to arrive.
        loads = [connection.command("SCRIPT", "LOAD", script.text) for script in self._scripts.values()]
        for load in loads:
            await load


def make_tls_context(parts: SplitResult) -> ssl.SSLContext | None:
    """For `rediss://`; the query may say `ssl_cert_reqs=none` and `ssl_ca_certs=FILE`, as for redis-py."""
    if parts.scheme != "rediss":
        return None
    query = dict(parse_qsl(parts.query))
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if query.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def describe_os_error(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _decode_list(found: Any) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in found]


def _decode_set(found: Any) -> bool:
    return found is not None
