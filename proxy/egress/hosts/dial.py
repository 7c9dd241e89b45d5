"""Connections for tunnels: to a host, or through the proxy that is on the way to it."""

from __future__ import annotations

import asyncio

import aiohttp
from yarl import URL

from proxy.errors import AttemptFailed


async def dial(url: URL, parent: URL | None, connect: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`parent` is a proxy that the gateway itself has to use: it is asked to connect in its turn. `connect` is
    seconds. Raises AttemptFailed."""
    to = parent if parent is not None else url
    try:
        async with asyncio.timeout(connect):
            secure = parent is not None and parent.scheme == "https"
            reader, writer = await asyncio.open_connection(to.host, to.port, ssl=secure or None)
            if parent is not None:
                writer.write(_connect(url, parent))
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 200" not in head.partition(b"\r\n")[0]:
                    writer.close()
                    raise AttemptFailed("connect", "the proxy on the way refused", sent=False)
            return reader, writer
    except TimeoutError:
        raise AttemptFailed("connect", "connecting took too long", sent=False) from None
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, UnicodeError) as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise AttemptFailed("connect", text, sent=False) from error


def _connect(url: URL, parent: URL) -> bytes:
    lines = [f"CONNECT {url.host}:{url.port} HTTP/1.1", f"Host: {url.host}:{url.port}"]
    if parent.user is not None:
        word = aiohttp.BasicAuth(parent.user, parent.password or "", "utf-8").encode()
        lines.append(f"Proxy-Authorization: {word}")
    return "\r\n".join([*lines, "", ""]).encode()
