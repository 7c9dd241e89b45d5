"""What an operator can do to the running gateway; each action says in a sentence what it did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import uuid4

from proxy.app.supervisor import Supervisor
from proxy.egress.circuit_breaker import CLOSED, OPEN
from proxy.errors import Refusal
from proxy.ingress.identity import canonical_user
from proxy.ledger.store import ForgivenSpend
from proxy.ledger.user_marks import MAX_BLOCKED_USERS, TooManyBlocked
from proxy.observe.reserved_users import UNATTRIBUTED
from proxy.units import format_nanos

if TYPE_CHECKING:
    from proxy.gateway import Gateway

RESTART_TIMEOUT = 10.0  # seconds that an operator waits for the app to be back
BREAKER_STATES = {"open": OPEN, "close": CLOSED, "auto": None}
BREAKER_SENTENCES = {
    "open": "open until `auto`: its calls fall back or are refused",
    "close": "closed until `auto`: its calls pass, whatever became of the last ones",
    "auto": "given back to its window, and closed",
}


class GatewayCommands:
    """Those of `ctl`, on the parts of a gateway. `now` is the wall clock."""

    def __init__(self, gateway: Gateway, *, now: Callable[[], float] = time.time) -> None:
        self._gateway = gateway
        self._now = now

    async def block_user(self, user: str) -> str:
        user = canonical_user(user)
        try:
            trouble = await self._gateway.marks.block(user)
        except TooManyBlocked:
            text = (
                f"{MAX_BLOCKED_USERS:,} users are blocked already; unblock some, or refuse them all by a rate_limit of"
                " a tier."
            )
            raise Refusal("too-many-blocked", 409, "Too many users are blocked", text) from None
        cut = self._gateway.door.abort_tunnels(user)
        ended = f", {cut} open WebSocket{'s' if cut > 1 else ''} ended" if cut else ""
        return f"{user} is blocked: every request of theirs is refused with 403{ended}{_describe_unrecorded(trouble)}."

    async def unblock_user(self, user: str) -> str:
        user = canonical_user(user)
        marks = self._gateway.marks
        if user not in marks.users and marks.loaded:
            raise Refusal("not-blocked", 404, "Not blocked", f"{user} is not blocked; {self._list_blocked()}.")
        trouble = await marks.unblock(user)
        return f"{user} is not blocked any more{_describe_unrecorded(trouble)}."

    async def forgive_user(self, user: str) -> str:
        user = user if user == UNATTRIBUTED else canonical_user(user)  # calls of nobody have a cap too
        await self._gateway.egress.spend.load_user(user)
        taken = self._gateway.egress.spend.forgive(user)
        if not taken:
            return f"{user} has spent nothing today that counts against a cap."
        at = self._now()
        trouble = await self._gateway.marks.forgive(
            [ForgivenSpend(uuid4().hex, at, upstream, user, period, amount) for upstream, period, amount in taken]
        )
        today = sum(amount for _, period, amount in taken if period == "d")
        text = f"${format_nanos(today)} that {user} spent today counts against none of their caps any more"
        return f"{text}; reports still show it{_describe_unrecorded(trouble)}."

    async def force_breaker(self, upstream: str, word: str) -> str:
        found = self._gateway.egress.upstreams.get(upstream)
        if found is None:
            known = ", ".join(self._gateway.egress.upstreams) or "none: the policy names no upstream"
            raise Refusal("unknown-upstream", 404, "No such upstream", f"{upstream} is no upstream; there are {known}.")
        if word == "auto" and found.breaker.forced is None:
            return f"The breaker of {upstream} is not held; it is {found.breaker.state} by its window."
        found.breaker.force(BREAKER_STATES[word])
        return f"The breaker of {upstream} is {BREAKER_SENTENCES[word]}."

    async def reload_policy(self) -> str:
        gateway = self._gateway
        gateway.reloader.reload(gateway.reload)
        refused = gateway.reloader.refused
        if refused is not None:
            text = f"The running policy stays in force, the new one cannot be taken:\n{refused}"
            raise Refusal("policy-refused", 422, "The policy cannot be taken", text)
        return gateway.reloader.describe()

    async def restart_app(self) -> str:
        gateway = self._gateway
        app = gateway.app
        if not isinstance(app, Supervisor):
            text = "Something else runs the app (app.url or app.port); restart it there."
            raise Refusal("not-ours", 409, "Not ours to restart", text)
        if gateway.stopping or not app.is_ready:
            state = "the gateway is draining" if gateway.stopping else f"the app is {app.state}: {app.reason}"
            raise Refusal("not-now", 409, "Not now", f"There is nothing to restart now, {state}; try again later.")
        try:
            async with asyncio.timeout(RESTART_TIMEOUT):
                back = await app.replace("reload")
        except TimeoutError:  # it goes on
            return f"The app is being replaced; its requests wait up to {gateway.policy.app.hold:g} s (app.hold)."
        if not back:
            raise Refusal("not-now", 409, "Not now", f"The app did not come back, it is {app.state}: {app.reason}.")
        return "The app was replaced."

    def _list_blocked(self) -> str:
        users = list(self._gateway.marks.users)
        if not users:
            return "nobody is"
        more = f" and {len(users) - 10} more" if len(users) > 10 else ""
        return f"these are: {', '.join(users[:10])}{more}"


def _describe_unrecorded(trouble: str | None) -> str:
    return "" if trouble is None else f"; not on record yet, so a restart would forget it ({trouble})"
