"""A connection of the app's: it logs in, and then its bytes are its link's (`proxy.postgres.link`).

=======  ==================================================  ====================================
phase    what its bytes are                                  goes on to
=======  ==================================================  ====================================
login    the start-up packet, TLS, SCRAM (`auth.login`)      greeting, closing
greeting early: kept until the welcome is known              linked, console, closing
linked   messages for the database: `link`                   closing
console  commands for the pool itself: `listener`            closing
closing  ignored
=======  ==================================================  ====================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from proxy.postgres.auth.login import Login, LoginPolicy
from proxy.postgres.auth.startup import StartupMessage
from proxy.postgres.server import ServerConnection, write_nothing
from proxy.postgres.session import Session


class ClientHost(Protocol):
    """Who has accepted the client: the service."""

    login_policy: LoginPolicy

    def is_full(self) -> bool: ...
    def start_tls(self, client: ClientConnection, transport: asyncio.Transport) -> None: ...
    def on_login(self, client: ClientConnection) -> None: ...
    def on_client_left(self, client: ClientConnection) -> None: ...
    def cancel(self, key: tuple[int, int]) -> None: ...


class ClientLink(Protocol):
    """What binds the client to the database: its session, and the server that it has borrowed, if any."""

    session: Session
    server: ServerConnection | None
    since: float

    @property
    def client_state(self) -> str: ...
    def on_client_data(self, data: bytes) -> None: ...
    def on_client_left(self) -> None: ...
    def cancel_work(self) -> None: ...
    def pause_server(self) -> None: ...
    def resume_server(self) -> None: ...


class ClientConnection(asyncio.Protocol):
    """`number` counts connections; `startup` is what it asked for when it logged in, `link` or `listener` what takes
    its bytes since; `since` is when it came (clock of the pool); `cancel_key` is the process number and secret that it
    was told; `port` its own, 0 for a Unix socket; `route` of the request that it works for, if that is known, and
    `end_request` is called when it no longer does."""

    def __init__(self, host: ClientHost, clock: Callable[[], float], number: int) -> None:
        self._host = host
        self.number = number
        self.login: Login | None = None
        self.startup: StartupMessage | None = None
        self.link: ClientLink | None = None
        self.listener: Callable[[bytes], None] | None = None
        self.since = clock()
        self.cancel_key = (0, 0)
        self.port = 0
        self.closing = False
        self.route = ""
        self.login_timer: asyncio.TimerHandle | None = None
        self.end_request: Callable[[], None] = no_request
        self._early_data = b""
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[bytes], None] = write_nothing  # the transport's own while there is one: one call less
        self.is_slow = False  # it does not read what it gets as fast as that comes
        self.paused_by_server = False  # it is not read, because its server had enough
        self._backlogged = False  # it is not read, because too much waits to be sent on

    def __repr__(self) -> str:
        return f"<ClientConnection {self.number} {self.state}>"

    @property
    def state(self) -> str:
        """One of login, console, idle, waiting, active, idle_in_transaction, pinned."""
        if self.link is None:
            return "login" if self.listener is None else "console"
        return self.link.client_state

    def end(self, error: bytes = b"") -> None:
        """Hang up, after a last message if there is one."""
        self.closing = True
        if self._transport is not None:
            if error:
                self._transport.write(error)
            self._transport.close()
        self._host.on_client_left(self)

    def pop_early_data(self) -> bytes:
        """What it sent before anybody took its bytes."""
        data, self._early_data = self._early_data, b""
        return data

    # ── what the transport says ──────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self.write = self._transport.write
        # Without a word: whoever floods the listener shall not cost a login each.
        if self._host.is_full():
            self._transport.abort()
            return
        peer = transport.get_extra_info("peername")
        self.port = peer[1] if isinstance(peer, tuple) and len(peer) > 1 else 0
        self.login = Login(self._host.login_policy)

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        link = self.link
        if link is not None:
            link.on_client_data(data)
        elif self.login is not None:
            self._log_in(self.login, data)
        elif self.listener is not None:
            self.listener(data)
        else:
            self._early_data += data

    def _log_in(self, login: Login, data: bytes) -> None:
        reply = login.feed(data)
        transport = self._transport
        assert transport is not None
        if login.wants_tls:
            transport.pause_reading()  # what comes now is TLS, and for the transport that is about to be put on top
            transport.write(reply)
            self._host.start_tls(self, transport)
            return
        if reply:
            transport.write(reply)
        if login.cancel_key is not None:
            self._host.cancel(login.cancel_key)
        if login.closing:
            self.end()
        elif login.accepted is not None:
            self.startup, self._early_data = login.accepted, login.remainder
            self.login = None
            self._host.on_login(self)

    def on_tls_started(self, transport: asyncio.Transport) -> None:
        self._transport, self.write = transport, transport.write
        if self.login is not None:
            self.login.on_tls_started()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._host.on_client_left(self)
        self._transport, self.write = None, write_nothing

    # ── one side slower than the other ───────────────────────────────────────────────────────

    def pause_writing(self) -> None:
        self.is_slow = True
        if self.link is not None:
            self.link.pause_server()

    def resume_writing(self) -> None:
        self.is_slow = False
        if self.link is not None:
            self.link.resume_server()

    def pause_reading(self) -> None:
        """Its server does not take more."""
        self.paused_by_server = True
        self._update_reading()

    def resume_reading(self) -> None:
        self.paused_by_server = False
        self._update_reading()

    def limit_backlog(self, *, full: bool) -> None:
        """Too much of what it has sent waits to be sent on, or no longer."""
        self._backlogged = full
        self._update_reading()

    def _update_reading(self) -> None:
        # That the client is slow is no reason not to read: it is what it gets that it is slow to take.
        if self._transport is not None:
            if self.paused_by_server or self._backlogged:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()


def no_request() -> None:
    """The `end_request` of a client that works for no request."""
