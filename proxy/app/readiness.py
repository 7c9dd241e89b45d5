"""Is it ready, is it alive: one cheap question, asked over a connection of its own."""

from __future__ import annotations

import asyncio

LOOPBACK = ("127.0.0.1", "::1")


async def probe(port: int, path: str | None, timeout: float, hosts: tuple[str, ...] = LOOPBACK) -> str | None:
    """The host that answered, or None. Without a path it is enough that the port accepts; with one, any
    answer below 500 (GET, HTTP/1.1, Host localhost) within `timeout` seconds."""
    for host in hosts:
        try:
            async with asyncio.timeout(timeout):
                if await _ask(host, port, path):
                    return host
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            continue
    return None


async def _ask(host: str, port: int, path: str | None) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        if path is None:
            return True
        writer.write(
            b"GET %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: outrigger-probe\r\nAccept: */*\r\n"
            b"Connection: close\r\n\r\n" % path.encode()
        )
        status = await reader.readuntil(b"\n")
        return int(status.split()[1]) < 500
    except IndexError:
        return False
    finally:
        writer.close()
