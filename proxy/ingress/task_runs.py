"""The way of a task to the app: an exchange made of what the queue kept, which goes through the pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import PeerUnreachable, Refusal
from proxy.http.messages import Body
from proxy.http.retry_after import wait_from_headers
from proxy.ingress.exchange import Exchange, path_from_target
from proxy.ingress.pipeline import RequestPipeline
from proxy.ingress.ports import AppBackend
from proxy.ingress.response_collector import ResultTooLarge
from proxy.observe.emit import EmitEvent
from proxy.policy.schema import Route
from proxy.tasks.record import ClaimedTask, TaskRequest, TaskResponse
from proxy.tasks.retry_rules import TryResult

# The relay's refusals, in the words of a task. What is not here says that the app did not get the request.
_REASONS = {"timeout": "timeout", "blocked": "blocked"}


class KeptBody:
    """A body that is here whole."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.total_bytes = len(data)

    def is_eof(self) -> bool:
        return True

    def at_eof(self) -> bool:
        return not self._data

    def read_nowait(self, n: int = -1) -> bytes:
        data, self._data = self._data, b""
        return data

    async def readany(self) -> bytes:
        return self.read_nowait()

    def exception(self) -> BaseException | None:
        return None


class TaskRuns:
    """Fulfils `TaskRunner`. `clock` is the loop's, `now` the wall clock."""

    def __init__(
        self,
        pipeline: RequestPipeline,
        backend: AppBackend,
        *,
        clock: Callable[[], float],
        emit: EmitEvent,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._pipeline = pipeline
        self._backend = backend
        self._clock = clock
        self._emit = emit
        self._now = now

    @property
    def is_ready(self) -> bool:
        return self._backend.is_ready

    async def run_task(self, claimed: ClaimedTask, timeout: float, max_result: int) -> TryResult:
        x = self._exchange_of(claimed)
        reason, detail, response = "", "", None
        try:
            response = await self._pipeline.run_task(x, self._route_of(claimed, timeout), max_result)
        except Refusal as refusal:
            # `draining` and `app-starting` are the app that is away: it never got the request.
            reason, detail = _REASONS.get(refusal.name, "connect"), refusal.detail
        except PeerUnreachable as error:
            reason, detail = ("reset" if x.reached_app else "connect"), str(error)
        except ResultTooLarge as error:
            reason, detail = "max_result", str(error)
        except Exception as error:  # the outermost seam: a bug costs one try, not the worker
            reason, detail = "fault", f"{type(error).__name__}: {error}"
            self._emit("fault", detail, level="error", request_id=x.request_id)
        return TryResult(
            reason,
            detail,
            response,
            retry_after=None if response is None else self._retry_after(response),
            seconds=self._clock() - x.received_at,
            app_seconds=x.app_seconds,
            bytes_in=x.bytes_in,
            bytes_out=x.bytes_out,
            calls=x.calls,
            cost=x.cost or 0,
        )

    def find_route(self, request: TaskRequest, user: str) -> tuple[str, str]:
        rules = self._pipeline.rules
        path = path_from_target(request.target.decode("utf-8", "surrogateescape"))
        return rules.routes.match(request.method, path).name, rules.identifier.match_tier(user)

    def _exchange_of(self, claimed: ClaimedTask) -> Exchange:
        task, request = claimed.task, claimed.request
        fields = [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in request.fields]
        body: Body = KeptBody(request.body)
        x = Exchange(
            request.method,
            request.target.decode("utf-8", "surrogateescape"),
            CIMultiDictProxy(CIMultiDict(fields)),
            request.fields,
            body,
            peer=request.peer,
            received=self._clock(),
            chunked=request.chunked,
        )
        x.request_id = request.request_id
        x.trace_id = request.trace_id
        x.user, x.tier = task.user, task.tier
        x.task = (task.id, task.attempts)
        return x

    def _route_of(self, claimed: ClaimedTask, timeout: float) -> Route:
        """The task's route, with the bounds of a task in place of its own: its limits were counted when it was
        accepted, and its places are the queue's."""
        path = path_from_target(claimed.request.target.decode("utf-8", "surrogateescape"))
        route = self._pipeline.rules.route_of_task(claimed.task.route, claimed.request.method, path)
        return replace(
            route,
            name=claimed.task.route,
            timeout=None,
            total=timeout,
            concurrency=None,
            streams=None,
            max_body=None,
            # An app may close an idle connection at any time: every try has a fresh one, tried once.
            retries=type(route.retries)(),
        )

    def _retry_after(self, response: TaskResponse) -> float | None:
        fields = {name.lower(): value for name, value in response.fields}

        def header(name: str) -> str | None:
            value = fields.get(name.encode())
            return None if value is None else value.decode("latin-1")

        return wait_from_headers(header, self._now())
