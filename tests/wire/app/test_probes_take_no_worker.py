"""What the gateway does by itself takes none of the app's few places: looks at its port, connections kept for later."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from ingress_gateway import OK, Scripted, ingress_gateway, until

from proxy.app import probes
from proxy.app.probes import ProbeCost
from proxy.policy.schema import Liveness


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a look's times a hundredth of what they are."""
    for name in ("CHECK_SECONDS", "RECHECK_SECONDS", "REFUSED_SECONDS"):
        monkeypatch.setattr(probes, name, getattr(probes, name) / 100)


@pytest.fixture
def busy() -> Iterator[socket.socket]:
    """The listening socket of an app that accepts nobody just now: it has one thread, and that one works."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(5)  # socketserver's request_queue_size
        sock.setblocking(False)
        yield sock


def accepted(sock: socket.socket) -> list[socket.socket]:
    """Everybody who waits."""
    found = []
    while True:
        try:
            found.append(sock.accept()[0])
        except BlockingIOError:
            return found


def watch(sock: socket.socket, refused: int = 0) -> asyncio.Task[str]:
    clock = asyncio.get_running_loop().time
    looks = probes.LivenessProbe(Liveness, clock, lambda: refused, ProbeCost(lambda *_, **__: None, clock))
    return asyncio.get_running_loop().create_task(
        looks.wait_until_lost("127.0.0.1", sock.getsockname()[1], listened=True)
    )


async def test_a_busy_app_has_one_connection_of_ours_in_its_queue_and_not_one_more_with_each_look(
    quick: None, busy: socket.socket
) -> None:
    lost = watch(busy)
    await asyncio.sleep(0.5)  # 25 looks
    waiting = accepted(busy)
    assert len(waiting) == 1
    assert waiting[0].recv(10) == b"", "it says at once that nothing will come"
    waiting[0].close()
    again = None
    async with asyncio.timeout(5):
        while again is None:
            again = next(iter(accepted(busy)), None)
            await asyncio.sleep(0.01)
    again.close()
    assert not lost.done()
    lost.cancel()


async def test_an_app_that_dies_with_that_connection_in_its_queue_is_lost(quick: None, busy: socket.socket) -> None:
    lost = watch(busy)
    await asyncio.sleep(0.1)
    busy.close()
    async with asyncio.timeout(5):
        assert "Nothing listens" in await lost


async def test_an_app_that_takes_that_connection_and_keeps_it_open_is_lost_once_it_refuses_requests(
    quick: None, busy: socket.socket
) -> None:
    refused = 0
    clock = asyncio.get_running_loop().time
    looks = probes.LivenessProbe(Liveness, clock, lambda: refused, ProbeCost(lambda *_, **__: None, clock))
    lost = asyncio.get_running_loop().create_task(
        looks.wait_until_lost("127.0.0.1", busy.getsockname()[1], listened=True)
    )
    await asyncio.sleep(0.1)
    (kept,) = accepted(busy)
    busy.close()
    await asyncio.sleep(0.1)
    assert not lost.done()
    async with asyncio.timeout(5):
        while not lost.done():
            refused += 1
            await asyncio.sleep(0.001)
    kept.close()


async def test_an_app_whose_connections_end_early_does_not_get_one_to_keep_with_every_post() -> None:
    """POST takes a fresh one then; those that it leaves would add up to hundreds, which nobody takes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await app.head(reader)
            writer.write(OK)
            if head.startswith(b"GET /last"):
                await writer.drain()
                return

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        await gateway.get("/last")
        await until(lambda: app.open == 0)
        await gateway.get("/", method="POST")  # meets the end of that one, or a sweep does
        await asyncio.sleep(0.6)
        await gateway.get("/", method="POST")
        before = app.open
        for _ in range(40):
            assert (await gateway.get("/", method="POST")).startswith(b"HTTP/1.1 200")
        assert app.open <= before + 1


async def test_an_app_whose_port_nobody_watches_is_given_a_second_before_its_502() -> None:
    app = Scripted(lambda reader, writer: asyncio.sleep(0))
    async with ingress_gateway(app, "app: {liveness: off}") as gateway:
        await app.stop()
        began = asyncio.get_running_loop().time()
        assert (await gateway.get()).startswith(b"HTTP/1.1 502")
        assert asyncio.get_running_loop().time() - began < 4
