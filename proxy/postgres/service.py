"""The database door, put together: listener, logins, sessions and the pool, under one policy."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Mapping
from functools import partial

from proxy.errors import BindError
from proxy.observe.health import ComponentHealth
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.schema.stores import Postgres
from proxy.postgres import wire
from proxy.postgres.admin_console import AdminConsole
from proxy.postgres.auth.login import LoginPolicy
from proxy.postgres.auth.scram import ScramVerifier
from proxy.postgres.auth.startup import APPLICATION_NAME, CLIENT_ENCODING, PoolKey, other_database
from proxy.postgres.client import ClientConnection
from proxy.postgres.connector import AsyncpgConnection, ConnectFailed, connect
from proxy.postgres.dsn import app_variables, parse_url
from proxy.postgres.pool import Pool
from proxy.postgres.server import ServerConnection
from proxy.postgres.session import Session
from proxy.postgres.statement_registry import StatementRegistry
from proxy.util.background_tasks import BackgroundTasks

CLIENT_STATES = ("login", "console", "idle", "waiting", "active", "idle_in_transaction", "pinned")
SERVER_STATES = ("connecting", "idle", "active", "idle_in_transaction", "pinned", "checking", "cancelling", "leaving")
LONG_WAIT_SECONDS = 1.0  # seconds that a client waits until the part is degraded


class PoolReport:
    """Asked at each scrape and look; the pool counts for itself."""

    def __init__(self, pool: Pool, clients: Mapping[int, ClientConnection], metrics: Metrics) -> None:
        self._pool = pool
        self._clients = clients
        self._metrics = metrics
        self._seen: Counter[str] = Counter()
        for outcome in pool.outcomes:
            metrics.postgres_transactions_total.labels(outcome)
        metrics.on_scrape(self.fill)
        self.fill()

    def fill(self) -> None:
        """Set the gauges, and catch up with what the pool counted."""
        metrics = self._metrics
        servers = Counter(server.state for server in self._pool.servers)
        servers["connecting"] = len(self._pool.launcher.attempts)
        for state in SERVER_STATES:
            metrics.postgres_server_connections.labels(state).set(servers[state])
        clients = Counter(client.state for client in self._clients.values())
        for state in CLIENT_STATES:
            metrics.postgres_client_connections.labels(state).set(clients[state])
        for outcome, count in self._pool.outcomes.items():
            metrics.postgres_transactions_total.labels(outcome).inc(count - self._seen[outcome])
            self._seen[outcome] = count

    def health(self) -> ComponentHealth:
        """Down while the database cannot be reached; the whole is degraded by that, since no restart would mend it."""
        pool, opening = self._pool, self._pool.launcher.attempts
        if opening.failures and not pool.servers:
            return ComponentHealth("down", f"the database cannot be reached: {opening.reason}", opening.since)
        if opening.failures:
            return ComponentHealth("degraded", f"no new database connections: {opening.reason}", opening.since)
        if pool.longest_wait() > LONG_WAIT_SECONDS:
            return ComponentHealth("degraded", f"{len(pool.waiters)} clients wait for a connection")
        used = len(pool.servers) - len(pool.idle)
        return ComponentHealth(
            "ok", f"{used} of {pool.policy.pool.max} connections in use, {len(self._clients)} clients"
        )

    def status(self) -> Mapping[str, object]:
        pool = self._pool
        return {
            "servers": dict(Counter(server.state for server in pool.servers)),
            "clients": dict(Counter(client.state for client in self._clients.values())),
            "waiting": len(pool.waiters),
            "longest_wait_s": round(pool.longest_wait(), 3),
            "pinned": pool.pins.held,
            "transactions": dict(pool.outcomes),
            "state": repr(pool),
        }


LOGIN_SECONDS = 60.0  # seconds that a client has to log in (PostgreSQL's authentication_timeout)
MAX_LOGINS = 50  # clients beyond `clients` that may be about to log in


class PostgresService:
    """One loopback address through which the app's database connections go. The policy's `url` is set."""

    def __init__(
        self,
        policy: Postgres,
        *,
        requests: RequestRegistry,
        metrics: Metrics,
        log: EventLog,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        assert policy.url is not None
        self._loop = asyncio.get_running_loop()
        self._emit = log.emit
        self._requests = requests
        self._environ = os.environ if environ is None else environ
        self.policy = policy
        self.database = parse_url(policy.url, self._environ)
        self.password = secrets.token_hex(24)  # no sign in it means anything to a URL, a shell or an option
        self.login_policy = LoginPolicy(
            ScramVerifier(self.password), self.database.user, self.database.name, tls=policy.tls == "on"
        )
        self._context: ssl.SSLContext | None = None
        self.statements = StatementRegistry()
        self.clients: dict[int, ClientConnection] = {}
        self._client_count = 0
        self._warned_about_tls = False
        self._tasks = BackgroundTasks(self._loop)
        self._server: asyncio.Server | None = None
        self.pool = Pool(
            policy, self._connect, emit=log.emit, waited=metrics.postgres_wait_seconds.observe, clock=self._loop.time
        )
        self._report = PoolReport(self.pool, self.clients, metrics)

    @property
    def always(self) -> bool:
        return self.policy.reset == "always"

    async def start(self, sock: socket.socket) -> None:
        """Raises BindError."""
        if self.policy.tls == "on":
            from proxy.postgres.auth.tls import self_signed_context

            self._context = self_signed_context()
        try:
            self._server = await self._loop.create_server(self._accept, sock=sock, backlog=512)
        except OSError as error:
            raise BindError(f"postgres.listen cannot be listened on: {error}.") from error
        self.pool.janitor.start()

    def apply(self, policy: Postgres) -> None:
        """Take a newer policy; its url, address and tls are settled since the start."""
        self.policy = self.pool.policy = policy
        self.pool.launcher.fill()

    async def drain(self, patience: float) -> bool:
        """No new clients; those in a transaction finish it, others are told; False where time was too short."""
        self.pool.draining = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self.clients.values()):
            if client.server is None or client.server.state == "pinned":
                self.pool.forget_waiter(client)
                client.end(wire.fatal_response("57P01", "terminating connection: the pool is stopping"))
        deadline = self._loop.time() + patience
        while self.clients and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        return not self.clients

    async def stop(self, patience: float = 1.0) -> None:
        await self.drain(patience)
        for client in list(self.clients.values()):
            client.end(wire.fatal_response("57P01", "terminating connection: the pool has stopped"))
        await self._tasks.close()
        await self.pool.close()

    def app_variables(self, host: str, port: int, policy: Postgres | None = None) -> dict[str, str]:
        """What the app gets under a policy, so that its connections come this way."""
        return app_variables(policy or self.policy, host, port, self.password, self.database, self._environ)

    def health(self) -> ComponentHealth:
        return self._report.health()

    def status(self) -> Mapping[str, object]:
        return {**self._report.status(), "statements": len(self.statements)}

    def assign_request(self, port: int, token: str) -> bool:
        """The client whose own port is `port` now works for the request of `token`: where that one is abandoned,
        so is its query. False where there is no such client."""
        for client in self.clients.values():
            if client.port == port:
                client.end_request()
                owner = self._requests.find(token)
                client.route = owner.route if owner is not None else ""
                client.end_request = self._requests.register_work(token, partial(self._cancel_work, client))
                return True
        return False

    def _cancel_work(self, client: ClientConnection) -> None:
        server = client.server
        if client.state == "waiting":
            self._cancel_waiting(client)
        elif server is not None and server.session is not None and server.session.has_client_work:
            self.pool.cancel(server)

    # ── clients ──────────────────────────────────────────────────────────────────────────────

    def _accept(self) -> ClientConnection:
        self._client_count += 1
        client = ClientConnection(self, self._loop.time, self._client_count)
        self.clients[client.number] = client
        client.login_timer = self._loop.call_later(LOGIN_SECONDS, client.end)
        return client

    def is_full(self) -> bool:
        """Whether one more may not even try."""
        return len(self.clients) > self.policy.clients + MAX_LOGINS

    def start_tls(self, client: ClientConnection, transport: asyncio.Transport) -> None:
        self._tasks.start(self._run_tls_handshake(client, transport))

    async def _run_tls_handshake(self, client: ClientConnection, transport: asyncio.Transport) -> None:
        assert self._context is not None
        try:
            secure = await self._loop.start_tls(transport, client, self._context, server_side=True)
        except (OSError, ConnectionError) as error:
            self._emit(
                "postgres.tls", f"A client could not agree on TLS: {str(error) or 'it hung up'}.", level="warning"
            )
            client.end()
            return
        if secure is not None:
            client.encrypted(secure)

    def on_login(self, client: ClientConnection) -> None:
        """It has shown the password."""
        assert client.startup is not None
        if client.login_timer is not None:
            client.login_timer.cancel()
        if database := other_database(client.startup.key):
            self.pool.other_databases[database] += 1
        if (
            client.startup.database == self.login_policy.console
            and self.login_policy.console != self.login_policy.database
        ):
            console = AdminConsole(self, client.write, client.end)
            client.listener = console.data_received
            client.write(self._welcome_messages(client, {b"server_version": b"16.0", CLIENT_ENCODING: b"UTF8"}, 0))
            console.data_received(client.pop_early_data())
        elif sum(other.session is not None for other in self.clients.values()) >= self.policy.clients:
            client.end(
                wire.fatal_response(
                    "53300", f"sorry, too many clients already: postgres.clients is {self.policy.clients}"
                )
            )
        elif (greeting := self.pool.launcher.greetings.get(client.startup.key)) is not None:
            self._begin(client, greeting)
        else:
            self._tasks.start(self._begin_after_greeting(client))

    async def _begin_after_greeting(self, client: ClientConnection) -> None:
        """The first of its kind: what the database says to it, it shall hear."""
        assert client.startup is not None
        try:
            greeting = await self.pool.launcher.greeting(client.startup.key, client.startup.application_name)
        except ConnectFailed as error:
            client.end(wire.fatal_response(error.sqlstate, str(error)))
        except TimeoutError:
            client.end(self.pool.exhausted_error("FATAL"))
        else:
            if not client.closing:
                self._begin(client, greeting)

    def _begin(self, client: ClientConnection, greeting: Mapping[bytes, bytes]) -> None:
        startup = client.startup
        assert startup is not None
        shown = dict(greeting)
        shown[APPLICATION_NAME] = startup.application_name.encode("utf-8", "surrogateescape")
        shown[CLIENT_ENCODING] = (
            startup.encoding.encode() if startup.encoding else greeting.get(b"server_encoding", b"UTF8")
        )
        session = Session(
            client.number,
            startup,
            shown,
            self.statements,
            ask=partial(self.pool.pins.ask, client),
            give_up=self.pool.pins.give_up,
            keep=self.policy.mode == "session",
        )
        welcome = partial(self._welcome_messages, client, shown)
        if self.policy.mode == "session" and self.pool.has_room():
            client.begin_with_server(session, welcome)
        else:
            client.begin(session, welcome(session.announced_pid))

    def _welcome_messages(self, client: ClientConnection, shown: Mapping[bytes, bytes], number: int) -> bytes:
        """`number` is that of the process which it is told serves it."""
        client.cancel_key = (number, secrets.randbits(32))
        told = b"".join(wire.parameter_status(name, value) for name, value in shown.items())
        key = wire.message(wire.BACKEND_KEY_DATA, struct.pack(">II", *client.cancel_key))
        return wire.message(wire.AUTHENTICATION, b"\0\0\0\0") + told + key + wire.ready_for_query()

    def on_client_left(self, client: ClientConnection) -> None:
        """Its connection has ended, or is about to."""
        if self.clients.pop(client.number, None) is None:
            return
        client.end_request()
        if client.login_timer is not None:
            client.login_timer.cancel()
        login, server = client.login, client.server
        if client.startup is not None and (database := other_database(client.startup.key)):
            self.pool.guest_left(database)
        if (
            login is not None
            and login.tls_declined
            and not login.failure
            and not login.cancel_key
            and not self._warned_about_tls
        ):
            self._warned_about_tls = True
            self._emit(
                "postgres.tls",
                "A client left when it was told that there is no TLS on postgres.listen; set sslmode=disable in its"
                " code (it is so in the address that the app gets), or postgres.tls: on.",
                level="warning",
            )
        elif login is not None and login.failure:
            self._emit("postgres.login", f"A client was refused: {login.failure}.", level="warning")
        self.pool.forget_waiter(client)
        client.server = None
        if server is None and client.session is not None:
            client.session.release_pins()  # it had a slot, and waited for a server
        if server is not None and server.client is client:
            self.pool.left(server, politely=client.said_goodbye)

    def acquire_server(self, client: ClientConnection) -> ServerConnection | None:
        return self.pool.acquire(client)

    def cancel(self, key: tuple[int, int]) -> None:
        """By the key that the client was given; what does nothing now is left alone."""
        client = next((each for each in self.clients.values() if each.cancel_key == key), None)
        if client is not None and key[1]:
            self._cancel_work(client)

    def _cancel_waiting(self, client: ClientConnection) -> None:
        self.pool.forget_waiter(client)
        client.cancelled(
            wire.error_response("57014", "canceling statement due to user request", routine="ProcessInterrupts")
        )

    async def _connect(self, key: PoolKey, name: str) -> AsyncpgConnection:
        return await connect(self.database.dsn, key, name, self.policy.pool.connect)
