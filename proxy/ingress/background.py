"""Accepting a request that is to run later (RFC 7240, `respond-async`): what the pipeline's `_accept_task` is made of.

The request is read whole, is on the disk, and only then is answered with 202 and the address at which it can be asked
for. A key that came before (Idempotency-Key) is answered with what became of the task that has it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from proxy.errors import Refusal
from proxy.http.client_connection import ClientConnection
from proxy.http.prefer import Preferences, parse_prefer
from proxy.http.problem import cors_headers, http_date
from proxy.http.protocol_upgrade import requested_upgrade
from proxy.http.request_errors import bad_request, body_too_large
from proxy.http.retry_after import round_retry_after
from proxy.ingress.exchange import Exchange
from proxy.ingress.headers import VIA, is_preflight, limit_header_lines
from proxy.ingress.response_writer import connection_line
from proxy.ingress.route_timeouts import within_total
from proxy.tasks.database import TasksUnavailable
from proxy.tasks.record import NewTask, Task, TaskRequest, TaskResponse, cut_id, hash_key, new_id
from proxy.tasks.view import task_location, task_view
from proxy.units import parse_duration

if TYPE_CHECKING:
    from proxy.tasks.service import TaskService

MAX_DELAY = 30 * 86400.0  # seconds
EXPOSED = b"Location, Preference-Applied"  # to a page of another origin, beside what a refusal shows
UNAVAILABLE_RETRY_AFTER = 5.0  # seconds
BODILESS = (204, 304)  # RFC 9110 section 6.4.1
REASONS = {200: b"OK", 202: b"Accepted", 204: b"No Content"}
# What a client gets that waited for an answer and for which there will be none: as if it had not been a task.
_FAILURES = {
    "timeout": ("timeout", 504, "Gateway timeout"),
    "blocked": ("blocked", 403, "Blocked"),
}


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """A request that has been read and may be kept. `wait`: seconds that its client waits for the app's answer."""

    new: NewTask
    wait: float | None


class BackgroundRequests:
    """The steps of accepting a task. `find_service` gives the queue, None if no policy has named it yet."""

    def __init__(
        self, find_service: Callable[[], TaskService | None], *, clock: Callable[[], float] = time.time
    ) -> None:
        self.find_service = find_service
        self._clock = clock

    def wants(self, x: Exchange) -> bool:
        """Whether a request of a route with `background` is to run later."""
        if is_preflight(x):
            return False
        return x.route.background.mode == "always" or preferences_of(x).respond_async

    async def read(self, connection: ClientConnection, x: Exchange) -> AcceptedRequest:
        """Read the whole request. Raises Refusal: 400 if it cannot run later, 413 if it is too large to be kept."""
        service = self._service()
        upgrade = requested_upgrade(x.joined_header("Connection"), x.joined_header("Upgrade"))
        accepted = [kind.partition(";")[0].strip() for kind in (x.joined_header("Accept") or "").lower().split(",")]
        if upgrade is not None or accepted == ["text/event-stream"]:
            detail = "A stream or an upgrade cannot be answered later; ask this route without them."
            raise bad_request(detail)
        delay, run_at = self._parse_delay(x.headers.get("Outrigger-Delay"))
        callback = await self._check_callback(service, x.headers.get("Outrigger-Callback"))
        body = await _read_body(connection, x, service.policy.max_body)
        fields = x.raw_headers
        if "Host" not in x.headers:
            fields = (*fields, (b"Host", connection.local_authority().encode()))
        request = TaskRequest(
            x.method,
            x.target.encode("utf-8", "surrogateescape"),
            fields,
            body,
            x.peer,
            x.chunked,
            x.request_id,
            x.trace_id,
        )
        key = x.headers.get("Idempotency-Key")
        new = NewTask(
            new_id(),
            x.route.name,
            _storable(x.user),
            x.tier,
            request,
            delay=delay,
            run_at=run_at,
            key=hash_key(key) if key else None,
            callback=callback,
            max_queued=x.route.background.max_queued,
        )
        return AcceptedRequest(new, preferences_of(x).wait)

    async def find_known(self, x: Exchange, accepted: AcceptedRequest) -> Task | None:
        """The task that this request's Idempotency-Key has already. Raises Refusal (422 if it was another request)."""
        new = accepted.new
        if new.key is None:
            return None
        try:
            task = await self._service().find_by_key(new.route, new.user, new.key)
        except TasksUnavailable as away:
            raise unavailable(away) from away
        if task is not None:
            _check_same_request(task, new)
        return task

    async def submit(self, x: Exchange, accepted: AcceptedRequest) -> tuple[Task, bool]:
        """Keep the request: it is on the disk afterwards. The task, and whether its key had one already.

        Raises Refusal: 503 if the queue is full or away, 422 if the key is another request's.
        """
        service, new = self._service(), accepted.new
        try:
            added = await service.submit(new)
        except TasksUnavailable as away:
            raise unavailable(away) from away
        if added.task is None:
            detail = f"{new.max_queued} requests of this route wait already ({new.route}: background.max_queued)."
            seconds = service.expected_full_seconds(new.route)
            raise Refusal("queue-full", 503, "Queue full", detail, retry_after=seconds)
        if added.existed:
            _check_same_request(added.task, new)
        return added.task, added.existed

    async def answer(self, connection: ClientConnection, x: Exchange, accepted: AcceptedRequest, task: Task) -> bool:
        """Answer a request that was accepted: with 202, or with the app's answer if the client waits for it and it
        comes in time. True if the connection may serve another one."""
        service = self._service()
        if accepted.wait:
            began = self._clock()
            try:
                found = await service.wait_for_end(task.id, accepted.wait)
                if found is not None and found.has_ended:
                    result = await service.result(task.id)
                    x.waited_seconds += max(0.0, self._clock() - began)
                    if result is not None:
                        return write_result(connection, x, result)
                    x.reached_app = True  # it has run: its limits stay counted
                    raise _failure(found)
                task = found or task
            except TasksUnavailable:
                pass  # it is accepted all the same, and can be asked for later
        location = task_location(task.id)
        body = {"id": task.id, "status": "queued", "location": location}
        lines = [b"Preference-Applied: respond-async\r\n", *_location_lines(service, task)]
        return write_json(connection, x, 202, body, lines)

    def write_view(self, connection: ClientConnection, x: Exchange, task: Task) -> bool:
        """Answer as a GET of the task would be, with its location."""
        service = self._service()
        status = 200 if task.has_ended else 202
        return write_json(connection, x, status, task_view(task), _location_lines(service, task))

    def _service(self) -> TaskService:
        service = self.find_service()
        if service is None:
            raise unavailable(TasksUnavailable("the queue is not open yet"))
        return service

    async def _check_callback(self, service: TaskService, text: str | None) -> str | None:
        if text is None:
            return None
        from proxy.tasks.callback_url import check_callback, resolve_name

        url = await check_callback(text, service.policy.callbacks, service.policy.secret, resolve_name)
        return url.text

    def _parse_delay(self, text: str | None) -> tuple[float, float]:
        """`Outrigger-Delay`: seconds from now, and the time at the earliest; one of them is 0. Raises Refusal (400)."""
        if text is None:
            return 0.0, 0.0
        try:
            delay, run_at = parse_duration(text.strip()), 0.0
        except ValueError:
            delay, run_at = 0.0, _parse_date(text.strip())
        if max(delay, run_at - self._clock()) > MAX_DELAY:
            raise bad_request("Outrigger-Delay is more than 30 days.")
        return delay, run_at


def preferences_of(x: Exchange) -> Preferences:
    return parse_prefer(x.joined_header("Prefer"))


def unavailable(away: TasksUnavailable) -> Refusal:
    """The queue's database is away. What exactly is wrong is for operators (health, log)."""
    detail = "Requests that run later cannot be kept at the moment; come again."
    refusal = Refusal("tasks-unavailable", 503, "Tasks unavailable", detail, retry_after=UNAVAILABLE_RETRY_AFTER)
    refusal.__cause__ = away
    return refusal


def write_json(connection: ClientConnection, x: Exchange, status: int, body: object, lines: list[bytes]) -> bool:
    """An answer about a task, which a page of another origin may read. True if the connection may serve another
    request."""
    lines = [b"Content-Type: application/json\r\nCache-Control: no-store\r\n", *lines]
    lines += [b"%s: %s\r\n" % pair for pair in cors_headers(x.origin, also=EXPOSED)]
    return _write(connection, x, status, REASONS.get(status, b""), lines, json.dumps(body).encode() + b"\n")


def write_result(connection: ClientConnection, x: Exchange, result: TaskResponse) -> bool:
    """The app's own answer, as it came. True if the connection may serve another request."""
    lines = [b"%s: %s\r\n" % pair for pair in result.fields]
    x.reached_app = True
    return _write(connection, x, result.status, result.reason, lines, result.body, is_from_app=True)


def write_empty(connection: ClientConnection, x: Exchange, lines: list[bytes]) -> bool:
    """204. True if the connection may serve another request."""
    lines = [b"Cache-Control: no-store\r\n", *lines]
    lines += [b"%s: %s\r\n" % pair for pair in cors_headers(x.origin, also=EXPOSED)]
    return _write(connection, x, 204, REASONS[204], lines, b"")


def _write(
    connection: ClientConnection,
    x: Exchange,
    status: int,
    reason: bytes,
    lines: list[bytes],
    body: bytes,
    *,
    is_from_app: bool = False,
) -> bool:
    keep_alive = not (x.should_close or connection.draining or connection.body_incomplete)
    written = [b"HTTP/1.1 %d %s\r\n" % (status, reason)]
    names = {line.partition(b":")[0].lower() for line in lines}
    if b"date" not in names:
        written.append(b"Date: %s\r\n" % http_date(int(time.time())))
    written += lines
    if status not in BODILESS:
        written.append(b"Content-Length: %d\r\n" % len(body))
    if b"x-request-id" not in names:
        written.append(b"X-Request-Id: %s\r\n" % x.request_id.encode())
    written += limit_header_lines(x)
    if x.route.background.mode == "prefer":
        written.append(b"Vary: Prefer\r\n")
    written += [VIA, connection_line(x, keep_alive=keep_alive), b"\r\n"]
    if x.method != "HEAD" and status not in BODILESS:
        written.append(body)
        x.bytes_out += len(body)
    connection.write(b"".join(written))
    x.status = status
    x.response_started = connection.response_started = True
    return keep_alive


def _location_lines(service: TaskService, task: Task) -> list[bytes]:
    lines = [b"Location: %s\r\n" % task_location(task.id).encode()]
    return lines if task.has_ended else [*lines, retry_after_line(service, task)]


def retry_after_line(service: TaskService, task: Task) -> bytes:
    return b"Retry-After: %d\r\n" % round_retry_after(service.expected_seconds(task))


async def _read_body(connection: ClientConnection, x: Exchange, max_bytes: int) -> bytes:
    """All of the body. Raises Refusal (413 if it is too large, 504 if the client is too slow for the route's
    `total`)."""
    limit = max_bytes if x.max_body is None else min(max_bytes, x.max_body)
    if int(x.headers.get("Content-Length") or 0) > limit:
        raise body_too_large(limit)
    if not (x.http10 or x.body.is_eof()) and "100-continue" in (x.headers.get("Expect") or "").lower():
        connection.write_continue(b"HTTP/1.1 100 Continue\r\n\r\n")
    pieces: list[bytes] = []
    async with within_total(x):
        while not x.body.at_eof():
            piece = await x.body.readany()
            x.bytes_in += len(piece)
            if x.bytes_in > limit:
                raise body_too_large(limit)
            pieces.append(piece)
    return b"".join(pieces)


def _check_same_request(task: Task, new: NewTask) -> None:
    if task.fingerprint != new.request.fingerprint():
        detail = "This Idempotency-Key came with another method, target or body before."
        raise Refusal("idempotency-mismatch", 422, "Another request has this key", detail)


def _failure(task: Task) -> Refusal:
    """What a client that waited gets if there is no answer of the app's."""
    name, status, title = _FAILURES.get(task.reason, ("app-unreachable", 502, "Bad gateway"))
    # The detail of a refusal is shown to operators too, who should not be able to fetch what the task is about.
    detail = f"The task {cut_id(task.id)} {task.shown_state} without an answer ({task.reason or 'by its owner'})."
    return Refusal(name, status, title, detail)


def _parse_date(text: str) -> float:
    """A date of HTTP (RFC 9110 section 5.6.7) or of RFC 3339, as Unix seconds. Raises Refusal (400)."""
    moment: datetime | None = None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):  # which of them depends on Python's version
            pass
    if moment is None:
        raise bad_request("Outrigger-Delay is neither a time such as 10m nor a date.")
    try:
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return (aware - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)
    except OverflowError:
        raise bad_request("Outrigger-Delay is no date that can be counted.") from None


def _storable(text: str) -> str:
    """A user's name as a database takes it: what is no UTF-8 is replaced, and NUL is not there."""
    # `surrogatepass`: a name may come out of JSON, which can escape half of a pair (RFC 8259 section 8.2).
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\0", "")
