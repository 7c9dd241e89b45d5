"""The store of an instance among several: one connection, kept, and what happens when it is lost.

State         Operations                          Leaves it when
connecting    wait for it, each within its time   it is there: `up`; a time-out or an error: `away`
up            are sent                            a time-out: `away`; the connection ends: `connecting`
away          fail at once (StoreAway)            a try in the background, once a second, succeeded: `up`

No request waits for the store longer than `store.timeout` in all (`WaitBudget`). The first operation that times out
ends the wait of all that are under way, since a connection answers in order: losing the store costs one time-out for
all requests together. From then on no request tries it, the background does. Before the store counts as up again, it
has to answer within `store.timeout`, and what was decided meanwhile is written to it (`on_return`).

A machine that is short of CPU can be too late to read an answer that has come; a time-out that fires late is therefore
given another moment, in which the answer is read.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

from proxy.observe.emit import EmitEvent
from proxy.observe.health import ComponentHealth
from proxy.observe.metrics import Metrics
from proxy.policy import schema
from proxy.store import presence
from proxy.store.interface import (
    MAX_MESSAGE_BYTES,
    MAX_VALUE_BYTES,
    FallbackOf,
    Member,
    MessageHandler,
    ReturnHandler,
    Script,
    StoreAway,
    StoreBackend,
    StoreConnection,
    WaitBudget,
)

Reply = TypeVar("Reply")

RETRY_SECONDS = 1.0  # between tries while it is away
CONNECT_SECONDS = 5.0  # of one try in the background; the first makes the schema in PostgreSQL
RETURN_SECONDS = 10.0  # for everything that is written and read when the store is back
BEAT_SECONDS = 0.4  # so that a message is everywhere within one second
HEARTBEAT_SECONDS = 2.0
SWEEP_SECONDS = 30.0  # between deletions of what has expired
MAX_OUTBOX = 1000  # messages that wait to be sent
MAX_BATCH = 50  # messages sent at once
LATE_SECONDS = 0.02  # a time-out that fires later than that is given LATE_GRACE more
LATE_GRACE = 0.05
START_SECONDS = 2.0  # that a start waits; requests wait for `store.timeout`
STOP_SECONDS = 1.0
JUDGING_SHARE = 0.9  # of `store.timeout`, after which a wait says something about the store
SPENT = "the time that may be waited for it is used up (store.timeout)"

# Whether this is a handler of `on_return`, or a task that one of them has started.
_RETURNING: ContextVar[bool] = ContextVar("returning", default=False)


class Store:
    """The store that `backend` connects to. For the loop's thread alone.

    `timeout` in seconds takes the place of `store.timeout`, for a store that no request waits for.
    """

    is_shared = True

    def __init__(
        self,
        policy: schema.Store,
        backend: StoreBackend,
        member: Member,
        *,
        emit: EmitEvent,
        metrics: Metrics,
        clock: Callable[[], float],
        now: Callable[[], float] = time.time,
        timeout: float | None = None,
    ) -> None:
        self.policy = policy
        self.kind = backend.kind
        self.where = backend.where
        self.instance_id = member.id
        self.members: tuple[Member, ...] = (member,)
        self._backend = backend
        self._member = member
        self._emit = emit
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._own_timeout = timeout
        self._state: Literal["connecting", "up", "away"] = "connecting"
        self._reason = "it is being connected to"
        self._since = clock()
        self._connection: StoreConnection | None = None
        self._returning: StoreConnection | None = None  # connected, and not up yet
        self._connected: asyncio.Future[None] | None = None  # of operations that wait while it connects
        self._ended = asyncio.Event()  # the connection has
        self._clock_ahead: float | None = None  # the store's clock less the loop's, in seconds; None if never seen
        self._instances = 1
        self._last_message = ""
        self._outbox: deque[tuple[str, str, float]] = deque(
            maxlen=MAX_OUTBOX
        )  # topic, body, until when it is worth sending
        self._handlers: dict[str, list[MessageHandler]] = {}
        self._return_handlers: list[ReturnHandler] = []
        self._histograms: dict[str, Any] = {}
        self._life: asyncio.Task[None] | None = None
        metrics.store_up.set(0)

    def __repr__(self) -> str:
        return f"<Store {self.where} {self._state}: {self._reason}, {len(self.members)} instances>"

    # ── its life ─────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Connect, within START_SECONDS; a store that is away is looked for from now on."""
        self._life = asyncio.get_running_loop().create_task(self._run())
        try:
            await self._wait_connected(WaitBudget(START_SECONDS))
        except StoreAway:
            pass  # said in the log and in health already

    async def stop(self) -> None:
        """Say goodbye, so that the others need not wait for our heartbeat to fail to come."""
        if self._connection is not None:
            self._send_outbox()
            try:
                await self.execute(presence.LEAVE, (presence.MEMBERS,), (self.instance_id,), WaitBudget(STOP_SECONDS))
            except StoreAway:
                pass
        life, self._life = self._life, None
        if life is not None:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
        if self._connection is not None:
            self._connection.abort("the gateway ends")

    def apply(self, policy: schema.Store) -> None:
        """Take a newer policy; its address and prefix stay."""
        self.policy = policy

    @property
    def timeout(self) -> float:
        return self.policy.timeout if self._own_timeout is None else self._own_timeout

    @property
    def is_up(self) -> bool:
        return self._state == "up"

    @property
    def instances(self) -> int:
        return self._instances

    def health(self) -> ComponentHealth:
        if self._state == "up":
            count = len(self.members)
            text = f"{self.where} is shared by {count} instance{'s' if count != 1 else ''}"
            return ComponentHealth("ok", text, self._since)
        return ComponentHealth("degraded", f"{self.where}: {self._reason}", self._since)

    # ── operations ───────────────────────────────────────────────────────────────────────────

    async def execute(
        self, script: Script, keys: Sequence[str], args: Sequence[str], budget: WaitBudget | None = None
    ) -> list[Any]:
        return await self._operate(script.name, lambda to: to.execute(script, keys, args), budget)

    async def get(self, key: str, budget: WaitBudget | None = None) -> bytes | None:
        return await self._operate("get", lambda to: to.get(key), budget)

    async def set(self, key: str, value: bytes, ttl: float, budget: WaitBudget | None = None) -> None:
        check_size(value)
        await self._operate("set", lambda to: to.set(key, value, ttl, only_new=False), budget)

    async def add(self, key: str, value: bytes, ttl: float, budget: WaitBudget | None = None) -> bool:
        check_size(value)
        return await self._operate("add", lambda to: to.set(key, value, ttl, only_new=True), budget)

    async def delete(self, *keys: str) -> None:
        await self._operate("delete", lambda to: to.delete(keys), None)

    async def delete_if(self, key: str, value: bytes) -> bool:
        return await self._operate("delete", lambda to: to.delete_if(key, value), None)

    async def _operate(
        self, op: str, send: Callable[[StoreConnection], asyncio.Future[Reply]], budget: WaitBudget | None
    ) -> Reply:
        """One operation, within the budget. Every way out of the wait has its time taken off the budget."""
        wait = self.timeout if budget is None else budget.left
        connection = self._connection
        if self._returning is not None and _RETURNING.get():
            connection = self._returning  # of the handlers that bring the store up to date, before anybody else
        loop_time = self._clock
        began = loop_time()
        try:
            if connection is None:
                connection = await self._wait_connected(budget or WaitBudget(wait))
                wait -= loop_time() - began
            if wait <= 0.0:
                raise StoreAway(SPENT)
            reply = send(connection)
            # Who has little of its time left learns nothing of the store by waiting that long.
            judges = wait >= self.timeout * JUDGING_SHARE
            timer = asyncio.get_running_loop().call_later(
                wait, self._expire_operation, connection, reply, loop_time() + wait, judges
            )
            try:
                return await reply
            finally:
                timer.cancel()
        finally:
            took = loop_time() - began
            if budget is not None:
                budget.left -= took
            histogram = self._histograms.get(op)
            if histogram is None:
                histogram = self._histograms[op] = self._metrics.store_operation_seconds.labels(op)
            histogram.observe(took)

    def _expire_operation(
        self, connection: StoreConnection, reply: asyncio.Future[Any], due: float, judges: bool
    ) -> None:
        """An operation had all its time. `judges`: that was `store.timeout`, so the store is away."""
        if reply.done():
            return
        if self._clock() - due > LATE_SECONDS:
            # This process was held up, not necessarily the store: read what has come before judging it.
            now = self._clock()
            asyncio.get_running_loop().call_later(
                LATE_GRACE, self._expire_operation, connection, reply, now + LATE_GRACE, judges
            )
            return
        if not judges:
            reply.set_exception(StoreAway(SPENT))
            return
        self._mark_away(f"no answer in {self.timeout * 1000:g} ms")
        connection.abort(self._reason)

    async def _wait_connected(self, budget: WaitBudget) -> StoreConnection:
        """The connection, as soon as there is one. Raises StoreAway when the budget is spent."""
        if self._state == "away":
            raise StoreAway(self._reason)
        loop = asyncio.get_running_loop()
        if self._connected is None or self._connected.done():
            self._connected = loop.create_future()
        waiting = self._connected
        try:
            async with asyncio.timeout(max(0.0, budget.left)):
                await asyncio.shield(waiting)
        except TimeoutError:
            if self._clock() - self._since < self.timeout * JUDGING_SHARE:
                raise StoreAway(SPENT) from None
            # One time-out for everybody who waits: none of them tries again by itself.
            self._mark_away("no connection in time")
            raise StoreAway(self._reason) from None
        assert self._connection is not None
        return self._connection

    # ── the connection ───────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        """Connect, keep in touch, and begin again, for ever."""
        while True:
            began = self._clock()
            self._ended.clear()
            try:
                await self._connect()
            except StoreAway as away:
                self._mark_away(str(away))
            else:
                await self._keep_in_touch()
                if self._state == "connecting":
                    continue  # a connection that merely ended is opened anew at once
            await asyncio.sleep(max(0.05, RETRY_SECONDS - (self._clock() - began)))

    async def _connect(self) -> None:
        """Connect, see that it answers in time, and hand it what was decided without it. Raises StoreAway."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await self._backend.connect(self._handle_end)
        except TimeoutError:
            raise StoreAway(f"no connection in {CONNECT_SECONDS:g} s") from None
        self._returning = connection
        mark = _RETURNING.set(True)
        try:
            # Twice: the first may find a cold cache, a script that has to be sent, a plan that has to be made.
            await self._beat(describe=True, budget=WaitBudget(CONNECT_SECONDS))
            await self._beat(describe=False, budget=WaitBudget(self.timeout))
            async with asyncio.timeout(RETURN_SECONDS):
                for handler in self._return_handlers:
                    await handler()
            if self._ended.is_set():
                raise StoreAway(self._reason)
        except TimeoutError:
            connection.abort("it is too slow")
            raise StoreAway(f"what was decided without it could not be written in {RETURN_SECONDS:g} s") from None
        except BaseException:
            connection.abort("it was given up")
            raise
        finally:
            self._returning = None
            _RETURNING.reset(mark)
        self._connection = connection
        if self._state == "away":
            self._emit("store", f"{self.where} is back.")
        self._enter("up", "it answers")
        if self._connected is not None and not self._connected.done():
            self._connected.set_result(None)

    async def _keep_in_touch(self) -> None:
        """Heartbeats and messages until the connection ends."""
        heartbeat = swept = self._clock()
        while not self._ended.is_set():
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._ended.wait()
            except TimeoutError:
                pass
            if self._ended.is_set():
                return  # this is also who opens the next one
            describe = self._clock() - heartbeat >= HEARTBEAT_SECONDS
            if describe:
                heartbeat = self._clock()
            if self._connection is not None and self._clock() - swept >= SWEEP_SECONDS:
                swept = self._clock()
                # One is enough, and which one does not matter.
                if self.members[0].id == self.instance_id:
                    self._connection.sweep()
            try:
                self._send_outbox()
                await self._beat(describe=describe)
            except StoreAway:
                return

    def _handle_end(self, reason: str) -> None:
        """The connection has ended, by us or by the store."""
        self._connection = None
        self._ended.set()
        if self._state == "up":
            # Most likely a restart or an idle time-out: who needs it now waits for the next connection.
            self._enter("connecting", reason)

    def _mark_away(self, reason: str) -> None:
        if self._state != "away":
            text = f"{self.where}: {reason}. Until it is back, limits and caps are decided here"
            self._emit("store", f"{text} (store.on_error: {self.policy.on_error}).", level="error")
        self._enter("away", reason)
        if self._connected is not None and not self._connected.done():
            self._connected.set_exception(StoreAway(reason))
            self._connected.exception()  # seen: nobody may be waiting

    def _enter(self, state: Literal["connecting", "up", "away"], reason: str) -> None:
        if state != self._state:
            self._since = self._clock()
        self._state, self._reason = state, reason
        self._metrics.store_up.set(1 if state == "up" else 0)

    # ── the others ───────────────────────────────────────────────────────────────────────────

    def publish(self, topic: str, message: Mapping[str, Any]) -> None:
        body = json.dumps(message, separators=(",", ":"))
        if len(body) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(body)} bytes is above {MAX_MESSAGE_BYTES}")
        self._outbox.append((topic, body, self._clock() + presence.KEPT_SECONDS))
        if self._state == "up":
            asyncio.get_running_loop().call_soon(self._send_outbox)

    def subscribe(self, topic: str, handler: MessageHandler) -> None:
        self._handlers.setdefault(topic, []).append(handler)

    def on_return(self, handler: ReturnHandler) -> None:
        self._return_handlers.append(handler)

    def to_store_time(self, loop_time: float) -> int:
        ahead = self._now() - self._clock() if self._clock_ahead is None else self._clock_ahead
        return round((loop_time + ahead) * 1e6)

    def count_fallback(self, what: FallbackOf) -> None:
        self._metrics.store_fallback_total.labels(what).inc()

    def _take_batch(self) -> list[tuple[str, str, float]]:
        now = self._clock()
        batch: list[tuple[str, str, float]] = []
        while self._outbox and len(batch) < MAX_BATCH:
            message = self._outbox.popleft()
            if message[2] > now:
                batch.append(message)
        return batch

    def _send_outbox(self) -> None:
        """Send what waits without waiting for the answer; what is lost on the way is lost with the connection."""
        while self._connection is not None and (batch := self._take_batch()):
            words = [word for topic, body, _ in batch for word in (topic, body)]
            self._connection.execute(presence.PUBLISH, (presence.MESSAGES,), (self.instance_id, *words))

    async def _beat(self, *, describe: bool, budget: WaitBudget | None = None) -> None:
        """Say that we live, hear who else does and what they say. Raises StoreAway."""
        sent = self._clock()
        description = self._describe() if describe else ""
        reply = await self.execute(
            presence.BEAT,
            (presence.MEMBERS, presence.MESSAGES),
            (self.instance_id, description, self._last_message),
            budget,
        )
        now, self._last_message, count = reply[:3]
        # By the moment of sending: the store's clock was at `now` later, so an estimate from it is never too early.
        self._clock_ahead = now / 1e6 - sent
        told = reply[3:]
        self.members = tuple(sorted((_read_member(*told[3 * i : 3 * i + 3]) for i in range(count)), key=lambda m: m.id))
        self._instances = max(1, len(self.members))
        for i in range(3 * count, len(told), 3):
            sender, topic, body = told[i : i + 3]
            if sender != self.instance_id:
                self._hear(topic, body)

    def _hear(self, topic: str, body: str) -> None:
        for handler in self._handlers.get(topic, ()):
            try:
                handler(json.loads(body))
            except (ValueError, KeyError, TypeError) as error:  # of a newer version, or of somebody else
                self._emit("store", f"A message about {topic} cannot be read: {error}.", level="warning")

    def _describe(self) -> str:
        me = self._member
        told = {"host": me.host, "region": me.region, "version": me.version, "started": me.started}
        return json.dumps(told, separators=(",", ":"))


def check_size(value: bytes) -> None:
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"a value of {len(value)} bytes is above {MAX_VALUE_BYTES}")


def _read_member(id: str, description: str, seen: int) -> Member:
    told = json.loads(description)
    return Member(id, told["host"], told["region"], told["version"], told["started"], seen / 1e6)
