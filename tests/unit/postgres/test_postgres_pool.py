"""Who gets a connection, and when one is opened: a clock of the test's own, connections that lead nowhere."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from proxy.policy.schema import Pin, Postgres, QueryTimeout
from proxy.policy.schema import Pool as Sizes
from proxy.postgres import wire
from proxy.postgres.auth.startup import StartupMessage
from proxy.postgres.connector import ConnectFailed
from proxy.postgres.launcher import ConnectAttempts
from proxy.postgres.link import Link
from proxy.postgres.pool import Pool
from proxy.postgres.server_state import ServerState
from proxy.postgres.statement_registry import StatementRegistry


class Line:
    """A transport that remembers what was written; `lost` is its end."""

    def __init__(self):
        self.sent = b""
        self.protocol = None

    def get_extra_info(self, name):
        return None

    def set_protocol(self, protocol):
        self.protocol = protocol

    def write(self, data):
        self.sent += data

    def abort(self):
        self.lost()

    close = abort

    def lost(self):
        self.protocol.connection_lost(None)

    def pause_reading(self): ...
    def resume_reading(self): ...


class BoundLink(Link):
    """A link whose client waits without having sent anything, so it is told of a refusal all the same."""

    def on_server_refused(self, error):
        self.client.error = error


class Client:
    """A client's connection that leads nowhere, bound to the pool by a link."""

    is_slow = paused_by_server = False
    route = ""
    since = 0.0

    def __init__(self, pool, number, key=()):
        self.pool = pool
        self.number = number
        self.link = BoundLink(self, StartupMessage(0, "u", "d", False, "", None, key), {}, StatementRegistry(), pool)
        self.session = self.link.session
        self.error = b""
        self.asked = []

    @property
    def server(self):
        return self.link.server

    def take(self):
        server = self.pool.acquire(self.link)
        if server is not None:
            self.link._attach(server)
        return server

    def on_pin_decided(self, *, granted):
        self.asked.append(granted)

    def write(self, data): ...

    def end(self, error=b""):
        self.error = self.error or error
        self.link.on_client_left()

    def query(self, text="select 1"):
        self.link.on_client_data(wire.query_message(text.encode()))

    def answer(self, status=wire.STATUS_IDLE):
        self.server.data_received(wire.message(wire.COMMAND_COMPLETE, b"SELECT 1\0") + wire.ready_for_query(status))

    def done(self):
        self.query()
        self.answer()


class Scene:
    def __init__(self, *, idle=300.0, lifetime=3600.0, wait=5.0, least=0, most=2, pins=2, check=30.0, **timeouts):
        self.time = 0.0
        self.lines = []
        self.opened = []
        self.failing = None
        self.said = []
        self.waits = []
        sizes = Sizes(min=least, max=most, wait=wait, idle=idle, lifetime=lifetime)
        policy = Postgres(
            url="postgresql://h", pool=sizes, pin=Pin(max=pins), check=check, timeout=QueryTimeout(**timeouts)
        )
        self.pool = Pool(
            policy, self._connect, emit=self._emit, observe_wait=self.waits.append, clock=lambda: self.time
        )

    def _emit(self, event, message, *, level="info", **facts):
        self.said.append((event, message))

    async def _connect(self, key, name):
        self.opened.append(key)
        if self.failing is not None:
            raise self.failing
        line = Line()
        self.lines.append(line)
        cancel = asyncio.Event()
        cancel.set()
        return SimpleNamespace(
            backend=ServerState(key, name, {}, len(self.lines)), transport=line, protocol=None, cancel=cancel.wait
        )

    def client(self, number=1, key=()):
        return Client(self.pool, number, key)


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_connection_is_opened_for_whoever_waits_and_no_more_than_may_be():
    scene = Scene(most=2)
    clients = [scene.client(number) for number in range(5)]
    assert [client.take() for client in clients] == [None] * 5
    await settled()
    assert len(scene.opened) == 2
    assert [client.server is not None for client in clients] == [True, True, False, False, False]


async def test_whoever_waits_longest_is_next():
    scene = Scene(most=1)
    clients = [scene.client(number) for number in range(4)]
    for client in clients:
        client.take()
    await settled()
    for index, client in enumerate(clients):
        assert [other.server is not None for other in clients] == [other is client for other in clients], index
        client.done()
    assert clients[0].take() is not None
    assert len(scene.waits) == 5


async def test_the_connection_used_last_is_used_first():
    scene = Scene(most=2)
    first, second = scene.client(1), scene.client(2)
    first.take(), second.take()
    await settled()
    used = first.server
    second.done(), first.done()
    assert scene.client(3).take() is used


@pytest.mark.parametrize("kind", wire.FRONTEND_KINDS - {wire.TERMINATE, wire.PASSWORD})
async def test_what_the_database_has_to_answer_borrows_a_connection(kind):
    scene = Scene(most=1)
    client = scene.client(1)
    client.query()
    await settled()
    client.answer()
    assert client.server is None
    body = {wire.QUERY: b"select 1\0", wire.PARSE: b"\0a\0\0\0", wire.BIND: b"\0\0", wire.EXECUTE: b"\0\0\0\0\0"}
    client.link.on_client_data(wire.message(kind, body.get(kind, b"Sp\0")))
    alone = (wire.SYNC, wire.FLUSH, wire.COPY_DATA, wire.COPY_DONE, wire.COPY_FAIL)
    assert (client.server is None) is (kind in alone)


async def test_a_set_after_plain_queries_is_asked_about_before_anybody_else_is_served():
    scene = Scene(most=1)
    client, other = scene.client(1), scene.client(2)
    for _ in range(3):
        client.query()
        await settled()
        client.answer()
    client.query("set a.b = 1")
    other.query("select 2")
    client.server.data_received(wire.message(wire.COMMAND_COMPLETE, b"SET\0") + wire.ready_for_query())
    assert b"pg_settings" in scene.lines[0].sent
    assert client.server is not None
    assert other.server is None
    client.answer()
    assert other.server is not None


async def test_whoever_waits_in_vain_is_told_who_holds_what_and_may_try_again():
    scene = Scene(most=1, wait=0.01)
    holder, late = scene.client(1), scene.client(2)
    holder.take()
    await settled()
    holder.query("begin")
    holder.answer(wire.STATUS_IN_TRANSACTION)
    holder.route = "checkout"
    late.take()
    scene.time += 1
    await asyncio.sleep(0.05)
    fields = wire.error_fields(late.error[5:])
    assert fields["C"] == "53300"
    assert "1 idle in transaction (idle in transactions of checkout)" in fields["M"]
    assert not scene.pool.waiters
    holder.done()
    assert late.take() is not None


async def test_a_client_that_leaves_while_it_waits_is_forgotten():
    scene = Scene(most=1)
    first, second, third = (scene.client(number) for number in range(3))
    first.take(), second.take(), third.take()
    await settled()
    scene.pool.forget_waiter(second.link)
    first.done()
    assert third.server is not None


async def test_another_kind_of_connection_takes_the_place_of_an_idle_one():
    scene = Scene(most=1)
    first, second = scene.client(1), scene.client(2, (("jit", "off"),))
    first.take()
    await settled()
    first.done()
    second.take()
    assert scene.lines[0].sent.endswith(wire.message(wire.TERMINATE))
    assert len(scene.opened) == 1  # not before the old one is gone
    scene.lines[0].lost()
    await settled()
    assert scene.opened == [(), (("jit", "off"),)]
    assert second.server is not None


async def test_another_kind_at_the_head_of_the_queue_is_not_passed_by_for_ever():
    scene = Scene(most=1)
    first, other, third = scene.client(1), scene.client(2, (("a", "b"),)), scene.client(3)
    for client in (first, other, third):
        client.take()
    await settled()
    first.done()
    assert third.server is None
    scene.lines[0].lost()
    await settled()
    assert other.server is not None


async def test_an_idle_connection_is_asked_whether_it_lives():
    scene = Scene(check=30.0)
    first, second = scene.client(1), scene.client(2)
    first.take()
    await settled()
    server = first.server
    first.done()
    scene.time = 31.0
    assert second.take() is None
    assert server.state == "checking"
    server.data_received(wire.message(wire.EMPTY_QUERY) + wire.ready_for_query())
    assert second.server is server


async def test_a_dead_one_is_replaced():
    scene = Scene(most=1)
    first, second = scene.client(1), scene.client(2)
    first.take()
    await settled()
    first.done()
    scene.time = 31.0
    second.take()
    scene.lines[0].lost()
    await settled()
    assert second.server is not None
    assert len(scene.lines) == 2


async def test_old_and_idle_connections_end_but_for_those_that_are_to_stay():
    scene = Scene(most=3, least=1, idle=10.0, lifetime=100.0)
    clients = [scene.client(number) for number in range(3)]
    for client in clients:
        client.take()
    await settled()
    for client in clients:
        client.done()
    scene.time = 11.0
    scene.pool.run_janitor()
    assert [line.sent.endswith(b"X\0\0\0\4") for line in scene.lines] == [True, True, False]
    scene.time = 101.0
    scene.pool.run_janitor()
    assert scene.lines[2].sent.endswith(b"X\0\0\0\4")
    for line in list(scene.lines):
        line.lost()
    await settled()
    assert len(scene.pool.servers) == 1


async def test_a_server_that_is_old_retires_when_it_is_given_back():
    scene = Scene(lifetime=100.0)
    client = scene.client()
    client.take()
    await settled()
    scene.time = 101.0
    client.done()
    assert scene.lines[0].sent.endswith(b"X\0\0\0\4")


async def test_a_database_that_is_away_is_tried_with_growing_pauses_one_at_a_time():
    scene = Scene(most=5, wait=60.0)
    scene.failing = ConnectFailed("08001", "refused", final=False)
    clients = [scene.client(number) for number in range(5)]
    for client in clients:
        client.take()
    await settled()
    tries = len(scene.opened)
    assert tries <= 5
    opening = scene.pool.launcher.attempts
    assert not opening.may_try()
    scene.failing = None
    scene.time = opening.retry_at
    scene.pool.launch_servers()
    await settled()
    assert len(scene.opened) == tries + 5
    assert all(client.server is not None for client in clients)
    assert [event for event, _ in scene.said] == ["postgres.down", "postgres.up"]


@pytest.mark.parametrize("failures", [1, 3, 6, 50])
def test_a_pause_is_never_longer_than_five_seconds(failures):
    opening = ConnectAttempts(lambda: 0.0)
    for _ in range(failures):
        opening.on_failure(ConnectFailed("08001", "refused", final=False))
    assert min(4.5, 0.1 * 2 ** (failures - 1)) / 2 <= opening.retry_at < 5.0


async def test_the_first_of_a_kind_hears_what_the_database_says():
    scene = Scene()
    scene.failing = ConnectFailed("22023", 'invalid value for parameter "jit"', final=True)
    with pytest.raises(ConnectFailed, match="jit"):
        await scene.pool.fetch_greeting((("jit", "maybe"),), "")
    assert scene.pool.launcher.attempts.failures == 0
    assert not scene.pool.servers


async def test_a_first_login_waits_no_longer_than_it_may():
    scene = Scene(wait=0.01)
    scene.failing = ConnectFailed("08001", "refused", final=False)
    with pytest.raises(TimeoutError):
        await scene.pool.fetch_greeting((), "")
    assert wire.error_fields(scene.pool.exhausted_error("FATAL")[5:])["C"] == "57P03"


async def test_a_client_that_leaves_in_a_transaction_frees_its_server_clean():
    scene = Scene(most=1)
    first, second = scene.client(1), scene.client(2)
    first.take(), second.take()
    await settled()
    server = first.server
    first.query("begin")
    first.answer(wire.STATUS_IN_TRANSACTION)
    first.link.on_client_left()
    assert server.state == "leaving"
    assert scene.lines[0].sent.endswith(wire.query_message(b"ROLLBACK"))
    server.data_received(wire.message(wire.COMMAND_COMPLETE, b"ROLLBACK\0") + wire.ready_for_query())
    assert second.server is server
    assert scene.pool.outcomes["abandoned"] == 1


async def test_a_busy_server_whose_client_left_is_cancelled_and_serves_nobody_before_that_has_arrived():
    scene = Scene(most=1)
    first, second = scene.client(1), scene.client(2)
    first.take(), second.take()
    await settled()
    server = first.server
    first.query("select pg_sleep(100)")
    first.link.on_client_left()
    assert server.cancelling == 1
    server.data_received(wire.error_response("57014", "canceled") + wire.ready_for_query())
    assert second.server is None
    await settled()
    assert second.server is server


async def test_a_lost_server_ends_its_client_and_is_replaced():
    scene = Scene(most=1)
    first, second = scene.client(1), scene.client(2)
    first.take(), second.take()
    await settled()
    first.query()
    scene.lines[0].lost()
    assert wire.error_fields(first.error[5:])["C"] == "08006"
    await settled()
    assert second.server is not None


async def test_slots_for_pins_are_given_in_turn_and_one_connection_is_left_to_share():
    scene = Scene(most=2, pins=2, wait=0.02)
    clients = [scene.client(number) for number in range(3)]
    assert [scene.pool.request_pin(client) for client in clients] == [True, False, False]
    scene.pool.release_pin()
    assert [client.asked for client in clients] == [[], [True], []]
    scene.time = 1.0
    await asyncio.sleep(0.05)
    assert clients[2].asked == [False]


@pytest.mark.parametrize(("most", "pins", "allowed"), [(1, 2, 1), (2, 2, 1), (5, 2, 2), (5, 0, 0), (5, 5, 4)])
async def test_how_many_may_pin(most, pins, allowed):
    assert Scene(most=most, pins=pins).pool.pins.limit == allowed


async def test_a_query_that_takes_too_long_is_cancelled_and_its_client_told_why():
    scene = Scene(query=1.0)
    client = scene.client()
    client.take()
    await settled()
    server = client.server
    client.query()
    scene.time = 1.5
    scene.pool.run_janitor()
    assert server.query_timed_out
    said = client.session.process_replies(
        wire.error_response("57014", "canceling statement due to user request") + wire.ready_for_query()
    )
    assert "postgres.timeout.query (1s)" in wire.error_fields(said[5:])["M"]


async def test_a_client_idle_in_a_transaction_for_too_long_is_told_and_hung_up_on():
    scene = Scene(idle_in_transaction=1.0)
    client = scene.client()
    client.take()
    await settled()
    client.query("begin")
    client.answer(wire.STATUS_IN_TRANSACTION)
    scene.time = 0.9
    scene.pool.run_janitor()
    assert not client.error
    scene.time = 1.5
    scene.pool.run_janitor()
    assert wire.error_fields(client.error[5:])["C"] == "25P03"


async def test_a_database_that_answers_neither_query_nor_cancel_is_given_up():
    scene = Scene(query=1.0)
    client = scene.client()
    client.take()
    await settled()
    client.query()
    scene.time = 1.5
    scene.pool.run_janitor()
    scene.time = 7.0
    scene.pool.run_janitor()
    assert wire.error_fields(client.error[5:])["C"] == "57014"
    assert not scene.pool.servers
