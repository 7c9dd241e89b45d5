"""How many of the places at a gate one address may hold with bodies that are still on their way.

Without it one client could take every place by sending its bodies slowly (the "slow POST" attack).
"""

from __future__ import annotations

from proxy.ingress.admission.gate import Gate

SHARE_DIVISOR = 4  # of a gate's places: a quarter, rounded up


class AddressShare:
    """What one request holds of its address's shares. `release` may be called again, to no effect."""

    def __init__(self, shares: AddressShares) -> None:
        self._shares = shares
        self.keys: list[tuple[str, str]] = []

    def release(self) -> None:
        held, self.keys = self.keys, []
        for key in held:
            self._shares.release(key)


class AddressShares:
    """The shares of all addresses. Only a request that keeps the app waiting for its body needs one."""

    def __init__(self) -> None:
        self._gates: dict[tuple[str, str], Gate] = {}  # by gate and address, while somebody needs it

    def __len__(self) -> int:
        return len(self._gates)

    async def acquire(self, share: AddressShare, gate: str, address: str, places: int, size: int, wait: float) -> None:
        """Take one of this address's share of the gate's `places`, in a queue like the gate's own. Raises Shed."""
        key = (gate, address)
        gate_of_address = self._gates.get(key)
        if gate_of_address is None:
            gate_of_address = self._gates[key] = Gate("share_")
        gate_of_address.configure(-(-places // SHARE_DIVISOR), size, wait)
        try:
            await gate_of_address.acquire(0, "")
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
