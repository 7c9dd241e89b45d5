"""Reports faults of the gateway and crashes of the app to Sentry: the type and the place in the code, never the
content.

sentry-sdk is an extra (`outrigger[sentry]`), imported only if a DSN is set, since it takes 5 MiB. Its client is used
alone, without `init`: no integration, no hook, no breadcrumb, no trace. The message of an exception may contain
anything (a URL with a password, a user's words), so only its type and its frames are sent.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from proxy.policy.schema import Sentry as Policy

if TYPE_CHECKING:
    from sentry_sdk import Client

FAULT_EVENTS = frozenset({"fault", "gateway.fault", "admin.error"})
# their messages contain nothing from outside
CRASH_EVENTS = frozenset({"app.exit", "app.give-up", "app.hung", "app.start-timeout"})
REPEAT_SECONDS = 60.0  # seconds until a group is sent again
MAX_GROUPS = 100  # of which the last sending is remembered
MAX_FRAMES = 50


class SentryReporter:
    """Takes events from any thread. Sentry's client sends them in a thread of its own, and drops what is too much."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._last_sent: OrderedDict[str, float] = OrderedDict()

    def capture_event(self, event: str, message: str, attributes: Mapping[str, object]) -> None:
        """Report an event of level error, if it is a crash or a fault; most events are neither."""
        if event in CRASH_EVENTS:
            self._capture_group(event, message, None, attributes)
        elif event in FAULT_EVENTS:
            self._capture_group(event, "A fault of the gateway", sys.exc_info()[1], attributes)

    def capture_exception(self, error: BaseException) -> None:
        """Report an exception that nobody caught."""
        self._capture_group("fault", "A fault of the gateway", error, {})

    def handle_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler: reports the exception, then does what the default one does."""
        error = context.get("exception")
        if isinstance(error, Exception):
            self.capture_exception(error)
        loop.default_exception_handler(context)

    def close(self) -> None:
        """Send what waits; blocks for at most 2 s."""
        self._client.close(timeout=2.0)

    def _capture_group(
        self, event: str, message: str, error: BaseException | None, attributes: Mapping[str, object]
    ) -> None:
        group = [event, str(attributes.get("status", ""))]
        report: dict[str, object] = {"level": "error", "logger": "outrigger", "tags": {"event": event}}
        if error is None:
            report["message"] = message
        else:
            frames = [
                {"filename": _shorten_path(frame.filename), "function": frame.name, "lineno": frame.lineno}
                for frame in traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
            ]
            kind = type(error)
            group += [kind.__name__, *(f"{frame['filename']}:{frame['function']}" for frame in frames[-1:])]
            value = {"type": kind.__name__, "module": kind.__module__, "value": message}
            report["exception"] = {"values": [{**value, **({"stacktrace": {"frames": frames}} if frames else {})}]}
        # A fault in a loop would fill Sentry's quota: one report a minute for each group is enough.
        if not self._may_repeat("|".join(group)):
            return
        report["fingerprint"] = group
        if isinstance(attributes.get("request_id"), str):
            report["tags"] = {"event": event, "request_id": attributes["request_id"]}
        self._client.capture_event(report)  # type: ignore[arg-type]

    def _may_repeat(self, group: str) -> bool:
        now = self._clock()
        last = self._last_sent.get(group)
        if last is not None and now - last < REPEAT_SECONDS:
            return False
        self._last_sent[group] = now
        self._last_sent.move_to_end(group)
        if len(self._last_sent) > MAX_GROUPS:
            self._last_sent.popitem(last=False)
        return True


def connect_sentry(policy: Policy, *, version: str, clock: Callable[[], float]) -> SentryReporter | None:
    """A reporter; None if no DSN is set, or the package is not installed (the policy's warning says so)."""
    if policy.dsn is None:
        return None
    try:
        from sentry_sdk import Client
    except ImportError:
        return None
    client = Client(
        policy.dsn,
        environment=policy.environment,
        release=f"outrigger@{version}",
        default_integrations=False,
        auto_enabling_integrations=False,
        send_default_pii=False,
        include_local_variables=False,
        include_source_context=False,
        max_breadcrumbs=0,
        auto_session_tracking=False,
        send_client_reports=False,
        propagate_traces=False,
        enable_backpressure_handling=False,
    )
    return SentryReporter(client, clock)


def _shorten_path(filename: str) -> str:
    """The path from the package's folder on, since where the environment is installed must not be sent."""
    for mark in ("/site-packages/", "/proxy/"):
        at = filename.rfind(mark)
        if at >= 0:
            return filename[at + 1 :].removeprefix("site-packages/")
    return filename.rsplit("/", 1)[-1]
