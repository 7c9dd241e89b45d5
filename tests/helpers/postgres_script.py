"""Messages by name, and a session with a server that says what a test tells it to."""

from __future__ import annotations

import struct

from proxy.postgres import wire
from proxy.postgres.auth.startup import StartupMessage
from proxy.postgres.server_state import ServerState
from proxy.postgres.session import Session
from proxy.postgres.statement_registry import StatementRegistry

PARAMS = {b"server_encoding": b"UTF8", b"client_encoding": b"UTF8", b"application_name": b"", b"TimeZone": b"UTC"}


def query_message(text):
    return wire.query_message(text.encode())


def parse_message(name, text, *types):
    return wire.message(wire.PARSE, f"{name}\0{text}\0".encode() + struct.pack(f">h{len(types)}i", len(types), *types))


def bind_message(name, portal="", value=None):
    values = struct.pack(">hh", 0, 0) if value is None else struct.pack(">hhi", 0, 1, len(value)) + value
    return wire.message(wire.BIND, f"{portal}\0{name}\0".encode() + values + b"\0\0")


def describe_message(name):
    return wire.message(wire.DESCRIBE, b"S" + name.encode() + b"\0")


def close_message(name):
    return wire.message(wire.CLOSE, b"S" + name.encode() + b"\0")


DP = wire.message(wire.DESCRIBE, b"P\0")
E = wire.message(wire.EXECUTE, b"\0\0\0\0\0")
S = wire.message(wire.SYNC)
H = wire.message(wire.FLUSH)
X = wire.message(wire.TERMINATE)

parsed, bound, closed = (wire.message(kind) for kind in (wire.PARSE_COMPLETE, wire.BIND_COMPLETE, wire.CLOSE_COMPLETE))
nothing = wire.message(wire.NO_DATA)
rows = wire.row_description(["a"])
copy_in = wire.message(wire.COPY_IN, b"\0\0\0")


def done(tag="SELECT 1"):
    return wire.message(wire.COMMAND_COMPLETE, tag.encode() + b"\0")


def ready(status="I"):
    return wire.ready_for_query(ord(status))


def err(code="42601", text="no"):
    return wire.error_response(code, text)


def kinds(data):
    """The messages of `data` as one letter each."""
    return "".join(chr(kind) for kind, _ in wire.split_messages(data))


def named(data, kind):
    """The first message of a kind, as it was sent."""
    return next(wire.message(found, body) for found, body in wire.split_messages(data) if found == kind)


class Talk:
    """A client's session, linked to one server after another."""

    def __init__(self, *, statements=None, name="", encoding=None, slots=True, keep=False, number=1, params=PARAMS):
        self.statements = statements or StatementRegistry()
        startup = StartupMessage(0, "u", "d", False, name, encoding, ())
        self.given_up = 0
        self.session = Session(
            number,
            startup,
            params,
            self.statements,
            request_pin=lambda: slots,
            release_pin=self._give_up,
            keeps_server=keep,
        )

    def _give_up(self):
        self.given_up += 1

    def link(self, backend=None, **how):
        """What the server gets ahead, and what the client is told."""
        return self.session.attach_server(backend or server(), **how)

    def client(self, data):
        """What the server gets for this, what is injected behind it included."""
        return self.session.process_requests(data) + self.session.pop_injected()

    def server(self, data):
        """What the client gets for this."""
        return self.session.process_replies(data)

    def behind(self):
        return self.session.pop_injected()

    def release(self):
        assert self.session.releasable, self.session
        self.session.detach_server()


def server(key=(), name="", params=PARAMS):
    return ServerState(key, name, params, 1)
