"""After a reload no part goes by a section of the policy before: what is not named as waiting is in force."""

from __future__ import annotations

import asyncio
import gc
import sys
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from gateway_process import APPS
from in_process_gateway import in_process_gateway

PLAIN = (sys.executable, str(APPS / "plain.py"))
SAME = "ledger: {url: 'sqlite:///%s/l.db'}\nroutes: [{name: mine, match: {path: /mine}, concurrency: 3}]\n"
FIRST = "app: {hold: 2s}\nupstreams: {openai: {retry: {attempts: 2}}, anthropic: {}}\n"
SECOND = "app: {hold: 3s}\nupstreams: {openai: {retry: {attempts: 3}}, anthropic: {}}\n"


def sections(value: object) -> Iterator[object]:
    """A policy's sections, itself first; what is only a value (an address, a rate) comes along."""
    if is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in fields(value):
            yield from sections(getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            yield from sections(one)
    elif isinstance(value, types.MappingProxyType):
        for one in value.values():
            yield from sections(one)


async def test_nobody_holds_a_section_of_the_policy_that_was(tmp_path, monkeypatch):
    async with in_process_gateway(tmp_path, monkeypatch, *PLAIN, policy=SAME % tmp_path) as running:
        gateway = running.gateway
        running.reload(SAME % tmp_path + FIRST)
        gateway.rollout.app_policy = gateway.parts.policy  # as after a start of the app
        before = gateway.parts.policy
        running.reload(SAME % tmp_path + SECOND)
        gateway.rollout.app_policy = gateway.parts.policy
        assert running.refused is None
        await asyncio.sleep(0)
        now = {id(one) for one in sections(gateway.parts.policy)}
        old = [one for one in sections(before) if id(one) not in now]  # defaults may be one and the same
        assert len(old) > 30
        mine = {id(one) for one in old} | {id(old)}
        gc.collect()
        held = []
        for one in old:
            for holder in gc.get_referrers(one):
                inside = isinstance(holder, tuple | dict | types.MappingProxyType | types.FrameType | types.CellType)
                if id(holder) not in mine and not inside:
                    held.append(f"{type(one).__name__} by {type(holder).__module__}.{type(holder).__name__}")
        assert held == []
