"""From the upstream to the app, once the answer has begun: byte for byte, unless it breaks.

A stream that breaks off, stalls or makes no sense ends with an error event that the dialect's SDK raises; a
body of any other kind breaks off downstream as it did upstream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from proxy.egress.app_response import ResponseHead, ResponseWriter
from proxy.egress.deadline import Deadline
from proxy.egress.dialects import BackgroundStatus, EventKind
from proxy.egress.upstream_response import MALFORMED, UpstreamResponse, judge_events
from proxy.errors import AttemptFailed

OnShown = Callable[[BackgroundStatus], Awaitable[None]]


async def relay_body(
    answer: UpstreamResponse, writer: ResponseWriter, deadline: Deadline, on_shown: OnShown | None = None
) -> None:
    """Pass on what was held back and all that follows. `on_shown` is called once, when the stream shows that work in
    the background is over, before the bytes that say so pass. Raises AttemptFailed if the upstream broke it off."""
    # Observers are fed before the bytes are written: an app that leaves meanwhile may have received them.
    watching = answer.media or answer.ends
    if on_shown is not None:
        on_shown = await _notify_shown(answer, on_shown)
    is_joined = answer.unread is not None and answer.broken is None
    if answer.held and not is_joined:
        held, answer.held = b"".join(answer.held), []
        if watching is not None:
            watching.feed(held)
        await write_to_app(writer, deadline, held)
    if answer.response is None:
        return
    if answer.stream is None:
        while data := await answer.response.read_chunk():
            deadline.record_progress()
            if watching is not None:
                watching.feed(data)
            elif answer.tap is not None:
                answer.tap.read_along(data)
                if on_shown is not None:
                    on_shown = await _notify_shown(answer, on_shown)
            await write_to_app(writer, deadline, data)
        answer.complete = True
        return
    await _relay_events(answer, writer, deadline, on_shown)


async def _notify_shown(answer: UpstreamResponse, on_shown: OnShown) -> OnShown | None:
    """Call `on_shown` if background work is over; returns None once it was called, else `on_shown`."""
    state = answer.stream if answer.tap is None else answer.tap.state
    shown = state.background_status if state is not None else None
    if shown is None or not shown.finished:
        return on_shown
    await on_shown(shown)
    return None


async def _relay_events(
    answer: UpstreamResponse, writer: ResponseWriter, deadline: Deadline, on_shown: OnShown | None
) -> None:
    state, splitter, response = answer.stream, answer.splitter, answer.response
    assert state is not None
    assert splitter is not None
    assert response is not None
    events, answer.unread = answer.unread, None
    passed, answer.held = answer.held, []  # with what follows on it in the same read
    at_end = False
    while answer.broken is None:
        if events is None:
            try:
                data = await response.read_chunk()
            except AttemptFailed:
                if state.is_over:  # it was whole before the connection broke
                    return
                raise
            at_end = not data
            events = judge_events(splitter, state, data)
        deadline.record_progress()
        # Only whole events pass, so that an error event of ours never lands within half of one.
        for event, verdict in events:
            if verdict is EventKind.MALFORMED:
                answer.broken = MALFORMED
                break
            if verdict is EventKind.ERROR:
                answer.record_error(state)
            if verdict is not EventKind.DROP:
                passed.append(event)
        events = None
        if on_shown is not None:
            on_shown = await _notify_shown(answer, on_shown)
        # Told before: an app that leaves as soon as it reads the end must find it settled.
        if passed:
            await write_to_app(writer, deadline, b"".join(passed), is_last=state.ended and response.at_eof)
            passed = []
        # Checked last, since the end completes an event that lacks its blank line.
        if at_end:
            break
    if answer.broken is not None:
        raise AttemptFailed("reset", answer.broken, sent=True)
    # A closed connection is not the end of an answer: the dialect's last event is, or an error event.
    if not state.ended and not answer.errored:
        raise AttemptFailed("reset", "its stream ended before the answer did", sent=True)


async def write_to_app(writer: ResponseWriter, deadline: Deadline, data: bytes, *, is_last: bool = False) -> None:
    # An app that reads slowly holds reading up: the upstream is not silent, so its idle time does not run.
    deadline.app_is_slow = True
    try:
        await writer.write(data, is_last=is_last)
    finally:
        deadline.app_is_slow = False


class RecordingWriter:
    """Passes an answer on to `writer`, and keeps it as long as it is no more than `most` bytes.

    Attributes:
        bytes_written: how many bytes of the body were passed on.
        kept: the chunks of the whole body; None if it became too large, or nothing is to be kept.
    """

    def __init__(self, writer: ResponseWriter, most: int) -> None:
        self._writer = writer
        self._left = most
        self.bytes_written = 0  # bytes
        self.kept: list[bytes] | None = [] if most else None

    async def write_head(self, head: ResponseHead) -> None:
        await self._writer.write_head(head)

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        self.bytes_written += len(data)
        if self.kept is not None:
            self._left -= len(data)
            if self._left < 0:
                self.kept = None
            else:
                self.kept.append(data)
        await self._writer.write(data, is_last=is_last)
