"""The right token opens at once; wrong ones are slowed for whoever shows them, and for nobody else."""

from __future__ import annotations

import asyncio

import pytest

from proxy.admin.auth import FORGET_SECONDS, MAX_PEERS, TokenAuthenticator
from proxy.errors import Refusal


class Time:
    """A clock, and a sleep that notes how long it was asked for; while `held` is not set it does not end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.held = asyncio.Event()
        self.held.set()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.held.wait()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def gate(time: Time) -> TokenAuthenticator:
    return TokenAuthenticator("geheim-é", clock=time.clock, sleep=time.sleep)


@pytest.mark.parametrize("header", ["Bearer geheim-é", "bearer  geheim-é ", "BEARER geheim-é"])
async def test_the_right_token_opens(gate: TokenAuthenticator, header: str) -> None:
    assert await gate.authenticate(header, "1.2.3.4")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "geheim-é", "Basic geheim-é", "Bearer geheim", "Bearer \udcff"]
)
async def test_anything_else_does_not(gate: TokenAuthenticator, header: str | None) -> None:
    assert not await gate.authenticate(header, "1.2.3.4")


@pytest.mark.parametrize("header", ["Bearer ", "Bearer x", None])
async def test_an_empty_token_opens_to_nobody(time: Time, header: str | None) -> None:
    assert not await TokenAuthenticator("", clock=time.clock).authenticate(header, "1.2.3.4")


async def guess(gate: TokenAuthenticator, times: int, peer: str = "1.2.3.4") -> None:
    for _ in range(times):
        assert not await gate.authenticate("Bearer wrong", peer)


async def test_each_guess_past_the_third_waits_longer_up_to_a_bound(gate: TokenAuthenticator, time: Time) -> None:
    await guess(gate, 8)
    assert time.slept == [0.5, 1, 2, 4, 4]


async def test_a_peer_that_guessed_does_not_slow_another(gate: TokenAuthenticator, time: Time) -> None:
    await guess(gate, 6)
    slept = len(time.slept)
    assert await gate.authenticate("Bearer geheim-é", "5.6.7.8")
    assert not await gate.authenticate("Bearer wrong", "5.6.7.8")
    assert len(time.slept) == slept


async def test_addresses_of_one_network_are_one_peer(gate: TokenAuthenticator, time: Time) -> None:
    for number in range(5):
        assert not await gate.authenticate("Bearer wrong", f"2001:db8::{number}")
    assert len(time.slept) == 2


async def test_the_right_token_ends_the_slowness(gate: TokenAuthenticator, time: Time) -> None:
    await guess(gate, 4)
    assert await gate.authenticate("Bearer geheim-é", "1.2.3.4")
    slept = len(time.slept)
    await guess(gate, 1)
    assert len(time.slept) == slept


async def test_failures_are_forgotten(gate: TokenAuthenticator, time: Time) -> None:
    await guess(gate, 5)
    slept = len(time.slept)
    time.now += FORGET_SECONDS + 1
    await guess(gate, 1)
    assert len(time.slept) == slept


async def test_only_four_attempts_of_a_peer_wait_and_more_are_refused_unlooked_at(
    gate: TokenAuthenticator, time: Time
) -> None:
    await guess(gate, 3)
    time.held.clear()
    waiting = [asyncio.create_task(gate.authenticate("Bearer wrong", "1.2.3.4")) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Refusal) as refused:
        await gate.authenticate("Bearer geheim-é", "1.2.3.4")
    assert (refused.value.status, refused.value.name) == (429, "too-many-guesses")
    assert await gate.authenticate("Bearer geheim-é", "5.6.7.8")
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    time.held.set()
    assert await gate.authenticate("Bearer geheim-é", "1.2.3.4")
    assert await asyncio.gather(*waiting[1:]) == [False] * 3


async def test_remembered_peers_are_bounded(gate: TokenAuthenticator) -> None:
    for number in range(MAX_PEERS + 500):
        assert not await gate.authenticate("Bearer wrong", f"10.0.{number // 256}.{number % 256}")
    assert len(gate._peers) == MAX_PEERS
