"""A Postgres client that says exactly what it is told to, message by message (protocol 3.0, blocking)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

V3 = 196608
SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


class Message(NamedTuple):
    kind: str
    body: bytes

    def __repr__(self) -> str:
        if self.kind in "EN" and self.body:
            said = fields(self.body)
            return f"{self.kind}{said.get('C')}:{said.get('M')!r}"
        return f"{self.kind}{self.body!r}" if len(self.body) < 90 else f"{self.kind}[{len(self.body)}]"


class Refused(Exception):
    """The server's ErrorResponse in place of an answer; `fields` by their letter."""

    def __init__(self, body: bytes) -> None:
        self.fields = fields(body)
        super().__init__(f"{self.fields.get('C')}: {self.fields.get('M')}")

    @property
    def code(self) -> str:
        return self.fields.get("C", "")


class Gone(Exception):
    """The other side closed the connection; `said` is what came of an answer before."""

    def __init__(self, said: list[Message] | None = None) -> None:
        self.said = said or []
        super().__init__(repr(self.said))


def fields(body: bytes) -> dict[str, str]:
    """What an ErrorResponse or a NoticeResponse says."""
    return {part[:1].decode(): part[1:].decode(errors="replace") for part in body.split(b"\0") if part}


def _text(*parts: str) -> bytes:
    return b"".join(part.encode() + b"\0" for part in parts)


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def query(sql: str) -> bytes:
    return message(b"Q", _text(sql))


def parse(sql: str, name: str = "", oids: Iterable[int] = ()) -> bytes:
    oids = tuple(oids)
    return message(b"P", _text(name, sql) + struct.pack(f"!H{len(oids)}I", len(oids), *oids))


def bind(values: Iterable[object] = (), name: str = "", portal: str = "", binary: bool = False) -> bytes:
    """Text values, None for NULL; `binary` asks for the answer in binary."""
    out = [_text(portal, name), struct.pack("!H", 0)]
    values = tuple(values)
    out.append(struct.pack("!H", len(values)))
    for value in values:
        raw = None if value is None else str(value).encode()
        out.append(struct.pack("!i", -1) if raw is None else struct.pack("!i", len(raw)) + raw)
    out.append(struct.pack("!HH", 1, 1) if binary else struct.pack("!H", 0))
    return message(b"B", b"".join(out))


def describe(kind: str, name: str = "") -> bytes:
    return message(b"D", kind.encode() + _text(name))


def execute(limit: int = 0, portal: str = "") -> bytes:
    return message(b"E", _text(portal) + struct.pack("!I", limit))


def close(kind: str, name: str = "") -> bytes:
    return message(b"C", kind.encode() + _text(name))


def call(oid: int, *values: object) -> bytes:
    """FunctionCall with text arguments and a text answer."""
    out = [struct.pack("!IHH", oid, 0, len(values))]
    for value in values:
        raw = str(value).encode()
        out.append(struct.pack("!i", len(raw)) + raw)
    out.append(struct.pack("!H", 0))
    return message(b"F", b"".join(out))


SYNC, FLUSH, TERMINATE, COPY_DONE = message(b"S"), message(b"H"), message(b"X"), message(b"c")


def copy_data(data: bytes) -> bytes:
    return message(b"d", data)


def copy_fail(reason: str) -> bytes:
    return message(b"f", _text(reason))


def startup(parameters: Mapping[str, str], version: int = V3) -> bytes:
    body = struct.pack("!I", version) + _text(*(part for pair in parameters.items() for part in pair)) + b"\0"
    return struct.pack("!I", len(body) + 4) + body


def cancel_request(pid: int, secret: bytes) -> bytes:
    return struct.pack("!III", 12 + len(secret), CANCEL_REQUEST, pid) + secret


class Wire:
    """`wire.send(query("select 1"))`, then `wire.answer()`: all up to ReadyForQuery.

    Raises Gone at the connection's end, Refused where the login is refused, TimeoutError after `patience` seconds.
    """

    def __init__(self, url: str, *, patience: float = 10.0, version: int = V3, login: bool = True, **more: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.address = (parts.hostname, parts.port or 5432)
        self.user, self.password = unquote(parts.username or ""), unquote(parts.password or "")
        self.database = parts.path[1:]
        self.socket = socket.create_connection(self.address, patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = bytearray()
        self.parameters: dict[str, str] = {}
        self.key = (0, b"")
        self.welcome: list[Message] = []
        if login:
            try:
                self.log_in({"user": self.user, "database": self.database, **more}, version)
            except BaseException:
                self.drop()
                raise

    # ── messages ────────────────────────────────────────────────────────────────────────────

    def send(self, *parts: bytes) -> None:
        try:
            self.socket.sendall(b"".join(parts))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Gone from error

    def exactly(self, count: int) -> bytes:
        while len(self.rest) < count:
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError as error:
                raise Gone from error
            if not data:
                raise Gone
            self.rest += data
        taken = bytes(self.rest[:count])
        del self.rest[:count]
        return taken

    def read(self) -> Message:
        kind, length = struct.unpack("!cI", self.exactly(5))
        found = Message(kind.decode("latin-1"), self.exactly(length - 4))
        if found.kind == "S":
            name, value = found.body[:-1].split(b"\0")
            self.parameters[name.decode()] = value.decode()
        return found

    def answer(self, until: str = "Z") -> list[Message]:
        """All messages up to one of these kinds, which is the last."""
        found: list[Message] = []
        try:
            while not found or found[-1].kind not in until:
                found.append(self.read())
        except Gone as gone:
            raise Gone(found) from gone
        return found

    def ask(self, *parts: bytes) -> list[Message]:
        self.send(*parts)
        return self.answer()

    def rows(self, sql: str) -> list[tuple[str | None, ...]]:
        """What a simple query answers, as text. Raises Refused, with the last words of a connection that ends too."""
        try:
            found = self.ask(query(sql))
        except Gone as gone:
            found = gone.said
            if all(each.kind != "E" for each in found):
                raise
        for each in found:
            if each.kind == "E":
                raise Refused(each.body)
        return [row(each.body) for each in found if each.kind == "D"]

    def value(self, sql: str) -> str | None:
        return self.rows(sql)[0][0]

    def quiet(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes in that time."""
        before = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            return not self.rest and not self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(before)

    def ended(self) -> list[Message]:
        """What still comes before the other side closes."""
        found: list[Message] = []
        try:
            while True:
                found.append(self.read())
        except Gone:
            return found

    # ── life ────────────────────────────────────────────────────────────────────────────────

    def log_in(self, parameters: Mapping[str, str], version: int = V3) -> None:
        self.send(startup(parameters, version))
        while True:
            found = self.read()
            self.welcome.append(found)
            if found.kind == "E":
                raise Refused(found.body)
            if found.kind == "K":
                self.key = (struct.unpack("!I", found.body[:4])[0], found.body[4:])
            if found.kind == "Z":
                return
            if found.kind == "R":
                (what,) = struct.unpack("!I", found.body[:4])
                if what == 3:
                    self.send(message(b"p", _text(self.password)))
                elif what == 10:
                    self._scram(found.body[4:])

    def _scram(self, offered: bytes) -> None:
        """SCRAM-SHA-256 without channel binding, RFC 5802 and RFC 7677; the server has to prove itself too."""
        assert b"SCRAM-SHA-256" in offered.split(b"\0"), offered
        nonce = base64.b64encode(os.urandom(18)).decode()
        bare = f"n=,r={nonce}"
        first = f"n,,{bare}".encode()
        self.send(message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first))
        found = self.read()
        self.welcome.append(found)
        if found.kind == "E":
            raise Refused(found.body)
        challenge = found.body[4:].decode()
        said = dict(part.split("=", 1) for part in challenge.split(","))
        assert said["r"].startswith(nonce)
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), base64.b64decode(said["s"]), int(said["i"]))
        sign = lambda key, text: hmac.digest(key, text, "sha256")  # noqa: E731
        client = sign(salted, b"Client Key")
        final = f"c=biws,r={said['r']}"
        whole = f"{bare},{challenge},{final}".encode()
        proof = bytes(a ^ b for a, b in zip(client, sign(hashlib.sha256(client).digest(), whole), strict=True))
        self.send(message(b"p", f"{final},p={base64.b64encode(proof).decode()}".encode()))
        found = self.read()
        self.welcome.append(found)
        if found.kind == "E":
            raise Refused(found.body)
        assert base64.b64decode(found.body[4:].decode()[2:]) == sign(sign(salted, b"Server Key"), whole)

    def cancel(self) -> None:
        """Ask, over a connection of its own, for what this one is doing to be cancelled."""
        with socket.create_connection(self.address, 20) as other:
            other.sendall(cancel_request(*self.key))
            other.recv(1)

    def bye(self) -> None:
        try:
            self.send(TERMINATE)
        except Gone:
            pass
        self.socket.close()

    def drop(self) -> None:
        """Go without a word, as a killed process does."""
        self.socket.close()

    def reset(self) -> None:
        """Go by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __del__(self) -> None:
        if hasattr(self, "socket"):
            self.socket.close()  # of a test that failed

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.bye()


def row(body: bytes) -> tuple[str | None, ...]:
    """A DataRow's values, as text."""
    (count,) = struct.unpack_from("!H", body)
    at, values = 2, []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if length < 0 else body[at : at + length].decode(errors="replace"))
        at += max(length, 0)
    return tuple(values)


def kinds(found: Iterable[Message]) -> str:
    return "".join(each.kind for each in found)
