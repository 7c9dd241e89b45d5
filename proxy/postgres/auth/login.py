"""How a client comes in: encryption asked for and answered, the start-up packet, the password.

A state machine without I/O (PostgreSQL documentation, 54.2.1 Start-up, 54.2.10 SSL Session Encryption, 54.3 SASL
Authentication): `feed` takes what came and gives what goes back, and leaves in its attributes what it has found out.

============  ==================================  =====================================================================
state         what may come                       goes on to
============  ==================================  =====================================================================
first packet  SSLRequest, GSSENCRequest           starting TLS (`wants_tls`); first packet again (`tls_declined`)
              CancelRequest                       cancelling (`cancel_key`), and it hangs up
              StartupMessage                      challenged
starting TLS  (nothing, until `on_tls_started`)   first packet
challenged    SASLInitialResponse                 proving
proving       SASLResponse                        in (`accepted`)
============  ==================================  =====================================================================

From each of them a message that is refused leads to `closing`, with the reason in `failure`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from proxy.postgres import pg_errors, wire
from proxy.postgres.auth.scram import MECHANISM, ScramExchange, ScramVerifier
from proxy.postgres.auth.startup import (
    CANCEL_REQUEST,
    GSS_REQUEST,
    OTHER_DATABASE,
    SSL_REQUEST,
    StartupMessage,
    parse_startup,
    split_packet,
)
from proxy.postgres.wire import HEADER_SIZE, read_header

TLS_HELLO = 0x16  # a client that begins with TLS, without asking (PostgreSQL 17, sslnegotiation=direct)
MAX_PASSWORD_BYTES = 4096  # of an answer to a challenge
_TLS_REFUSED = b"N"
_TLS_ACCEPTED = b"S"
# Kinds of Authentication messages.
_SASL, _SASL_CONTINUE, _SASL_FINAL = 10, 11, 12


@dataclass(frozen=True, slots=True)
class LoginPolicy:
    """Whom a login lets in: one `user`, by the password of `verifier`, who may go to other databases of that server
    than `database`, as on connections of its own. `console` is the name of the database that is ours; `tls`: it is
    granted to who asks for it."""

    verifier: ScramVerifier
    user: str
    database: str
    tls: bool = False
    console: str = "outrigger"


class Login:
    """`accepted` is set when the client is in; `cancel_key` (process number, secret) if it only came to cancel;
    `wants_tls`: the caller is to start TLS; `closing`: it is to hang up after what `feed` gave, for the `failure`, if
    there is one. `tls_declined`: TLS was asked for and refused."""

    def __init__(self, policy: LoginPolicy) -> None:
        self._policy = policy
        self._data = b""
        self._startup: StartupMessage | None = None
        self._exchange: ScramExchange | None = None
        self._encrypted = False
        self.tls_declined = False
        self.wants_tls = False
        self.closing = False
        self.cancel_key: tuple[int, int] | None = None
        self.accepted: StartupMessage | None = None
        self.failure = ""

    def feed(self, data: bytes) -> bytes:
        """What the client gets for what it sent."""
        self._data += data
        sent = b""
        while not (self.closing or self.wants_tls or self.accepted or self.cancel_key):
            reply = self._process_message()
            if reply is None:
                break
            sent += reply
        return sent

    def on_tls_started(self) -> None:
        self.wants_tls = False
        self._encrypted = True

    @property
    def remainder(self) -> bytes:
        """What came after the login."""
        return self._data

    def _process_message(self) -> bytes | None:
        if self._startup is None:
            return self._process_first_packet()
        if len(self._data) < HEADER_SIZE:
            return None
        kind, length = read_header(self._data)
        if kind != wire.PASSWORD or not 4 <= length <= MAX_PASSWORD_BYTES:
            return self._refuse_login(pg_errors.PROTOCOL_VIOLATION, "a password was to come, and something else came")
        if len(self._data) <= length:
            return None
        body, self._data = self._data[HEADER_SIZE : length + 1], self._data[length + 1 :]
        return self._check_proof(body)

    def _process_first_packet(self) -> bytes | None:
        if self._data[:1] == bytes((TLS_HELLO,)):
            return self._hang_up("it began with TLS, which is to be asked for first (sslnegotiation=postgres)")
        try:
            found = split_packet(self._data)
        except ValueError as error:
            return self._hang_up(str(error))
        if found is None:
            return None
        code, body = found
        self._data = self._data[len(body) + 8 :]
        if code in (SSL_REQUEST, GSS_REQUEST):
            # What came with the request would be taken for the first bytes inside TLS (CVE-2021-23214).
            if self._data or self._encrypted:
                return self._hang_up("it sent on before encryption was agreed on")
            if code == SSL_REQUEST and self._policy.tls:
                self.wants_tls = True
                return _TLS_ACCEPTED
            self.tls_declined = self.tls_declined or code == SSL_REQUEST
            return _TLS_REFUSED
        if code == CANCEL_REQUEST:
            self.closing = True
            if len(body) == 8:
                self.cancel_key = struct.unpack(">II", body)
            return b""
        try:
            asked = self._startup = parse_startup(code, body)
        except ValueError as error:
            sqlstate = pg_errors.FEATURE_NOT_SUPPORTED if "version" in str(error) else pg_errors.PROTOCOL_VIOLATION
            return self._refuse_login(sqlstate, str(error))
        return self._send_challenge(asked)

    def _send_challenge(self, asked: StartupMessage) -> bytes:
        policy = self._policy
        sent = b""
        if asked.minor_version or asked.unknown_options:
            names = b"".join(name + b"\0" for name in asked.unknown_options)
            # A later minor version is answered with ours, and the options of it that are not known here.
            sent = wire.message(wire.NEGOTIATE_VERSION, struct.pack(">ii", 0, len(asked.unknown_options)) + names)
        if asked.replication:
            text = "replication does not go through a pool; connect to the database itself"
            return sent + self._refuse_login(pg_errors.FEATURE_NOT_SUPPORTED, text)
        if asked.user != policy.user:
            text = f'user "{asked.user}" is not known here; this pool serves user "{policy.user}" alone'
            return sent + self._refuse_login(pg_errors.INVALID_AUTHORIZATION, text)
        if asked.database not in (policy.database, policy.console):
            self._startup = replace(asked, pool_key=((OTHER_DATABASE, asked.database), *asked.pool_key))
        return sent + wire.message(wire.AUTHENTICATION, struct.pack(">i", _SASL) + MECHANISM + b"\0\0")

    def _check_proof(self, body: bytes) -> bytes:
        if self._exchange is None:
            self._exchange = ScramExchange(self._policy.verifier)
            mechanism, _, rest = body.partition(b"\0")
            size = struct.unpack_from(">i", rest)[0] if len(rest) >= 4 else -1
            challenge = (
                self._exchange.answer_first(rest[4:]) if mechanism == MECHANISM and size == len(rest) - 4 else None
            )
            if challenge is None:
                return self._refuse_password()
            return wire.message(wire.AUTHENTICATION, struct.pack(">i", _SASL_CONTINUE) + challenge)
        final = self._exchange.answer_final(body)
        if final is None:
            return self._refuse_password()
        self.accepted = self._startup
        return wire.message(wire.AUTHENTICATION, struct.pack(">i", _SASL_FINAL) + final)

    def _refuse_password(self) -> bytes:
        user = self._policy.user
        return self._refuse_login(
            pg_errors.INVALID_PASSWORD,
            f'password authentication failed for user "{user}"; the password of this pool is made at its start,'
            " and stands in the address that the app gets",
        )

    def _refuse_login(self, sqlstate: str, text: str) -> bytes:
        self.failure = text
        self.closing = True
        return wire.fatal_response(sqlstate, text)

    def _hang_up(self, reason: str) -> bytes:
        """Hang up without an error: what it spoke was not the protocol, so it would not understand one."""
        self.failure = reason
        self.closing = True
        return b""
