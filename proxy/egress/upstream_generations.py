"""The upstreams of the policy in force, and those of older ones that calls still go by.

A reload begins a generation. A call goes to its end by the one that it began in: waits, retries and fallbacks
too, for a key must never meet another vendor's address. An upstream that no generation in use names any more
retires: what it holds is closed when its last call is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from proxy.egress.http_client import HttpClient
from proxy.egress.upstream import Upstream
from proxy.policy import schema
from proxy.policy.schema import InjectedFault
from proxy.util.background_tasks import BackgroundTasks

OpenUpstream = Callable[[str, schema.Upstream], Upstream]


class UpstreamGenerations(Mapping[str, Upstream]):
    """The newest generation as a mapping by name, and the older ones until their calls are over.

    `open_upstream` makes an upstream that no generation has yet.
    """

    def __init__(self, open_upstream: OpenUpstream) -> None:
        self._open_upstream = open_upstream
        self._newest: dict[str, Upstream] = {}
        self._older: list[dict[str, Upstream]] = []  # with calls under way
        self._closing = BackgroundTasks()

    def __repr__(self) -> str:
        return f"<Generations {', '.join(self._newest) or 'none'}; {len(self._older)} older>"

    def __getitem__(self, name: str) -> Upstream:
        return self._newest[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._newest)

    def __len__(self) -> int:
        return len(self._newest)

    def begin_generation(
        self, wanted: Mapping[str, schema.Upstream], faults: Sequence[InjectedFault]
    ) -> list[Upstream]:
        """Begin a generation. Returns its upstreams whose spend must be counted from the ledger."""
        # An upstream that comes back while calls of an older generation still use it is the one that it was.
        known = {name: upstream for older in self._older for name, upstream in older.items()} | self._newest
        now: dict[str, Upstream] = {}
        uncounted = []
        for name, policy in wanted.items():
            fresh = name not in known
            upstream, recount = (self._open_upstream(name, policy) if fresh else known[name]).with_policy(
                policy, faults
            )
            # Filled as this loop goes on: in the end each sees its whole generation, and no other.
            upstream.siblings = now
            upstream.on_idle = self._retire_unused
            now[name] = upstream
            if fresh or recount:
                uncounted.append(upstream)
        self._older.append(self._newest)
        self._newest = now
        self._retire_unused()
        return uncounted

    async def close(self) -> None:
        """Close every upstream, whatever is under way: the calls had their time before."""
        every = _distinct_upstreams((*self._older, self._newest))
        self._older.clear()
        for upstream in every.values():
            await upstream.close()
        await self._closing.wait()

    def _retire_unused(self) -> None:
        """Let go of generations without calls, and of the upstreams that were in these alone."""
        if not self._older:
            return
        over: list[dict[str, Upstream]] = []
        held: list[dict[str, Upstream]] = []
        # A generation is kept whole: a call of it may still fall back to any of its upstreams.
        for older in self._older:
            (held if any(upstream.in_flight for upstream in older.values()) else over).append(older)
        self._older = held
        kept = _distinct_upstreams((*held, self._newest))
        # In a task: whoever ended the last call does not wait for what closing takes.
        for caller, upstream in _distinct_upstreams(over).items():
            if caller not in kept:
                self._closing.start(upstream.close())


def _distinct_upstreams(generations: Iterable[Mapping[str, Upstream]]) -> dict[HttpClient, Upstream]:
    """Each upstream once: one that several generations have calls out over the same connections in all of them."""
    return {upstream.client: upstream for one in generations for upstream in one.values()}
