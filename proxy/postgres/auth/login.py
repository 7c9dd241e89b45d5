"""How a client comes in: encryption asked for and answered, the startup packet, the password.

A state machine without I/O: `feed` takes what came and gives what goes back, and leaves what it has found out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from proxy.postgres import wire
from proxy.postgres.auth.scram import MECHANISM, Exchange, Verifier
from proxy.postgres.auth.startup import CANCEL_REQUEST, ELSEWHERE, GSS_REQUEST, SSL_REQUEST, Startup, packet, read
from proxy.postgres.wire import HEAD_SIZE, read_head

TLS_HELLO = 0x16  # a client that begins with TLS, without asking (PostgreSQL 17, sslnegotiation=direct)
MOST = 4096  # bytes of an answer to a challenge
_NO = b"N"
_YES = b"S"


@dataclass(frozen=True, slots=True)
class Gate:
    """Whom a login lets in: one user, who may go to other databases of that server than `database`, as on connections
    of its own. `console` is the name of the database that is ours."""

    verifier: Verifier
    user: str
    database: str
    tls: bool = False
    console: str = "outrigger"


class Login:
    """`startup` is set when the client is in; `cancel` where it only came for that; `upgrade`: the caller is to
    start TLS; `closing`: it is to hang up after what `feed` gave. `declined`: TLS was asked for and refused."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._data = b""
        self._asked: Startup | None = None
        self._exchange: Exchange | None = None
        self._encrypted = False
        self.declined = False
        self.upgrade = False
        self.closing = False
        self.cancel: tuple[int, int] | None = None
        self.startup: Startup | None = None
        self.wrong = ""

    def feed(self, data: bytes) -> bytes:
        self._data += data
        sent = b""
        while not (self.closing or self.upgrade or self.startup or self.cancel):
            reply = self._step()
            if reply is None:
                break
            sent += reply
        return sent

    def upgraded(self) -> None:
        self.upgrade = False
        self._encrypted = True

    @property
    def rest(self) -> bytes:
        """What came after the login."""
        return self._data

    def _step(self) -> bytes | None:
        if self._asked is None:
            return self._first()
        if len(self._data) < HEAD_SIZE:
            return None
        kind, length = read_head(self._data)
        if kind != wire.PASSWORD or not 4 <= length <= MOST:
            return self._refuse("08P01", "a password was to come, and something else came")
        if len(self._data) <= length:
            return None
        body, self._data = self._data[HEAD_SIZE : length + 1], self._data[length + 1 :]
        return self._proof(body)

    def _first(self) -> bytes | None:
        if self._data[:1] == bytes((TLS_HELLO,)):
            return self._close("it began with TLS, which is to be asked for first (sslnegotiation=postgres)")
        try:
            found = packet(self._data)
        except ValueError as error:
            return self._close(str(error))
        if found is None:
            return None
        code, body = found
        self._data = self._data[len(body) + 8 :]
        if code in (SSL_REQUEST, GSS_REQUEST):
            if self._data or self._encrypted:
                return self._close("it sent on before encryption was agreed on")
            if code == SSL_REQUEST and self._gate.tls:
                self.upgrade = True
                return _YES
            self.declined = self.declined or code == SSL_REQUEST
            return _NO
        if code == CANCEL_REQUEST:
            self.closing = True
            if len(body) == 8:
                self.cancel = struct.unpack(">II", body)
            return b""
        try:
            asked = self._asked = read(code, body)
        except ValueError as error:
            return self._refuse("0A000" if "version" in str(error) else "08P01", str(error))
        return self._challenge(asked)

    def _challenge(self, asked: Startup) -> bytes:
        gate = self._gate
        sent = b""
        if asked.minor or asked.unknown:
            names = b"".join(name + b"\0" for name in asked.unknown)
            sent = wire.message(wire.NEGOTIATE, struct.pack(">ii", 0, len(asked.unknown)) + names)
        if asked.replication:
            return sent + self._refuse(
                "0A000", "replication does not go through a pool; connect to the database itself"
            )
        if asked.user != gate.user:
            text = f'user "{asked.user}" is not known here; this pool serves user "{gate.user}" alone'
            return sent + self._refuse("28000", text)
        if asked.database not in (gate.database, gate.console):
            self._asked = replace(asked, key=((ELSEWHERE, asked.database), *asked.key))
        return sent + wire.message(wire.AUTHENTICATION, struct.pack(">i", 10) + MECHANISM + b"\0\0")

    def _proof(self, body: bytes) -> bytes:
        if self._exchange is None:
            self._exchange = Exchange(self._gate.verifier)
            mechanism, _, rest = body.partition(b"\0")
            size = struct.unpack_from(">i", rest)[0] if len(rest) >= 4 else -1
            challenge = self._exchange.first(rest[4:]) if mechanism == MECHANISM and size == len(rest) - 4 else None
            if challenge is None:
                return self._wrong()
            return wire.message(wire.AUTHENTICATION, struct.pack(">i", 11) + challenge)
        final = self._exchange.final(body)
        if final is None:
            return self._wrong()
        self.startup = self._asked
        return wire.message(wire.AUTHENTICATION, struct.pack(">i", 12) + final)

    def _wrong(self) -> bytes:
        user = self._gate.user
        return self._refuse(
            "28P01",
            f'password authentication failed for user "{user}"; the password of this pool is made at its start,'
            " and stands in the address that the app gets",
        )

    def _refuse(self, code: str, text: str) -> bytes:
        self.wrong = text
        self.closing = True
        return wire.fatal(code, text)

    def _close(self, why: str) -> bytes:
        self.wrong = why
        self.closing = True
        return b""
