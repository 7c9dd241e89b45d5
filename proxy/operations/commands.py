"""The operator's commands on the running gateway; each returns a sentence that says what it did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from uuid import uuid4

from proxy.app.supervisor import Supervisor
from proxy.egress.circuit_breaker import CLOSED, OPEN
from proxy.errors import Refusal
from proxy.ingress.identity import canonical_user
from proxy.ledger.store import ForgivenSpend
from proxy.ledger.user_marks import MAX_BLOCKED_USERS, TooManyBlocked
from proxy.operations.reloader import Reloader
from proxy.operations.task_report import find_service, find_task, tasks_unavailable
from proxy.parts import Parts
from proxy.policy.schema import Route
from proxy.tasks.database import TasksUnavailable
from proxy.tasks.record import cut_id
from proxy.units import format_nanos
from proxy.util.user_names import UNATTRIBUTED

RESTART_TIMEOUT = 10.0  # seconds that the command waits for the app to be ready again
BREAKER_STATES = {"open": OPEN, "close": CLOSED, "auto": None}
BREAKER_SENTENCES = {
    "open": "open until `auto`: its calls fall back or are refused",
    "close": "closed until `auto`: its calls pass, whatever became of the last ones",
    "auto": "given back to its window, and closed",
}


class GatewayCommands:
    """The commands of `/ctl` (`OperatorCommands` of the admin room). `wall_clock` returns Unix time; `on_block` and
    `on_breaker` tell the other instances: a user and whether they are blocked, an upstream and how it is held.
    """

    def __init__(
        self,
        parts: Parts,
        reloader: Reloader,
        *,
        wall_clock: Callable[[], float] = time.time,
        on_block: Callable[[str, bool], None] = lambda user, blocked: None,
        on_breaker: Callable[[str, str | None], None] = lambda upstream, word: None,
    ) -> None:
        self._on_block = on_block
        self._on_breaker = on_breaker
        self._parts = parts
        self._reloader = reloader
        self._wall_clock = wall_clock

    async def block_user(self, user: str) -> str:
        user = canonical_user(user)
        try:
            trouble = await self._parts.user_marks.block(user)
        except TooManyBlocked:
            text = (
                f"{MAX_BLOCKED_USERS:,} users are blocked already; unblock some, or refuse them all by a rate_limit of"
                " a tier."
            )
            raise Refusal("too-many-blocked", 409, "Too many users are blocked", text) from None
        self._on_block(user, True)
        # A tunnel was let through before the block, and nothing would look at it again.
        cut = self._parts.ingress.abort_tunnels(user)
        ended = f", {cut} open WebSocket{'s' if cut > 1 else ''} ended" if cut else ""
        return f"{user} is blocked: every request of theirs is refused with 403{ended}{_describe_unrecorded(trouble)}."

    async def unblock_user(self, user: str) -> str:
        user = canonical_user(user)
        marks = self._parts.user_marks
        # Before the ledger was read nobody knows who is blocked, so the command goes through and is recorded.
        if user not in marks.blocked_users and marks.loaded:
            raise Refusal("not-blocked", 404, "Not blocked", f"{user} is not blocked; {self._list_blocked()}.")
        self._on_block(user, False)
        trouble = await marks.unblock(user)
        return f"{user} is not blocked any more{_describe_unrecorded(trouble)}."

    async def forgive_user(self, user: str) -> str:
        user = user if user == UNATTRIBUTED else canonical_user(user)  # calls of no user have a cap, too
        # The user's spend may still be in the ledger alone: forgiving less than was spent would surprise later.
        await self._parts.egress.spend.load_user(user)
        taken = await self._parts.egress.spend.forgive(user)
        if not taken:
            return f"{user} has spent nothing today that counts against a cap."
        # One moment for all of them: a report shows them as one act.
        at = self._wall_clock()
        trouble = await self._parts.user_marks.forgive(
            [ForgivenSpend(uuid4().hex, at, upstream, user, period, amount) for upstream, period, amount in taken]
        )
        today = sum(amount for _, period, amount in taken if period == "d")
        text = f"${format_nanos(today)} that {user} spent today counts against none of their caps any more"
        return f"{text}; reports still show it{_describe_unrecorded(trouble)}."

    async def force_breaker(self, upstream: str, word: str) -> str:
        found = self._parts.egress.upstreams.get(upstream)
        if found is None:
            known = ", ".join(self._parts.egress.upstreams) or "none: the policy names no upstream"
            raise Refusal("unknown-upstream", 404, "No such upstream", f"{upstream} is no upstream; there are {known}.")
        # There is nothing to give back: only `open` and `close` hold a breaker.
        if word == "auto" and found.breakers.forced is None:
            return f"The breaker of {upstream} is not held; it is {found.breakers.state} by its window."
        found.breakers.force(BREAKER_STATES[word])
        self._on_breaker(upstream, None if word == "auto" else word)
        return f"The breaker of {upstream} is {BREAKER_SENTENCES[word]}."

    async def reload_policy(self) -> str:
        self._reloader.reload()
        refused = self._reloader.refused
        if refused is not None:
            text = f"The running policy stays in force, the new one cannot be taken:\n{refused}"
            raise Refusal("policy-refused", 422, "The policy cannot be taken", text)
        return self._reloader.describe()

    async def restart_app(self) -> str:
        app, stopping = self._parts.app, self._parts.state.stopping
        # Only an app that we started can be started again by us.
        if not isinstance(app, Supervisor):
            text = "Something else runs the app (app.url or app.port); restart it there."
            raise Refusal("not-ours", 409, "Not ours to restart", text)
        if stopping or not app.is_ready:
            state = "the gateway is draining" if stopping else f"the app is {app.state}: {app.reason}"
            raise Refusal("not-now", 409, "Not now", f"There is nothing to restart now, {state}; try again later.")
        try:
            # `replace` shields the replacement from this timeout: an operator who stops waiting does not stop it.
            async with asyncio.timeout(RESTART_TIMEOUT):
                back = await app.replace("reload")
        except TimeoutError:  # the replacement itself goes on
            return f"The app is being replaced; its requests wait up to {self._parts.policy.app.hold:g} s (app.hold)."
        if not back:
            raise Refusal("not-now", 409, "Not now", f"The app did not come back, it is {app.state}: {app.reason}.")
        return "The app was replaced."

    async def purge_cache(self, route: str, path: str | None) -> str:
        """Forget the answers that a route keeps; without a path also those of an upstream of that name."""
        routes = {one.name: one for one in self._parts.policy.routes}
        calls = self._purge_calls(route) if path is None else None
        if route in routes:
            return " ".join(filter(None, (self._purge_route(routes[route], path), calls)))
        if calls is not None:
            return calls
        known = f"{', '.join(routes)}; upstreams that keep answers: {', '.join(self._caching_upstreams()) or 'none'}"
        raise Refusal("unknown-route", 404, "No such route", f"{route} is no route; there are {known}.")

    def _caching_upstreams(self) -> list[str]:
        return [name for name, upstream in self._parts.egress.upstreams.items() if upstream.policy.cache.ttl]

    def _purge_calls(self, upstream: str) -> str | None:
        """What an upstream forgot; None if there is none of that name, or it keeps nothing."""
        if upstream not in self._caching_upstreams():
            return None
        return self._describe_purge(f"The upstream {upstream}", self._parts.egress.purge_cache(upstream), "")

    def _purge_route(self, found: Route, path: str | None) -> str:
        cache = self._parts.ingress.cache
        route = found.name
        if found.cache is None or cache is None:
            return f"{route} keeps no answers (routes: {route}: cache), so there is nothing to forget."
        # A path is emptied whatever the query, so one that was pasted with its query means the path.
        bare = None if path is None else path.partition("?")[0]
        where = "" if bare is None else f" to {bare}, whatever the query, the host and the user"
        return self._describe_purge(route, cache.purge(route, bare), where)

    def _describe_purge(self, who: str, count: int, where: str) -> str:
        what = f"{count} answer{'' if count == 1 else 's'}"
        others = ", and so do the other instances" if self._parts.store.is_shared else ""
        return f"{who} forgot {what}{where}{others}."

    async def cancel_task(self, id: str) -> str:
        from proxy.tasks.overview import TaskOverview  # loaded with the queue

        service = find_service(self._parts)
        try:
            task = await find_task(TaskOverview(service.database), id)
            before = await service.cancel(task.id)
        except TasksUnavailable as away:
            raise tasks_unavailable(away) from away
        if before is None or before.has_ended:
            text = f"The task {cut_id(task.id)} has ended already: {(before or task).shown_state}."
            raise Refusal("task-ended", 409, "It has ended", text)
        was = "ran, and lost its connection to the app" if before.state == "running" else "waited"
        return f"The task {cut_id(task.id)} of {task.route} is cancelled; it {was}."

    async def retry_task(self, id: str) -> str:
        from proxy.tasks.overview import TaskOverview  # loaded with the queue

        service = find_service(self._parts)
        try:
            task = await find_task(TaskOverview(service.database), id)
            after = await service.retry(task.id)
        except TasksUnavailable as away:
            raise tasks_unavailable(away) from away
        if after is None:
            why = "its request is not kept any more" if task.state == "failed" else f"it is {task.shown_state}"
            text = f"Only a task that failed, or that waits for its next try, can be tried again; {why}."
            raise Refusal("not-retryable", 409, "Cannot be tried again", text)
        return f"The task {cut_id(task.id)} of {task.route} is queued again, as if it had never been tried."

    def _list_blocked(self) -> str:
        users = list(self._parts.user_marks.blocked_users)
        if not users:
            return "nobody is"
        more = f" and {len(users) - 10} more" if len(users) > 10 else ""
        return f"these are: {', '.join(users[:10])}{more}"


def _describe_unrecorded(trouble: str | None) -> str:
    return "" if trouble is None else f"; not on record yet, so a restart would forget it ({trouble})"
