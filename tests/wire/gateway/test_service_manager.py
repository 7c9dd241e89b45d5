"""Under a service manager: sockets that it hands over, and what it is told (sd_listen_fds(3), sd_notify(3))."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway_process import APPS, GatewayProcess, eventually
from socket_activator import Manager, listening, manager

from proxy.process.service_manager import ServiceNotifier

APP = (sys.executable, str(APPS / "plain.py"))


@asynccontextmanager
async def running(one: GatewayProcess) -> AsyncIterator[GatewayProcess]:
    try:
        yield one
    finally:
        if one.process.returncode is None:
            one.process.kill()
            await one.process.wait()


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def ready(one: GatewayProcess) -> None:
    """Asked of the one that is meant: the public port is another's, too."""

    def is_ready() -> bool:
        assert one.process.returncode is None, one.output()
        return bool(one.events("gateway.ready"))

    await eventually(is_ready, 60)


async def knock(m: Manager, stop: asyncio.Event, answers: list[bytes]) -> None:
    """Requests, each on a connection of its own, one after the other."""
    while not stop.is_set():
        reader, writer = await asyncio.open_connection("127.0.0.1", m.port)
        writer.write(b"GET /pid HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        answers.append(await reader.read(-1))
        writer.close()


async def test_a_start_beside_the_old_process_loses_no_connection(tmp_path: Path) -> None:
    with manager(tmp_path) as m:
        async with running(await m.start(*APP)) as old:
            await ready(old)
            stop, answers = asyncio.Event(), list[bytes]()
            clients = [asyncio.create_task(knock(m, stop, answers)) for _ in range(4)]
            async with running(await m.start(*APP)) as new:
                await ready(new)
                assert await old.stop() == 0
                count = len(answers)
                await eventually(lambda: len(answers) > count + 20)
                stop.set()
                await asyncio.gather(*clients)
                assert {answer.split()[1] for answer in answers} == {b"200"}
                assert {int(body(answer)) for answer in answers} == {old.app_pid(), new.app_pid()}
                assert await new.stop() == 0


async def test_connections_wait_with_the_manager_from_one_process_to_the_next(tmp_path: Path) -> None:
    with manager(tmp_path) as m:
        async with running(await m.start(*APP)) as old:
            await ready(old)
            assert await old.stop() == 0
        waiting = [asyncio.create_task(old.request("/pid")) for _ in range(5)]
        async with running(await m.start(*APP)) as new:
            assert {int(body(answer)) for answer in await asyncio.gather(*waiting)} == {new.app_pid()}
            assert await new.stop() == 0


async def test_the_manager_is_told_and_the_app_hears_nothing_of_it(tmp_path: Path) -> None:
    with manager(tmp_path) as m:
        environ = {"WATCHDOG_USEC": "200000"}
        async with running(await m.start(*APP, environ=environ)) as g:
            await ready(g)
            await eventually(lambda: "READY=1" in m.hear())
            assert m.notifications.index("STATUS=Starting the app.") < m.notifications.index("READY=1")
            await eventually(lambda: m.hear().count("WATCHDOG=1") >= 3)
            for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC"):
                assert body(await g.request(f"/env?{name}")) == b"(unset)"
            app = g.app_pid()
            open_ones = {os.readlink(entry) for entry in Path(f"/proc/{app}/fd").iterdir()}
            assert f"socket:[{os.fstat(m.public.fileno()).st_ino}]" not in open_ones
            m.notifications.clear()
            g.signal(signal.SIGHUP)
            await eventually(lambda: "READY=1" in m.hear())
            assert m.notifications.index("RELOADING=1") < m.notifications.index("READY=1")
            assert any(line.startswith("MONOTONIC_USEC=") for line in m.notifications)
            m.notifications.clear()
            assert await g.stop() == 0
            assert "STOPPING=1" in m.hear()
            assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in m.notifications)


async def test_a_manager_that_was_busy_hears_of_a_ready_gateway_when_it_listens_again(tmp_path: Path) -> None:
    """The kernel keeps ten messages for who does not listen, and signs of life fill that in a second."""
    with manager(tmp_path) as m:
        notifier = ServiceNotifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000"})
        alive = asyncio.create_task(notifier.run_watchdog())
        queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        await asyncio.sleep(0.002 * min(queue, 600) + 0.1)
        notifier.notify_ready("Ready.")
        notifier.notify_reloading()
        assert m.hear().count("WATCHDOG=1") <= queue + 1
        await eventually(lambda: "RELOADING=1" in m.hear())
        assert m.notifications.index("READY=1") < m.notifications.index("RELOADING=1")
        alive.cancel()
        notifier.close()


async def test_a_socket_without_a_name_is_known_by_its_address(tmp_path: Path) -> None:
    other = listening()
    with manager(tmp_path) as m:
        postgres = f"postgres: {{url: 'postgresql://u@127.0.0.1:1/x', listen: '127.0.0.1:{other.getsockname()[1]}'}}\n"
        async with running(await m.start(*APP, sockets=(other, m.public), names="db:public", policy=postgres)) as g:
            await ready(g)
            notifications = [event["key"] for event in g.events("gateway.socket")]
            assert notifications == ["postgres.listen", "listen.public"]
            assert await g.stop() == 0
    other.close()


async def test_sockets_for_another_process_are_left_alone_and_said_so(tmp_path: Path) -> None:
    with manager(tmp_path) as m:
        policy = "app: {ready: {interval: 50ms}}\n"
        async with running(await m.start("true", environ={"LISTEN_PID": "1", "PORT": "0"}, policy=policy)) as g:
            await g.ended()
            (event,) = g.events("gateway.socket")
            assert "LISTEN_PID names process 1, and not us" in event["message"]
