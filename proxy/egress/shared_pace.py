"""What instances that share a store tell each other of upstreams: how much they send, and what a vendor asked for.

Rates go by proxy/store/rates.py, calls at once by a lease (proxy/store/leases.py), a vendor's Retry-After by a message.
What a breaker sees, retry budgets and the limits that were learnt from a vendor's header stay each instance's own: a
fault may be that of one instance's network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from proxy.store.interface import SharedStore
from proxy.store.leases import Lease, Measure
from proxy.store.rates import SharedRates

if TYPE_CHECKING:
    from proxy.egress.upstream import Upstream

TOPIC = "pause"


class SharedPace:
    """`upstreams` are those of the policy in force, by name; `clock` is monotonic."""

    def __init__(self, store: SharedStore, upstreams: Mapping[str, Upstream], clock: Callable[[], float]) -> None:
        self._store = store
        self._upstreams = upstreams
        self._clock = clock
        self.rates = SharedRates(store)
        store.subscribe(TOPIC, self._take_pause)

    def join(self, upstream: Upstream) -> None:
        """Pace an upstream of the policy in force together with the others."""
        upstream.throttle.share(self.rates, upstream.name, self._open_lease)
        upstream.throttle.on_pause = partial(self._tell_pause, upstream.name)

    def _open_lease(self, thing: str, total: int, *, measure: Measure, on_change: Callable[[], None]) -> Lease:
        return Lease(
            self._store, thing, total, clock=self._clock, measure=measure, on_change=on_change, takes_share_unheard=True
        )

    def _tell_pause(self, upstream: str, seconds: float, model: str | None, every_model: bool) -> None:
        message = {"upstream": upstream, "seconds": seconds, "model": model, "every_model": every_model}
        self._store.publish(TOPIC, message)

    def _take_pause(self, message: Mapping[str, Any]) -> None:
        upstream = self._upstreams.get(str(message.get("upstream")))
        seconds, model = message.get("seconds"), message.get("model")
        # An instance of another version may say something that this one does not know.
        if upstream is None or not isinstance(seconds, int | float) or not (model is None or isinstance(model, str)):
            return
        upstream.throttle.pause(float(seconds), model, every_model=bool(message.get("every_model")))
