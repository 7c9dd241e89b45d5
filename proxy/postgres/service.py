"""The database pool as a part of the gateway: its listener, logins, links and report, under one policy."""

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
from proxy.observe.metric_family import time_awaitable
from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.schema import Postgres
from proxy.postgres import pg_errors, wire
from proxy.postgres.admin_console import AdminConsole
from proxy.postgres.auth.login import LoginPolicy
from proxy.postgres.auth.scram import ScramVerifier
from proxy.postgres.auth.startup import APPLICATION_NAME, CLIENT_ENCODING, PoolKey, Settings, other_database
from proxy.postgres.client import ClientConnection
from proxy.postgres.connector import AsyncpgConnection, ConnectFailed, connect
from proxy.postgres.dsn import app_variables, parse_url
from proxy.postgres.link import Link
from proxy.postgres.pool import Pool
from proxy.postgres.statement_registry import StatementRegistry
from proxy.store.interface import SharedStore
from proxy.store.leases import Lease
from proxy.util.background_tasks import BackgroundTasks

LOGIN_SECONDS = 60.0  # that a client has to log in (PostgreSQL's authentication_timeout)
MAX_LOGINS = 50  # clients beyond `clients` that may be about to log in
LONG_WAIT_SECONDS = 1.0  # that a client waits until the part is degraded
LISTEN_BACKLOG = 512

CLIENT_STATES = ("login", "console", "idle", "waiting", "active", "idle_in_transaction", "pinned")
SERVER_STATES = ("connecting", "idle", "active", "idle_in_transaction", "pinned", "checking", "cancelling", "leaving")


class PoolReport:
    """What the pool shows of itself: health, status, gauges. It is asked at each scrape; the pool counts for itself."""

    def __init__(self, pool: Pool, clients: Mapping[int, ClientConnection], metrics: Metrics) -> None:
        self._pool = pool
        self._clients = clients
        self._metrics = metrics
        self._reported: Counter[str] = Counter()  # of the pool's outcomes, what the counter has already
        for outcome in pool.outcomes:
            metrics.postgres_transactions_total.labels(outcome)
        metrics.on_scrape(self.update_metrics)
        self.update_metrics()

    def update_metrics(self) -> None:
        metrics = self._metrics
        servers = Counter(server.state for server in self._pool.servers)
        servers["connecting"] = len(self._pool.launcher.attempts)
        for state in SERVER_STATES:
            metrics.postgres_server_connections.labels(state).set(servers[state])
        clients = Counter(client.state for client in self._clients.values())
        for state in CLIENT_STATES:
            metrics.postgres_client_connections.labels(state).set(clients[state])
        for outcome, count in self._pool.outcomes.items():
            metrics.postgres_transactions_total.labels(outcome).inc(count - self._reported[outcome])
            self._reported[outcome] = count

    def health(self) -> ComponentHealth:
        """Down while the database cannot be reached; the whole is degraded by that, since no restart would mend it."""
        pool, attempts = self._pool, self._pool.launcher.attempts
        if attempts.failures and not pool.servers:
            return ComponentHealth("down", f"the database cannot be reached: {attempts.reason}", attempts.since)
        if attempts.failures:
            return ComponentHealth("degraded", f"no new database connections: {attempts.reason}", attempts.since)
        if pool.longest_wait() > LONG_WAIT_SECONDS:
            return ComponentHealth("degraded", f"{len(pool.waiters)} clients wait for a connection")
        used = len(pool.servers) - len(pool.idle)
        return ComponentHealth("ok", f"{used} of {pool.limit} connections in use, {len(self._clients)} clients")

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


class PostgresService:
    """One loopback address through which the app's database connections go. The policy's `url` is set.

    `database` is what the URL leads to, `password` what the app logs in with; `clients` are all connections of the
    app's, by number; `statements` every prepared statement of theirs.
    """

    def __init__(
        self,
        policy: Postgres,
        *,
        requests: RequestRegistry,
        metrics: Metrics,
        log: EventLog,
        environ: Mapping[str, str] | None = None,
        store: SharedStore | None = None,
    ) -> None:
        """`store`: what several instances share, for `pool.total`."""
        assert policy.url is not None
        self._store = store if store is not None and store.is_shared else None
        self._loop = asyncio.get_running_loop()
        self._emit = log.emit
        self._requests = requests
        self._connect_duration = metrics.postgres_connect_seconds
        self._environ = os.environ if environ is None else environ
        self.policy = policy
        self.database = parse_url(policy.url, self._environ)
        self.password = secrets.token_hex(24)  # no sign in it means anything to a URL, a shell or an option
        self.login_policy = LoginPolicy(
            ScramVerifier(self.password), self.database.user, self.database.name, tls=policy.tls == "on"
        )
        self._tls_context: ssl.SSLContext | None = None
        self.statements = StatementRegistry()
        self.clients: dict[int, ClientConnection] = {}
        self._client_count = 0
        self._warned_about_tls = False
        self._tasks = BackgroundTasks(self._loop)
        self._server: asyncio.Server | None = None
        self.pool = Pool(
            policy,
            self._connect,
            emit=log.emit,
            observe_wait=metrics.postgres_wait_seconds.observe,
            clock=self._loop.time,
        )
        self._report = PoolReport(self.pool, self.clients, metrics)
        self._apply_total(policy)

    async def start(self, sock: socket.socket) -> None:
        """Raises BindError."""
        if self.policy.tls == "on":
            from proxy.postgres.auth.tls import self_signed_context

            self._tls_context = self_signed_context()
        try:
            self._server = await self._loop.create_server(self._accept_client, sock=sock, backlog=LISTEN_BACKLOG)
        except OSError as error:
            raise BindError(f"postgres.listen cannot be listened on: {error}.") from error
        if self.pool.lease is not None:
            self.pool.lease.start()
        self.pool.start_janitor()

    def apply(self, policy: Postgres) -> None:
        """Take a newer policy; its url, address and tls are settled since the start."""
        self.policy = policy
        self._apply_total(policy)
        self.pool.apply(policy)

    def _apply_total(self, policy: Postgres) -> None:
        """Take `pool.total`: with a store, a lease of it; alone, it is one more maximum."""
        total, lease = policy.pool.total, self.pool.lease
        if total is None or self._store is None:
            self.pool.lease = None
            if lease is not None:
                self._tasks.start(lease.close())
        elif lease is not None:
            lease.total = total
        else:
            self.pool.lease = Lease(
                self._store,
                "postgres.pool",
                total,
                clock=self._loop.time,
                measure=self.pool.measure,
                on_change=self.pool.on_limit_changed,
            )
            if self._server is not None:
                self.pool.lease.start()

    async def drain(self, patience: float) -> bool:
        """No new clients; those in a transaction have `patience` seconds to finish it, others are told at once. False
        if time was too short."""
        self.pool.draining = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self.clients.values()):
            server = client.link.server if client.link is not None else None
            if server is None or server.state == "pinned":
                client.end(pg_errors.POOL_DRAINING)
        # Those in a transaction end when their link gives the server back (`Link._give_back`).
        deadline = self._loop.time() + patience
        while self.clients and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        return not self.clients

    async def stop(self, patience: float = 1.0) -> None:
        await self.drain(patience)
        for client in list(self.clients.values()):
            client.end(pg_errors.POOL_STOPPED)
        await self._tasks.close()
        await self.pool.close()
        if self.pool.lease is not None:
            await self.pool.lease.close()  # after the connections, so that others take only what is free

    def app_variables(self, host: str, port: int, policy: Postgres | None = None) -> dict[str, str]:
        """What the app gets under a policy, so that its connections come this way."""
        return app_variables(policy or self.policy, host, port, self.password, self.database, self._environ)

    def health(self) -> ComponentHealth:
        return self._report.health()

    def status(self) -> Mapping[str, object]:
        return {**self._report.status(), "statements": len(self.statements)}

    def assign_request(self, port: int, token: str) -> bool:
        """The client whose own port is `port` now works for the request of `token`: if that one is abandoned, so is
        its query. False if there is no such client."""
        # The app's side of a connection is known to both ends by its port: the app's own process has reported it.
        for client in self.clients.values():
            if client.port == port:
                client.end_request()
                owner = self._requests.find(token)
                client.route = owner.route if owner is not None else ""
                client.end_request = self._requests.register_work(token, partial(self._cancel_work, client))
                return True
        return False

    def _cancel_work(self, client: ClientConnection) -> None:
        if client.link is not None:
            client.link.cancel_work()

    # ── clients that come ────────────────────────────────────────────────────────────────────

    def _accept_client(self) -> ClientConnection:
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
        assert self._tls_context is not None
        try:
            secure = await self._loop.start_tls(transport, client, self._tls_context, server_side=True)
        except (OSError, ConnectionError) as error:
            self._emit(
                "postgres.tls", f"A client could not agree on TLS: {str(error) or 'it hung up'}.", level="warning"
            )
            client.end()
            return
        if secure is not None:
            client.on_tls_started(secure)

    def on_login(self, client: ClientConnection) -> None:
        """It has shown the password."""
        assert client.startup is not None
        if client.login_timer is not None:
            client.login_timer.cancel()
        if database := other_database(client.startup.pool_key):
            self.pool.clients_by_database[database] += 1
        console = self.login_policy.console
        # An app whose own database has the console's name gets its database.
        if client.startup.database == console and console != self.login_policy.database:
            self._open_console(client)
        elif sum(other.link is not None for other in self.clients.values()) >= self.policy.clients:
            client.end(pg_errors.too_many_clients(self.policy.clients))
        elif (greeting := self.pool.launcher.greetings.get(client.startup.pool_key)) is not None:
            self._begin_session(client, greeting)
        else:
            self._tasks.start(self._begin_after_greeting(client))

    def _open_console(self, client: ClientConnection) -> None:
        console = AdminConsole(self, client.write, client.end)
        client.listener = console.data_received
        client.write(self._welcome_messages(client, {b"server_version": b"16.0", CLIENT_ENCODING: b"UTF8"}, 0))
        console.data_received(client.pop_early_data())

    async def _begin_after_greeting(self, client: ClientConnection) -> None:
        """The first client of its kind: what the database says to its settings, it shall hear."""
        assert client.startup is not None
        try:
            greeting = await self.pool.fetch_greeting(client.startup.pool_key, client.startup.application_name)
        except ConnectFailed as error:
            client.end(wire.fatal_response(error.sqlstate, str(error)))
        except TimeoutError:
            client.end(self.pool.exhausted_error("FATAL"))
        else:
            if not client.closing:
                self._begin_session(client, greeting)

    def _begin_session(self, client: ClientConnection, greeting: Settings) -> None:
        startup = client.startup
        assert startup is not None
        # As on a connection of its own: what the database reports, but for the two that every client has.
        shown = dict(greeting)
        shown[APPLICATION_NAME] = startup.application_name.encode("utf-8", "surrogateescape")
        shown[CLIENT_ENCODING] = (
            startup.encoding.encode() if startup.encoding else greeting.get(b"server_encoding", b"UTF8")
        )
        keeps_server = self.policy.mode == "session"
        link = Link(client, startup, shown, self.statements, self.pool, keeps_server=keeps_server)
        welcome = partial(self._welcome_messages, client, shown)
        link.begin(welcome, with_server=keeps_server and self.pool.has_room())

    def _welcome_messages(self, client: ClientConnection, shown: Settings, pid: int) -> bytes:
        """`pid` is that of the process which the client is told serves it."""
        client.cancel_key = (pid, secrets.randbits(32))
        parameters = b"".join(wire.parameter_status(name, value) for name, value in shown.items())
        key = wire.message(wire.BACKEND_KEY_DATA, struct.pack(">II", *client.cancel_key))
        return wire.message(wire.AUTHENTICATION, b"\0\0\0\0") + parameters + key + wire.ready_for_query()

    def cancel(self, key: tuple[int, int]) -> None:
        """By the key that the client was given; what does nothing now is left alone."""
        client = next((each for each in self.clients.values() if each.cancel_key == key), None)
        if client is not None and key[1]:  # (0, 0) is the key of a client that has none yet
            self._cancel_work(client)

    # ── clients that go ──────────────────────────────────────────────────────────────────────

    def on_client_left(self, client: ClientConnection) -> None:
        """Its connection has ended, or is about to."""
        if self.clients.pop(client.number, None) is None:
            return
        client.end_request()
        if client.login_timer is not None:
            client.login_timer.cancel()
        # First this, so that a server of that database is not kept when its client's link gives it back.
        if client.startup is not None and (database := other_database(client.startup.pool_key)):
            self.pool.on_client_left(database)
        self._explain_failed_login(client)
        if client.link is not None:
            client.link.on_client_left()

    def _explain_failed_login(self, client: ClientConnection) -> None:
        login = client.login
        if login is None:
            return
        if login.failure:
            self._emit("postgres.login", f"A client was refused: {login.failure}.", level="warning")
        elif login.tls_declined and not login.cancel_key and not self._warned_about_tls:
            self._warned_about_tls = True
            self._emit(
                "postgres.tls",
                "A client left when it was told that there is no TLS on postgres.listen; set sslmode=disable in its"
                " code (it is so in the address that the app gets), or postgres.tls: on.",
                level="warning",
            )

    async def _connect(self, key: PoolKey, name: str) -> AsyncpgConnection:
        opening = connect(self.database.dsn, key, name, self.policy.pool.connect)
        return await time_awaitable(self._connect_duration, opening)
