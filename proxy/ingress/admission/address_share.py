"""Of the places at a gate, how many one address may hold with bodies that are still on their way."""

from __future__ import annotations

from proxy.ingress.admission.gate import Gate

SHARE_DIVISOR = 4  # a quarter, rounded up


class AddressShare:
    """What one request holds of its address's shares; `give` may be called again, to no effect."""

    def __init__(self, shares: AddressShares) -> None:
        self._shares = shares
        self.keys: list[tuple[str, str]] = []

    def release(self) -> None:
        held, self.keys = self.keys, []
        for key in held:
            self._shares.release(key)


class AddressShares:
    """A body that is here needs none: only who keeps the app waiting for the rest of it."""

    def __init__(self) -> None:
        self._gates: dict[tuple[str, str], Gate] = {}  # by gate and address; those that nobody needs are dropped

    def __len__(self) -> int:
        return len(self._gates)

    async def acquire(self, share: AddressShare, gate: str, address: str, places: int, size: int, wait: float) -> None:
        """Take one of this address's places of the gate's `places`, in a queue like the gate's own. Raises Shed."""
        key = (gate, address)
        mine = self._gates.get(key)
        if mine is None:
            mine = self._gates[key] = Gate("share_")
        mine.configure(-(-places // SHARE_DIVISOR), size, wait)
        try:
            await mine.acquire(0, "")
        except BaseException:
            self._drop_if_unused(key)
            raise
        share.keys.append(key)

    def release(self, key: tuple[str, str]) -> None:
        self._gates[key].release()
        self._drop_if_unused(key)

    def _drop_if_unused(self, key: tuple[str, str]) -> None:
        gate = self._gates.get(key)
        if gate is not None and not gate.in_flight and not gate.queue:
            del self._gates[key]
