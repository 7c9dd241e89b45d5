"""One delivery of a callback: its address pinned, its body signed, its answer judged.

The retries are not here: they go on for a day, over restarts and other instances, so their place is the queue's
database (`callbacks.py`) and not a client that waits in memory.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from proxy import __version__
from proxy.http.aiohttp_loading import trusted_context
from proxy.tasks.callback_url import CallbackRefused, CallbackUrl, Resolve, parse_callback_url, resolve_callback
from proxy.tasks.webhook_signature import sign_webhook

DELIVERY_TIMEOUT = 15.0  # seconds for one delivery, connecting and resolving included
HTTP_GONE = 410  # the receiver wants no more of them (Standard Webhooks, "Deliverability and reliability")

# ok: done. gone: given up. failed and refused are tried again; refused: it was not ours to dial.
DeliveryResult = Literal["ok", "gone", "failed", "refused"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """How one delivery went; `detail` is a clause for the log, and has nothing of the URL's path or query."""

    result: DeliveryResult
    detail: str
    status: int | None = None


class PinnedResolver(AbstractResolver):
    """Answers every question with the addresses that were judged; aiohttp asks no other resolver."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


async def deliver_callback(
    text: str,
    body: bytes,
    webhook_id: str,
    *,
    listed_hosts: Collection[str],
    secret: str,
    resolve: Resolve,
    now: Callable[[], float] = time.time,
) -> Delivery:
    """POST a body to a URL once. `listed_hosts` and `secret` are those of the policy in force now."""
    if not secret:
        return Delivery("refused", "tasks.secret is not set any more, and a callback is never sent unsigned")
    try:
        async with asyncio.timeout(DELIVERY_TIMEOUT):
            url = parse_callback_url(text, listed_hosts)
            addresses = await resolve_callback(url, listed_hosts, resolve)
            headers = {
                "Content-Type": "application/json",
                "User-Agent": f"Outrigger/{__version__}",
                **sign_webhook(secret, webhook_id, int(now()), body),
            }
            status = await _post_body(url, body, headers, addresses)
    except CallbackRefused as refused:
        return Delivery("refused", str(refused))
    except TimeoutError:
        return Delivery("failed", f"it was not answered in {DELIVERY_TIMEOUT:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # The error's own text may quote the URL.
        return Delivery("failed", f"it could not be sent ({type(error).__name__})")
    if 200 <= status < 300:
        return Delivery("ok", f"it was answered with {status}", status)
    if status == HTTP_GONE:
        return Delivery("gone", "the receiver answered 410 and wants no more of it", status)
    kind = "a redirect, which is not followed" if 300 <= status < 400 else "no success"
    return Delivery("failed", f"it was answered with {status}, {kind}", status)


async def _post_body(url: CallbackUrl, body: bytes, headers: dict[str, str], addresses: Sequence[str]) -> int:
    parts = urlsplit(url.text)
    # Put together out of what was judged: a second parser may not read another host out of the same text.
    target = URL.build(
        scheme=url.scheme,
        host=url.host,
        port=url.port,
        path=parts.path or "/",
        query_string=parts.query,
        encoded=True,
    )
    # A session of its own: no cookie, no connection and no name of one receiver is there for the next. And no proxy of
    # the environment, which would resolve the name once more.
    connector = aiohttp.TCPConnector(
        resolver=PinnedResolver(addresses), use_dns_cache=False, force_close=True, ssl=trusted_context()
    )
    jar = aiohttp.DummyCookieJar()
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=jar, trust_env=False) as session,
        session.post(target, data=body, headers=headers, allow_redirects=False) as answer,
    ):
        return answer.status  # its body is of no use, and may be endless
