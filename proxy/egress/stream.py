"""From the upstream to the app, once the answer has begun: byte for byte, unless it breaks.

A stream that breaks off, stalls or makes no sense ends with an error event that the dialect's SDK raises; a
body of any other kind breaks off downstream as it did upstream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from proxy.egress.app_response import Head, Sink
from proxy.egress.deadline import Deadline
from proxy.egress.dialects import BackgroundStatus, EventKind
from proxy.egress.http_client import chunk
from proxy.egress.upstream_response import MALFORMED, Answer, events
from proxy.errors import AttemptFailed

Shows = Callable[[BackgroundStatus], Awaitable[None]]


async def relay(answer: Answer, sink: Sink, deadline: Deadline, shows: Shows | None = None) -> None:
    """Pass on what was held back and all that follows. `shows` is told once, before the bytes that say it pass, that
    something which the vendor goes on with is over. Raises AttemptFailed where the upstream broke it."""
    watching = answer.media or answer.ends  # fed before it is written: who leaves meanwhile has seen it
    if shows is not None:
        shows = await _told(answer, shows)
    if answer.held:
        held, answer.held = b"".join(answer.held), []
        if watching is not None:
            watching.feed(held)
        await _write(sink, deadline, held)
    if answer.response is None:
        return
    if answer.state is None:
        while data := await chunk(answer.response):
            deadline.moved()
            if watching is not None:
                watching.feed(data)
            elif answer.tap is not None:
                answer.tap.see(data)
                if shows is not None:
                    shows = await _told(answer, shows)
            await _write(sink, deadline, data)
        answer.complete = True
        return
    await _events(answer, sink, deadline, shows)


async def _told(answer: Answer, shows: Shows) -> Shows | None:
    """None once it has been told."""
    state = answer.state if answer.tap is None else answer.tap.state
    shown = state.shown if state is not None else None
    if shown is None or not shown.over:
        return shows
    await shows(shown)
    return None


async def _events(answer: Answer, sink: Sink, deadline: Deadline, shows: Shows | None) -> None:
    state, splitter, response = answer.state, answer.splitter, answer.response
    assert state is not None
    assert splitter is not None
    assert response is not None
    while answer.broken is None:
        data = await chunk(response)
        deadline.moved()
        passed = []
        for event in events(splitter, data):
            verdict = state.judge(event)
            if verdict is EventKind.MALFORMED:
                answer.broken = MALFORMED
                break
            if verdict is EventKind.ERROR:
                answer.err(state)
            if verdict is not EventKind.DROP:
                passed.append(event)
        if shows is not None:
            shows = await _told(answer, shows)
        if passed:
            await _write(sink, deadline, b"".join(passed))
        if not data:
            break
    if answer.broken is not None:
        raise AttemptFailed("reset", answer.broken, sent=True)
    if not state.ended and not answer.errored:
        raise AttemptFailed("reset", "its stream ended before the answer did", sent=True)


async def _write(sink: Sink, deadline: Deadline, data: bytes) -> None:
    deadline.resting = True
    try:
        await sink.write(data)
    finally:
        deadline.resting = False


class Recorder:
    """Passes on, and keeps what passes as long as it is no more than `most` bytes."""

    def __init__(self, sink: Sink, most: int) -> None:
        self._sink = sink
        self._left = most
        self.passed = 0  # bytes
        self.kept: list[bytes] | None = [] if most else None

    async def begin(self, head: Head) -> None:
        await self._sink.begin(head)

    async def write(self, data: bytes) -> None:
        self.passed += len(data)
        if self.kept is not None:
            self._left -= len(data)
            if self._left < 0:
                self.kept = None
            else:
                self.kept.append(data)
        await self._sink.write(data)
