"""Circuit breakers: calls that would fail anyway are refused at once (Nygard, "Release It!", 2007).

    from        to          when                                                               calls pass
    closed      open        `min_calls` in the window, and `failure_ratio` of them failed      all
    open        half-open   `open` seconds are over                                            none
    half-open   closed      `probes` probes succeeded, or nothing was asked for a window       a few probes
    half-open   open        a probe failed
    any         any         an operator says so, until he takes it back

A call is judged at its end, not each of its attempts: with half of the attempts failing and four tries, 94 % of the
calls succeed. Each change begins an era, and what was admitted in an earlier one has no say any more: the late failures
of an outage must not undo the recovery.

States and their names are pybreaker's, which also tells its listeners of each change. What it lacks is here: a sliding
window by ratio instead of failures in a row, a monotonic clock, as many probes as asked for and few more while these
take their time, and eras. Its own `call` is not used: it cannot await, lets any number of probes through, and counts
what was cancelled as a failure.

A vendor is seldom down as a whole: streams of one model break while embeddings are sound, and a list of models is
answered by other machines than a completion. So an upstream has a breaker for each endpoint and model
(UpstreamBreakers), and calls are judged, and refused, with their like. What is no inference counts for nothing and is
refused by an operator alone. Outside there is one state, the worst, and the reason says of what.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from proxy.util.optional_modules import hide_modules
from proxy.util.sliding_window import SlidingWindow

with hide_modules("tornado"):  # which it would take along if that is installed, 1.5 MiB
    import pybreaker

CLOSED, HALF_OPEN, OPEN = pybreaker.STATE_CLOSED, pybreaker.STATE_HALF_OPEN, pybreaker.STATE_OPEN
FORCED_OPEN_SECONDS = 60.0  # after which to ask again, if an operator holds a breaker open that has no rule
PROBE_INTERVAL = 1.0  # seconds, after which another probe may pass beside one that has not ended: answers take minutes
MAX_PROBES = 5  # under way at once, if the rule asks for fewer
MAX_BREAKERS = 200  # endpoints and models at once; a name of a model is the app's to choose
EVICTION_CANDIDATES = 32  # the longest uncalled, of which a closed one goes first
STATE_GAUGE = {CLOSED: 0, HALF_OPEN: 1, OPEN: 2}


class BreakerRule(Protocol):
    """The policy's breaker, of an upstream or of other hosts. Times in seconds, shares 0 to 1."""

    @property
    def window(self) -> float: ...
    @property
    def min_calls(self) -> int: ...
    @property
    def failure_ratio(self) -> float: ...
    @property
    def open(self) -> float: ...
    @property
    def probes(self) -> int: ...


class Admission:
    """A call that a breaker let through, to be reported to it once.

    Attributes:
        breaker: the one that admitted it.
        era: the breaker's era at that moment.
        probe: whether it was let through half-open.
        admitted_at: by the clock, in seconds.
        pending: whether it has not been reported yet.
    """

    __slots__ = ("admitted_at", "breaker", "era", "pending", "probe")

    def __init__(self, breaker: Breaker, era: int, probe: bool, began: float) -> None:
        self.breaker = breaker
        self.era = era
        self.probe = probe
        self.admitted_at = began
        self.pending = True


class Breaker:
    """The breaker of one kind of calls. `on_change(state, why)` is called at every change of state.

    Attributes:
        name: of what; shown in reasons.
        rule: the policy's; None lets everything pass.
        reason: why the state is what it is, in words.
        since: when it became so, by the clock, in seconds.
        forced: the state that an operator holds it in; None if the calls decide.
    """

    def __init__(
        self,
        name: str,
        rule: BreakerRule | None,
        *,
        clock: Callable[[], float],
        on_change: Callable[[str, str], None] = lambda state, why: None,
    ) -> None:
        self.name = name
        self._clock = clock
        self._state = pybreaker.CircuitBreaker(name=name, listeners=[_ChangeListener(self, on_change)])
        # `reconfigure` below gives it the length of the rule, if there is one.
        self._window = SlidingWindow(60.0, clock)
        self._era = 0
        self._probe_at = 0.0  # when an open breaker lets a probe through
        self._probing = 0
        self._probed_at = 0.0
        self._succeeded = 0
        self.reason = ""
        self.since = clock()
        self.forced: str | None = None  # an operator's word, until taken back
        self.reconfigure(rule)

    def __repr__(self) -> str:
        calls, failed = self._window.counts()
        left = f", {self.retry_after:.0f} s left" if self.state == OPEN and self.forced is None else ""
        left += ", held by an operator" if self.forced is not None else ""
        return f"<Breaker {self.name}: {self.state}{left}, {failed} of {calls} failed>"

    @property
    def state(self) -> str:
        self._advance_by_time()
        return self._state.current_state

    @property
    def retry_after(self) -> float:
        """Seconds until a probe may pass, as far as is known; 0 if calls pass."""
        if self.forced == OPEN:
            return self.rule.open if self.rule is not None else FORCED_OPEN_SECONDS
        return max(0.0, self._probe_at - self._clock()) if self._state.current_state == OPEN else 0.0

    def counts(self) -> tuple[int, int]:
        """Calls and failures in the window."""
        return self._window.counts()

    def reconfigure(self, rule: BreakerRule | None) -> None:
        """Take another rule; None: no breaker, everything passes."""
        self.rule = rule
        if rule is None:
            if self._state.current_state != CLOSED and self.forced is None:
                self._close("the policy has no breaker any more")
        elif rule.window != self._window.seconds:
            self._window = SlidingWindow(rule.window, self._clock)

    def admit(self) -> Admission | None:
        """Let a call through, or not: None while open, or while the probes are under way."""
        self._advance_by_time()
        state = self._state.current_state
        if state == OPEN:
            return None
        probe = state == HALF_OPEN
        if probe:
            if self.rule is None or not self._may_probe(self.rule):
                return None
            # Given back by `report`; a change of state before that begins the count anew.
            self._probing += 1
            self._probed_at = self._clock()
        return Admission(self, self._era, probe, self._clock())

    def still_admits(self, admission: Admission) -> bool:
        """Whether what let this call through still stands: its next attempt may go."""
        # One that has closed since lets everything pass, so an earlier era does not matter.
        return admission.era == self._era or self._state.current_state == CLOSED

    def report(self, admission: Admission, ok: bool | None, *, seconds: float = 0.0) -> None:
        """A call's end: good, a failure, or (None) nothing that says anything of the upstream.

        `seconds` is what `slow_call` is compared with. Called again for an admission it does nothing.
        """
        if not admission.pending:
            return
        admission.pending = False
        if admission.era != self._era:
            return
        # A probe that says nothing gives its turn back, so that another may go.
        if admission.probe:
            self._probing -= 1
        if ok is None or self.rule is None:
            return
        # Only the rule of an upstream has it; other hosts' answers are not timed.
        slow_call = getattr(self.rule, "slow_call", None)
        slow = slow_call is not None and seconds > slow_call
        failed = not ok or slow
        if admission.probe:
            self._report_probe(failed)
            return
        # While an operator holds the breaker, calls are still counted but change nothing.
        self._window.add(marked=failed)
        calls, failures = self._window.counts()
        if self.forced is None and calls >= self.rule.min_calls and failures >= self.rule.failure_ratio * calls:
            if failures:  # with a ratio of 0 not even one is needed
                self._open(f"{failures} of the last {calls} calls failed")

    def force(self, state: str | None) -> None:
        """An operator's word: open or closed whatever happens; None: as the calls say, from closed."""
        self.forced = state
        if state == OPEN:
            self._open("an operator opened it")
        else:
            self._close("an operator closed it" if state == CLOSED else "an operator gave it back")

    def _may_probe(self, rule: BreakerRule) -> bool:
        """Whether a probe may go: so many at once as the rule has, and one more each PROBE_INTERVAL up to MAX_PROBES.

        So a slow probe does not delay recovery, and many at once do not overrun an upstream that has just come back.
        """
        if self._probing < rule.probes:
            return True
        return self._probing < MAX_PROBES and self._clock() >= self._probed_at + PROBE_INTERVAL

    def _report_probe(self, failed: bool) -> None:
        assert self.rule is not None
        if failed:
            self._open("the probe failed")
            return
        self._succeeded += 1
        if self._succeeded >= self.rule.probes:
            self._close("the probe succeeded")

    def _advance_by_time(self) -> None:
        """Make the changes that time alone brings: open to half-open, and half-open without calls to closed."""
        # No timer does it: the state is brought up to date whenever somebody asks for it.
        state = self._state.current_state
        if state == CLOSED or self.forced is not None:
            return
        if state == OPEN and self._clock() >= self._probe_at:
            self._begin_era("a probe may pass")
            self._state.half_open()
        # A model that nobody calls any more would stay half-open, and be the upstream's worst state, for ever.
        elif state == HALF_OPEN and not self._probing and self._clock() >= self.since + self._window.seconds:
            self._close("nothing has been asked of it since")

    def _open(self, why: str) -> None:
        # The era begins first: the listener of the change reads the reason that it sets.
        self._begin_era(why)
        self._probe_at = self._clock() + (self.rule.open if self.rule is not None else FORCED_OPEN_SECONDS)
        self._state.open()

    def _close(self, why: str) -> None:
        self._begin_era(why)
        # The failures that opened it must not open it again at the first call.
        self._window.clear()
        self._state.close()

    def _begin_era(self, why: str) -> None:
        self._era += 1
        self._probing = self._succeeded = 0
        self.reason = why
        self.since = self._clock()


class _ChangeListener(pybreaker.CircuitBreakerListener):
    def __init__(self, breaker: Breaker, on_change: Callable[[str, str], None]) -> None:
        self._breaker = breaker
        self._on_change = on_change

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        # pybreaker also tells of a state that is set again.
        if old_state is None or old_state.name != new_state.name:
            self._on_change(new_state.name, self._breaker.reason)


Kind = tuple[str, str | None]  # endpoint and model


class UpstreamBreakers:
    """The breakers of an upstream, one for each endpoint and model that was called of late.

    Attributes:
        name: the upstream's.
        rule: the policy's, for each of them; None lets everything pass.
        forced: the state that an operator holds them in; None if the calls decide.

    `on_change(what, state, why, worst)` is called at each breaker's changes: of what calls, its new state, the reason,
    and the worst state of all then. `what` is empty if the calls name neither endpoint nor model, or an operator spoke.
    """

    def __init__(
        self,
        name: str,
        rule: BreakerRule | None,
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
        self._not_closed: dict[Kind, str] = {}  # those that are not closed, as last told
        # Of calls that are no inference: without a rule only an operator opens it.
        self._uncounted = Breaker(name, None, clock=clock)
        self._forcing = False
        self._reason = ""
        self._since = clock()

    def __repr__(self) -> str:
        calls, failed = self.counts()
        held = ", held by an operator" if self.forced is not None else ""
        return f"<Breaker {self.name}: {self.state}{held}, {failed} of {calls} failed>"

    def breaker_of(self, endpoint: str | None, model: str | None, *, counts: bool = True) -> Breaker:
        """The breaker of such calls; without `counts` (no inference) one that only an operator opens."""
        if not counts:
            return self._uncounted
        kind = (endpoint or "", model)
        found = self._breakers.get(kind)
        if found is None:
            return self._create_breaker(kind)
        # The order is that of the last call, by which breakers are evicted.
        self._breakers.move_to_end(kind)
        return found

    @property
    def state(self) -> str:
        """The worst state of all breakers, or the one that an operator holds them in."""
        if self.forced is not None:
            return self.forced
        return max((breaker.state for breaker in self._breakers.values()), key=STATE_GAUGE.__getitem__, default=CLOSED)

    @property
    def reason(self) -> str:
        """Why the state is what it is, and of which calls."""
        worst = self._worst_breakers()
        if not worst:
            return self._reason
        more = f", and {len(worst) - 1} more" if len(worst) > 1 else ""
        return _reason_of_kind(worst[0].reason, worst[0].name + more)

    @property
    def since(self) -> float:
        worst = self._worst_breakers()
        return min(breaker.since for breaker in worst) if worst else self._since

    @property
    def retry_after(self) -> float:
        """Seconds until a probe may pass, as far as is known; 0 if calls pass."""
        if self.forced == OPEN:
            return self.rule.open if self.rule is not None else FORCED_OPEN_SECONDS
        worst = self._worst_breakers()
        return min(breaker.retry_after for breaker in worst) if worst else 0.0

    def counts(self) -> tuple[int, int]:
        """Calls and failures in the window."""
        found = [breaker.counts() for breaker in self._breakers.values()]
        return sum(calls for calls, _ in found), sum(failed for _, failed in found)

    def not_closed(self) -> dict[str, str]:
        """The states of the breakers that are not closed, by name; none while an operator holds them."""
        found = {one.name or self.name: one.state for one in self._breakers.values() if one.state != CLOSED}
        return {} if self.forced is not None else found

    def reconfigure(self, rule: BreakerRule | None) -> None:
        """Take another rule; None: no breaker, everything passes."""
        self.rule = rule
        for breaker in list(self._breakers.values()):
            breaker.reconfigure(rule)

    def force(self, state: str | None) -> None:
        """An operator's word, for all calls: open or closed whatever happens; None: as the calls say, from closed."""
        self.forced = state
        said = {OPEN: "an operator opened it", CLOSED: "an operator closed it"}
        self._reason, self._since = said.get(state or "", "an operator gave it back"), self._clock()
        # One change is reported for all of them, below.
        self._forcing = True
        for breaker in (*self._breakers.values(), self._uncounted):
            breaker.force(state)
        self._forcing = False
        self._not_closed.clear()
        self._on_change("", state or CLOSED, self._reason, state or CLOSED)

    # ── kinds of calls ───────────────────────────────────────────────────────────────────────

    def _create_breaker(self, kind: Kind) -> Breaker:
        def changed(state: str, why: str) -> None:
            # One that was evicted meanwhile may still have calls under way: they change nothing outside.
            if self._breakers.get(kind) is made and not self._forcing:
                self._reason, self._since = _reason_of_kind(why, made.name), self._clock()
                self._not_closed[kind] = state
                if state == CLOSED:
                    del self._not_closed[kind]
                worst = max(self._not_closed.values(), key=STATE_GAUGE.__getitem__, default=CLOSED)
                self._on_change(made.name, state, why, worst)

        made = Breaker(_kind_name(kind), self.rule, clock=self._clock, on_change=changed)
        if self.forced is not None:
            made.force(self.forced)  # nobody is told: it is not among them yet
        self._breakers[kind] = made
        if len(self._breakers) > MAX_BREAKERS:
            # A closed one has nothing to lose but its window; an open one still protects somebody.
            looked = list(self._breakers.items())[:EVICTION_CANDIDATES]
            gone = next((kind for kind, one in looked if one.state == CLOSED), looked[0][0])
            del self._breakers[gone]
            self._not_closed.pop(gone, None)
        return made

    def _worst_breakers(self) -> list[Breaker]:
        """The breakers whose state is the worst; none if that is closed or an operator holds them."""
        state = self.state
        if state == CLOSED or self.forced is not None:
            return []
        return [breaker for breaker in self._breakers.values() if breaker.state == state]


def _kind_name(kind: Kind) -> str:
    endpoint, model = kind
    return f"{endpoint} with {model}" if endpoint and model else endpoint


def _reason_of_kind(why: str, what: str) -> str:
    return f"{why} ({what})" if what else why
