"""Deploys that overlap, and instances that are killed, under load: no request above a limit, none refused in vain."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from gateway_process import APPS, GatewayProcess, gateway
from store_servers import StoreServer, valkey_server

PLAIN = (sys.executable, str(APPS / "plain.py"))
POLICY = """
  drain: 5s
store: {url: '%s', prefix: %s, timeout: 5s}
identity: {user: [{header: X-User}]}
ledger: {url: 'sqlite:///%s/ledger.db'}
routes: [{name: made, match: {path: /*}, rate_limit: [10/h, 2000/h]}]
"""
USERS = 30


class Platform:
    """What routes requests to whichever instances there are, as a platform does during a deploy."""

    def __init__(self) -> None:
        self.serving: list[GatewayProcess] = []
        self.answers: dict[str, Counter[str]] = {}

    async def ask(self, user: str) -> str:
        """One request's status; one that no instance took is sent again, one that broke is not."""
        while True:
            instance = random.choice(self.serving)
            try:
                answer = await instance.request("/", headers=[f"X-User: {user}"])
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            except OSError:
                answer = b""
            if answer.startswith(b"HTTP/1.1 503"):  # it drains: the platform takes another
                await asyncio.sleep(0.01)
                continue
            status = answer[9:12].decode() or "broken"
            self.answers.setdefault(user, Counter())[status] += 1
            return status

    async def ready(self, instance: GatewayProcess) -> None:
        await instance.ready()
        self.serving.append(instance)


def policy_of(server: StoreServer, folder: Path) -> str:
    return POLICY % (server.url, server.prefix, folder)


@pytest.mark.timeout(300)
async def test_an_overlapping_deploy_admits_exactly_n_for_every_user(tmp_path: Path) -> None:
    platform = Platform()
    with valkey_server() as server:
        async with AsyncExitStack() as stack:

            async def deploy(name: str) -> GatewayProcess:
                (tmp_path / name).mkdir()
                made = await stack.enter_async_context(
                    gateway(tmp_path / name, *PLAIN, policy=policy_of(server, tmp_path / name))
                )
                await platform.ready(made)
                return made

            async def visit(user: str) -> None:
                for _ in range(10):
                    await asyncio.sleep(random.random() / 2)
                    assert await platform.ask(user) == "200"

            old = await deploy("old")
            visits = asyncio.gather(*(visit(f"user-{number}") for number in range(USERS)))
            new = await deploy("new")
            await asyncio.sleep(0.5)
            platform.serving.remove(old)
            assert await old.stop() == 0
            await deploy("newer")
            await visits
            # Ten each, not one more and not one less, wherever they came in.
            assert {tuple(one.items()) for one in platform.answers.values()} == {(("200", 10),)}
            for number in range(USERS):
                assert await platform.ask(f"user-{number}") == "429"
            assert all(not event["message"].count("Until it is back") for event in new.events("store"))


@pytest.mark.timeout(300)
async def test_instances_that_are_killed_under_load_forget_nothing_that_they_admitted(tmp_path: Path) -> None:
    platform = Platform()
    with valkey_server() as server:
        async with AsyncExitStack() as stack:

            async def deploy(name: str) -> GatewayProcess:
                (tmp_path / name).mkdir()
                made = await stack.enter_async_context(
                    gateway(tmp_path / name, *PLAIN, policy=policy_of(server, tmp_path / name))
                )
                await platform.ready(made)
                return made

            async def visit(user: str) -> None:
                for _ in range(16):
                    await asyncio.sleep(random.random() / 3)
                    await platform.ask(user)

            made = [await deploy("one"), await deploy("two")]
            visits = asyncio.gather(*(visit(f"user-{number}") for number in range(USERS)))
            for turn in range(2):
                await asyncio.sleep(1.0)
                victim = made.pop(0)
                platform.serving.remove(victim)
                victim.signal(signal.SIGKILL)
                made.append(await deploy(f"next-{turn}"))
            await visits
            for user, answers in platform.answers.items():
                # What broke may have been counted: it was admitted, and its instance died before it answered.
                assert answers["200"] <= 10, (user, answers)
                assert answers["200"] + answers["broken"] >= 10, (user, answers)
