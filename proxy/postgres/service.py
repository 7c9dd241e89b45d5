"""The database door, put together: listener, logins, sessions and the pool, under one policy."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Coroutine, Mapping
from functools import partial

from proxy.errors import BindError
from proxy.observe.health import PartState
from proxy.observe.log import Log
from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import Requests
from proxy.policy.schema.stores import Postgres
from proxy.postgres import wire
from proxy.postgres.admin_console import Console
from proxy.postgres.auth.login import Gate
from proxy.postgres.auth.scram import Verifier
from proxy.postgres.auth.startup import ENCODING, NAME, Key, elsewhere
from proxy.postgres.client import Client
from proxy.postgres.connector import Connected, ConnectFailed, connect
from proxy.postgres.dsn import database, variables
from proxy.postgres.pool import Pool
from proxy.postgres.server import Server
from proxy.postgres.session import Session
from proxy.postgres.statement_registry import Statements

# [merged from postgres/accounting] What the database door shows of itself: health, gauges, counters, status.
CLIENT_STATES = ("login", "console", "idle", "waiting", "active", "idle_in_transaction", "pinned")
SERVER_STATES = ("connecting", "idle", "active", "idle_in_transaction", "pinned", "checking", "cancelling", "leaving")
LONG_WAIT = 1.0  # seconds that a client waits until the part is degraded


class Account:
    """Asked at each scrape and look; the pool counts for itself."""

    def __init__(self, pool: Pool, clients: Mapping[int, Client], metrics: Metrics) -> None:
        self._pool = pool
        self._clients = clients
        self._metrics = metrics
        self._seen: Counter[str] = Counter()
        for outcome in pool.outcomes:
            metrics.postgres_transactions_total.child(outcome)
        metrics.on_scrape(self.fill)
        self.fill()

    def fill(self) -> None:
        """Set the gauges, and catch up with what the pool counted."""
        metrics = self._metrics
        servers = Counter(server.state for server in self._pool.servers)
        servers["connecting"] = len(self._pool.supply.opening)
        for state in SERVER_STATES:
            metrics.postgres_server_connections.child(state).set(servers[state])
        clients = Counter(client.state for client in self._clients.values())
        for state in CLIENT_STATES:
            metrics.postgres_client_connections.child(state).set(clients[state])
        for outcome, count in self._pool.outcomes.items():
            metrics.postgres_transactions_total.child(outcome).inc(count - self._seen[outcome])
            self._seen[outcome] = count

    def health(self) -> PartState:
        """Down while the database cannot be reached; the whole is degraded by that, since no restart would mend it."""
        pool, opening = self._pool, self._pool.supply.opening
        if opening.failures and not pool.servers:
            return PartState("down", f"the database cannot be reached: {opening.reason}", opening.since)
        if opening.failures:
            return PartState("degraded", f"no new database connections: {opening.reason}", opening.since)
        if pool.longest_wait() > LONG_WAIT:
            return PartState("degraded", f"{len(pool.waiters)} clients wait for a connection")
        used = len(pool.servers) - len(pool.idle)
        return PartState("ok", f"{used} of {pool.policy.pool.max} connections in use, {len(self._clients)} clients")

    def status(self) -> Mapping[str, object]:
        pool = self._pool
        return {
            "servers": dict(Counter(server.state for server in pool.servers)),
            "clients": dict(Counter(client.state for client in self._clients.values())),
            "waiting": len(pool.waiters),
            "longest_wait_s": round(pool.longest_wait(), 3),
            "pinned": pool.slots.held,
            "transactions": dict(pool.outcomes),
            "state": repr(pool),
        }


LOGIN = 60.0  # seconds that a client has to log in (PostgreSQL's authentication_timeout)
GUESTS = 50  # clients beyond `clients` that may be about to log in


class Door:
    """One loopback address through which the app's database connections go. The policy's `url` is set."""

    def __init__(
        self,
        policy: Postgres,
        *,
        requests: Requests,
        metrics: Metrics,
        log: Log,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        assert policy.url is not None
        self._loop = asyncio.get_running_loop()
        self._emit = log.emit
        self._requests = requests
        self._environ = os.environ if environ is None else environ
        self.policy = policy
        self.database = database(policy.url, self._environ)
        self.password = secrets.token_hex(24)  # no sign in it means anything to a URL, a shell or an option
        self.gate = Gate(Verifier(self.password), self.database.user, self.database.name, tls=policy.tls == "on")
        self._context: ssl.SSLContext | None = None
        self.statements = Statements()
        self.clients: dict[int, Client] = {}
        self._count = 0
        self._told_of_tls = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.pool = Pool(
            policy, self._connect, emit=log.emit, waited=metrics.postgres_wait_seconds.observe, clock=self._loop.time
        )
        self._account = Account(self.pool, self.clients, metrics)

    @property
    def always(self) -> bool:
        return self.policy.reset == "always"

    async def start(self, sock: socket.socket) -> None:
        """Raises BindError."""
        if self.policy.tls == "on":
            from proxy.postgres.auth.tls import context

            self._context = context()
        try:
            self._server = await self._loop.create_server(self._accept, sock=sock, backlog=512)
        except OSError as error:
            raise BindError(f"postgres.listen cannot be listened on: {error}.") from error
        self.pool.upkeep.start()

    def apply(self, policy: Postgres) -> None:
        """Take a newer policy; its url, address and tls are settled since the start."""
        self.policy = self.pool.policy = policy
        self.pool.supply.fill()

    async def drain(self, patience: float) -> bool:
        """No new clients; those in a transaction finish it, others are told; False where time was too short."""
        self.pool.draining = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self.clients.values()):
            if client.server is None or client.server.state == "pinned":
                self.pool.forget(client)
                client.end(wire.fatal("57P01", "terminating connection: the pool is stopping"))
        deadline = self._loop.time() + patience
        while self.clients and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        return not self.clients

    async def stop(self, patience: float = 1.0) -> None:
        await self.drain(patience)
        for client in list(self.clients.values()):
            client.end(wire.fatal("57P01", "terminating connection: the pool has stopped"))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.close()

    def environment(self, host: str, port: int, policy: Postgres | None = None) -> dict[str, str]:
        """What the app gets under a policy, so that its connections come this way."""
        return variables(policy or self.policy, host, port, self.password, self.database, self._environ)

    def health(self) -> PartState:
        return self._account.health()

    def status(self) -> Mapping[str, object]:
        return {**self._account.status(), "statements": len(self.statements)}

    def belongs(self, port: int, token: str) -> bool:
        """The client whose own port is `port` now works for the request of `token`: where that one is abandoned,
        so is its query. False where there is no such client."""
        for client in self.clients.values():
            if client.port == port:
                client.done()
                owner = self._requests.find(token)
                client.route = owner.route if owner is not None else ""
                client.done = self._requests.works(token, partial(self._abandon, client))
                return True
        return False

    def _abandon(self, client: Client) -> None:
        server = client.server
        if client.state == "waiting":
            self._give_up_waiting(client)
        elif server is not None and server.session is not None and server.session.works:
            self.pool.cancel(server)

    # ── clients ──────────────────────────────────────────────────────────────────────────────

    def _accept(self) -> Client:
        self._count += 1
        client = Client(self, self._loop.time, self._count)
        self.clients[client.number] = client
        client.patience = self._loop.call_later(LOGIN, client.end)
        return client

    def full(self) -> bool:
        """Whether one more may not even try."""
        return len(self.clients) > self.policy.clients + GUESTS

    def encrypt(self, client: Client, transport: asyncio.Transport) -> None:
        self._spawn(self._start_tls(client, transport))

    async def _start_tls(self, client: Client, transport: asyncio.Transport) -> None:
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

    def entered(self, client: Client) -> None:
        """It has shown the password."""
        assert client.startup is not None
        if client.patience is not None:
            client.patience.cancel()
        if database := elsewhere(client.startup.key):
            self.pool.guests[database] += 1
        if client.startup.database == self.gate.console and self.gate.console != self.gate.database:
            console = Console(self, client.write, client.end)
            client.listener = console.hear
            client.write(self._welcome(client, {b"server_version": b"16.0", ENCODING: b"UTF8"}, 0))
            console.hear(client.heard_early())
        elif sum(other.session is not None for other in self.clients.values()) >= self.policy.clients:
            client.end(
                wire.fatal("53300", f"sorry, too many clients already: postgres.clients is {self.policy.clients}")
            )
        elif (greeting := self.pool.supply.greetings.get(client.startup.key)) is not None:
            self._begin(client, greeting)
        else:
            self._spawn(self._greet(client))

    async def _greet(self, client: Client) -> None:
        """The first of its kind: what the database says to it, it shall hear."""
        assert client.startup is not None
        try:
            greeting = await self.pool.supply.greeting(client.startup.key, client.startup.name)
        except ConnectFailed as error:
            client.end(wire.fatal(error.code, str(error)))
        except TimeoutError:
            client.end(self.pool.exhausted("FATAL"))
        else:
            if not client.closing:
                self._begin(client, greeting)

    def _begin(self, client: Client, greeting: Mapping[bytes, bytes]) -> None:
        startup = client.startup
        assert startup is not None
        shown = dict(greeting)
        shown[NAME] = startup.name.encode("utf-8", "surrogateescape")
        shown[ENCODING] = startup.encoding.encode() if startup.encoding else greeting.get(b"server_encoding", b"UTF8")
        session = Session(
            client.number,
            startup,
            shown,
            self.statements,
            ask=partial(self.pool.slots.ask, client),
            give_up=self.pool.slots.give_up,
            keep=self.policy.mode == "session",
        )
        welcome = partial(self._welcome, client, shown)
        if self.policy.mode == "session" and self.pool.room():
            client.begin_with_server(session, welcome)
        else:
            client.begin(session, welcome(session.process))

    def _welcome(self, client: Client, shown: Mapping[bytes, bytes], number: int) -> bytes:
        """`number` is that of the process which it is told serves it."""
        client.key = (number, secrets.randbits(32))
        told = b"".join(wire.parameter(name, value) for name, value in shown.items())
        key = wire.message(wire.KEY_DATA, struct.pack(">II", *client.key))
        return wire.message(wire.AUTHENTICATION, b"\0\0\0\0") + told + key + wire.ready()

    def left(self, client: Client) -> None:
        """Its connection has ended, or is about to."""
        if self.clients.pop(client.number, None) is None:
            return
        client.done()
        if client.patience is not None:
            client.patience.cancel()
        login, server = client.login, client.server
        if client.startup is not None and (database := elsewhere(client.startup.key)):
            self.pool.guest_left(database)
        if login is not None and login.declined and not login.wrong and not login.cancel and not self._told_of_tls:
            self._told_of_tls = True
            self._emit(
                "postgres.tls",
                "A client left when it was told that there is no TLS on postgres.listen; set sslmode=disable in its"
                " code (it is so in the address that the app gets), or postgres.tls: on.",
                level="warning",
            )
        elif login is not None and login.wrong:
            self._emit("postgres.login", f"A client was refused: {login.wrong}.", level="warning")
        self.pool.forget(client)
        client.server = None
        if server is None and client.session is not None:
            client.session.unpin()  # it had a slot, and waited for a server
        if server is not None and server.client is client:
            self.pool.left(server, politely=client.said_goodbye)

    def take(self, client: Client) -> Server | None:
        return self.pool.take(client)

    def cancel(self, key: tuple[int, int]) -> None:
        """By the key that the client was given; what does nothing now is left alone."""
        client = next((each for each in self.clients.values() if each.key == key), None)
        if client is not None and key[1]:
            self._abandon(client)

    def _give_up_waiting(self, client: Client) -> None:
        self.pool.forget(client)
        client.cancelled(wire.error("57014", "canceling statement due to user request", routine="ProcessInterrupts"))

    async def _connect(self, key: Key, name: str) -> Connected:
        return await connect(self.database.dsn, key, name, self.policy.pool.connect)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
