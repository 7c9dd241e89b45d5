"""Is it ready, is it alive: one cheap question, asked over a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from proxy.observe.events import Emit

LOOPBACK = ("127.0.0.1", "::1")


async def probe(port: int, path: str | None, timeout: float, hosts: tuple[str, ...] = LOOPBACK) -> str | None:
    """The host that answered, or None. Without a path it is enough that the port accepts; with one, any
    answer below 500 (GET, HTTP/1.1, Host localhost) within `timeout` seconds."""
    for host in hosts:
        try:
            async with asyncio.timeout(timeout):
                if await _ask(host, port, path):
                    return host
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError):
            continue
    return None


class Knock:
    """Whether anything listens on a port, asked by a connection that says at once that nothing will come.

    An app that is busy leaves connections in its queue, closed ones too, and queues of five are common (socketserver's
    `request_queue_size`): so the next one is made when the app has taken and closed the last. While that one is open,
    somebody has it.
    """

    def __init__(self) -> None:
        self._open: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> bool:
        return self._open is not None and not self._open.done()

    async def refused(self, port: int, timeout: float = 5.0) -> bool:
        """Whether every loopback address refuses connections; one that does not answer in time does not."""
        for host in LOOPBACK:
            try:
                async with asyncio.timeout(timeout):
                    reader, writer = await asyncio.open_connection(host, port)
            except TimeoutError:
                return False
            except OSError:  # refused, or there is no such address
                continue
            self.close()
            self._open = asyncio.get_running_loop().create_task(_until_closed(reader, writer))
            return False
        return True

    def close(self) -> None:
        if self._open is not None:
            self._open.cancel()


async def _until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write_eof()
        while await reader.read(4096):
            pass
    except OSError:
        pass
    finally:
        writer.close()


async def status(host: str, port: int, path: str, timeout: float) -> int | None:
    """The status that the app itself answers to a GET, or None."""
    try:
        async with asyncio.timeout(timeout):
            return await _get(host, port, path)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError):
        return None


async def warn_of_claims(address: tuple[str, int], claims: Iterable[str], timeout: float, emit: Emit) -> None:
    """Tell once of the claimed paths that the app answers as well: it no longer gets them."""
    for path in claims:
        found = await status(*address, path, timeout)
        if found is not None and found < 400:
            text = f"The app answers {path} as well ({found}); listen.claim takes it from the app."
            emit("policy.claim", text, level="warning", path=path)


async def _ask(host: str, port: int, path: str | None) -> bool:
    if path is not None:
        return await _get(host, port, path) < 500
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    return True


async def _get(host: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(
            b"GET %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: outrigger-probe\r\nAccept: */*\r\n"
            b"Connection: close\r\n\r\n" % path.encode()
        )
        line = await reader.readuntil(b"\n")
        return int(line.split()[1])
    finally:
        writer.close()
