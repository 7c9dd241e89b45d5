"""Delivers messages to one address, in order, in a task of its own.

The life of a message: queued (at most 50; past that the oldest is dropped) → posted, at most 10 times with exponential
backoff → ok, or error (given up, or refused with a status that no retry helps). Each end is counted once.

Slack answers 429 with Retry-After at more than about one message a second (docs.slack.dev/apis/web-api/rate-limits).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable

import aiohttp
from aiohttp_retry import RetryClient, RetryOptionsBase

from proxy.http.aiohttp_loading import trusted_context
from proxy.http.retry_after import parse_retry_after
from proxy.observe.emit import EmitEvent
from proxy.observe.metric_family import Histogram, time_awaitable

MAX_WAITING = 50  # messages; past that the oldest is dropped
MAX_ATTEMPTS = 10  # within four minutes, or six if each times out
ATTEMPT_TIMEOUT = 10.0  # seconds for one attempt
BACKOFF_SECONDS = (1.0, 60.0)  # seconds between attempts: the first, the longest
MAX_RETRY_AFTER = 300.0  # seconds; a longer Retry-After is cut to this


class DeliveryRetryOptions(RetryOptionsBase):
    """When aiohttp-retry posts a message again, and after how many seconds; obeys Retry-After (RFC 9110, 10.2.3)."""

    def __init__(self) -> None:
        super().__init__(
            attempts=MAX_ATTEMPTS,
            statuses={408, 429},
            exceptions={aiohttp.ClientError, asyncio.TimeoutError, OSError},
            retry_all_server_errors=True,
        )

    def get_timeout(self, attempt: int, response: aiohttp.ClientResponse | None = None) -> float:
        wait: float = min(BACKOFF_SECONDS[1], BACKOFF_SECONDS[0] * 2 ** (attempt - 1))
        if response is not None:
            asked = parse_retry_after(response.headers.get("Retry-After"), time.time())
            response.close()  # the library would keep its connection
            if asked is not None:
                return min(MAX_RETRY_AFTER, max(wait, asked))
        return wait


class DeliveryQueue:
    """The messages for one channel. `sent(result)` is called for each message with ok, error (given up or refused) or
    dropped (too many waited). The address is a secret, and is never logged."""

    def __init__(
        self, name: str, url: str, *, emit: EmitEvent, sent: Callable[[str], None], duration: Histogram
    ) -> None:
        self.name = name
        self.url = url
        self._emit = emit
        self._count_result = sent
        self._duration = duration
        self._messages: deque[bytes] = deque()
        self._has_messages = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.get_running_loop().create_task(self._deliver_forever())

    def enqueue(self, message: dict[str, object]) -> None:
        """Queue a message; never waits."""
        if len(self._messages) >= MAX_WAITING:
            self._messages.popleft()
            self._count_result("dropped")
            self._log_failure("a message was dropped, because too many wait")
        self._messages.append(json.dumps(message, ensure_ascii=False).encode())
        self._idle.clear()
        self._has_messages.set()

    async def close(self, patience: float) -> None:
        """End, and give what waits `patience` seconds to be sent."""
        if patience > 0:
            try:
                async with asyncio.timeout(patience):
                    await self._idle.wait()
            except TimeoutError:
                self._log_failure(f"{len(self._messages) + 1} messages did not go out before the end")
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _deliver_forever(self) -> None:
        timeout = aiohttp.ClientTimeout(total=ATTEMPT_TIMEOUT)
        async with RetryClient(
            raise_for_status=False, retry_options=DeliveryRetryOptions(), timeout=timeout, trust_env=True
        ) as client:
            while True:
                await self._has_messages.wait()
                # One after the other, so that a clear message never overtakes the alert that it ends.
                while self._messages:
                    await time_awaitable(self._duration, self._post_message(client, self._messages.popleft()))
                self._has_messages.clear()
                self._idle.set()

    async def _post_message(self, client: RetryClient, body: bytes) -> None:
        try:
            async with client.post(
                self.url,
                data=body,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
                ssl=trusted_context(),
            ) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._count_result("error")
            self._log_failure(f"a message could not be sent in {MAX_ATTEMPTS} tries: {type(error).__name__}")
            return
        if status < 300:
            self._count_result("ok")
        else:
            self._count_result("error")
            self._log_failure(f"a message was refused with status {status}")

    def _log_failure(self, what: str) -> None:
        self._emit("alert.unsent", f"Alerts to {self.name}: {what}.", level="error", sender=self.name)
