"""The breaker of an upstream: one for each endpoint and model that is called, told as one.

A vendor is seldom down as a whole: streams of one model break while embeddings are sound, and a list of models
is answered by other machines than a completion. So calls are judged, and refused, with their like; what is no
inference counts for nothing and is refused by an operator alone. Outside there is one state, the worst, and the
reason says of what.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from proxy.egress.breaker import CLOSED, GAUGE, HELD, OPEN, Breaker, Rule

MOST = 200  # endpoints and models at once; a name of a model is the app's to choose
_LOOKED_AT = 32

Kind = tuple[str, str | None]  # endpoint and model


class Breakers:
    """`on_change(what, state, why, worst)` is told of each breaker's changes: of what, and the state of all then;
    `what` is empty where there is but one, or an operator spoke."""

    def __init__(
        self,
        name: str,
        rule: Rule | None,
        *,
        clock: Callable[[], float],
        on_change: Callable[[str, str, str, str], None] = lambda what, state, why, worst: None,
    ) -> None:
        self.name = name
        self.rule = rule
        self.forced: str | None = None  # an operator's word, until taken back
        self._clock = clock
        self._on_change = on_change
        self._breakers: OrderedDict[Kind, Breaker] = OrderedDict()  # the one longest uncalled first
        self._unwell: dict[Kind, str] = {}  # those that are not closed, as last told
        self._uncounted = Breaker(name, None, clock=clock)
        self._forcing = False
        self._why = ""
        self._since = clock()

    def __repr__(self) -> str:
        calls, failed = self.counts()
        held = ", held by an operator" if self.forced is not None else ""
        return f"<Breaker {self.name}: {self.state}{held}, {failed} of {calls} failed>"

    def of(self, endpoint: str | None, model: str | None, *, counts: bool = True) -> Breaker:
        """The breaker of such calls; without `counts` (no inference) one that only an operator opens."""
        if not counts:
            return self._uncounted
        kind = (endpoint or "", model)
        found = self._breakers.get(kind)
        if found is None:
            return self._made(kind)
        self._breakers.move_to_end(kind)
        return found

    @property
    def state(self) -> str:
        """The worst that there is."""
        if self.forced is not None:
            return self.forced
        return max((breaker.state for breaker in self._breakers.values()), key=GAUGE.__getitem__, default=CLOSED)

    @property
    def why(self) -> str:
        """Why the state is what it is, and of which calls."""
        worst = self._worst()
        if not worst:
            return self._why
        more = f", and {len(worst) - 1} more" if len(worst) > 1 else ""
        return _with(worst[0].why, worst[0].name + more)

    @property
    def since(self) -> float:
        worst = self._worst()
        return min(breaker.since for breaker in worst) if worst else self._since

    @property
    def retry_after(self) -> float:
        """Seconds until a probe may pass, as far as is known; 0 where calls pass."""
        if self.forced == OPEN:
            return self.rule.open if self.rule is not None else HELD
        worst = self._worst()
        return min(breaker.retry_after for breaker in worst) if worst else 0.0

    def counts(self) -> tuple[int, int]:
        """Calls and failures in the window."""
        found = [breaker.counts() for breaker in self._breakers.values()]
        return sum(calls for calls, _ in found), sum(failed for _, failed in found)

    def unwell(self) -> dict[str, str]:
        """What is not closed, by name and state."""
        found = {one.name or self.name: one.state for one in self._breakers.values() if one.state != CLOSED}
        return {} if self.forced is not None else found

    def reconfigure(self, rule: Rule | None) -> None:
        """Take another rule; None: no breaker, everything passes."""
        self.rule = rule
        for breaker in list(self._breakers.values()):
            breaker.reconfigure(rule)

    def force(self, state: str | None) -> None:
        """An operator's word, for all calls: open or closed whatever happens; None: as the calls say, from closed."""
        self.forced = state
        said = {OPEN: "an operator opened it", CLOSED: "an operator closed it"}
        self._why, self._since = said.get(state or "", "an operator gave it back"), self._clock()
        self._forcing = True
        for breaker in (*self._breakers.values(), self._uncounted):
            breaker.force(state)
        self._forcing = False
        self._unwell.clear()
        self._on_change("", state or CLOSED, self._why, state or CLOSED)

    # ── kinds of calls ───────────────────────────────────────────────────────────────────────

    def _made(self, kind: Kind) -> Breaker:
        def changed(state: str, why: str) -> None:
            if self._breakers.get(kind) is made and not self._forcing:
                self._why, self._since = _with(why, made.name), self._clock()
                self._unwell[kind] = state
                if state == CLOSED:
                    del self._unwell[kind]
                worst = max(self._unwell.values(), key=GAUGE.__getitem__, default=CLOSED)
                self._on_change(made.name, state, why, worst)

        made = Breaker(_named(kind), self.rule, clock=self._clock, on_change=changed)
        if self.forced is not None:
            made.force(self.forced)  # nobody is told: it is not among them yet
        self._breakers[kind] = made
        if len(self._breakers) > MOST:
            looked = list(self._breakers.items())[:_LOOKED_AT]
            gone = next((kind for kind, one in looked if one.state == CLOSED), looked[0][0])
            del self._breakers[gone]
            self._unwell.pop(gone, None)
        return made

    def _worst(self) -> list[Breaker]:
        """Those that make the state, where it is not closed and nobody holds it."""
        state = self.state
        if state == CLOSED or self.forced is not None:
            return []
        return [breaker for breaker in self._breakers.values() if breaker.state == state]


def _named(kind: Kind) -> str:
    endpoint, model = kind
    return f"{endpoint} with {model}" if endpoint and model else endpoint


def _with(why: str, what: str) -> str:
    return f"{why} ({what})" if what else why
