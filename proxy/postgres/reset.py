"""What a RESET led to the connection's own is put back to the client's, in the transaction that did it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from proxy.postgres import session_state, wire
from proxy.postgres.auth.startup import Settings
from proxy.postgres.expect import Expect


def put_back(name: bytes, own: Settings, done: Callable[[bytes], bytes]) -> Iterator[tuple[Expect, bytes]]:
    """SETs in the extended protocol: what is owed for each message, and the message. `name` is that of a statement and
    a portal that nobody has."""
    for each in own.items():
        yield Expect(wire.PARSE, skip=True), wire.parse(name, session_state.setting(each) + b"\0\0\0")
        yield Expect(wire.BIND, skip=True), wire.message(wire.BIND, name + b"\0" + name + b"\0\0\0\0\0\0\0")
        yield Expect(wire.EXECUTE, skip=True), wire.message(wire.EXECUTE, name + b"\0\0\0\0\0")
        yield Expect(wire.CLOSE, skip=True), wire.message(wire.CLOSE, b"P" + name + b"\0")
        yield Expect(wire.CLOSE, skip=True, done=done), wire.close_statement(name)
