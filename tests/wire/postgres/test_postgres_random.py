"""Clients at random over one small pool, each beside a direct connection: the same answers, and no state of others."""

from __future__ import annotations

import os

import hypothesis
import postgres_random_steps
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    rule,
    run_state_machine_as_test,
)
from postgres_pair import Pair, alike, kept
from postgres_wire_client import COPY_DONE, SYNC, Wire, bind, call, close, copy_data, copy_fail, execute, parse, query

CLIENTS = 4
# The same examples each time, so that a change which fails is to blame; others by naming other seeds.
EXAMPLES = int(os.environ.get("POSTGRES_EXAMPLES", "12"))
SEEDS = [int(seed) for seed in os.environ.get("POSTGRES_SEED", "3 6 68").split()]
STARTUPS = (
    {}, {}, {}, {"application_name": "app"}, {"options": "-c work_mem=25MB -c app.tenant=started"},
    {"search_path": "other,public"}, {"TimeZone": "Asia/Tokyo", "DateStyle": "SQL"}, {"client_encoding": "'utf-8'"},
    {"extra_float_digits": "2", "statement_timeout": "8000"}, {"default_transaction_read_only": "on"},
)  # fmt: skip


def machine(
    pooler: str, direct: str, controls: list[psycopg.Connection], wrong: list[Exception]
) -> type[RuleBasedStateMachine]:
    slots = st.integers(0, CLIENTS - 1)

    class Clients(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.pairs: dict[int, Pair] = {}

        def come(self, slot: int, **start: str) -> None:
            with kept(wrong):
                self.pairs[slot] = Pair(pooler, direct, slot, wrong, **start)

        def rest(self, *left: Pair) -> None:
            with kept(wrong, [said for pair in left for said in (b"", *pair.said)]):
                alike(controls, unsynced=sum(pair.unsynced for pair in self.pairs.values()))

        def pair(self, slot: int) -> Pair:
            if slot not in self.pairs:
                self.come(slot)
            found = self.pairs[slot]
            if found.unsynced:
                found.sync()
            return found

        @rule(slot=slots, how=st.sampled_from((Wire.drop, Wire.bye, Wire.reset)), start=st.sampled_from(STARTUPS))
        def leave_and_come_back(self, slot, how, start):
            if slot in self.pairs:
                left = self.pairs.pop(slot)
                left.drop(how)
                self.rest(left)
            self.come(slot, **start)

        @rule(slot=slots, text=postgres_random_steps.TEXTS)
        def simple(self, slot, text):
            self.pair(slot).sql(text.format(k=slot))

        @rule(slot=slots, texts=st.lists(postgres_random_steps.TEXTS, min_size=2, max_size=4))
        def simple_in_one_write(self, slot, texts):
            self.pair(slot).ask(*(query(text.format(k=slot)) for text in texts), answers=len(texts))

        @rule(data=st.data(), slot=slots)
        def extended(self, data, slot):
            parts, ready = data.draw(postgres_random_steps.pipeline(slot))
            self.pair(slot).ask(*parts, answers=ready)

        @rule(data=st.data(), slot=slots)
        def extended_without_a_sync(self, data, slot):
            self.pair(slot).flushed(*data.draw(postgres_random_steps.step(slot)))

        @rule(slot=slots, a=st.integers(0, 3))
        def function_call(self, slot, a):
            self.pair(slot).ask(call(154, 6, a))  # int4div: by zero at times

        @rule(
            slot=slots,
            rows=st.lists(st.sampled_from((b"c\n", b"d\n", b"bad\tline\n")), max_size=4),
            end=st.sampled_from((COPY_DONE, copy_fail("no more"))),
            extended=st.booleans(),
        )
        def copy_in(self, slot, rows, end, extended):
            text = f"copy own_{slot} (said) from stdin"
            start = [close("S", "in"), parse(text, "in"), bind((), "in"), execute()] if extended else [query(text)]
            self.pair(slot).ask(*start, *map(copy_data, rows), end, *([SYNC] if extended else []))

        @rule(slot=slots)
        def cancel_of_nothing(self, slot):
            """Late, as cancels are: whoever is on the connection by now must not notice."""
            pair = self.pair(slot)
            pair.pooler.cancel()
            pair.direct.cancel()

        @rule(slot=slots, other=slots)
        def facts(self, slot, other):
            for each in (slot, other):
                self.pair(each).facts()

        @rule(slot=slots)
        def hear(self, slot):
            self.pair(slot).settle()

        def teardown(self) -> None:
            for pair in self.pairs.values():
                pair.drop()
            self.rest(*self.pairs.values())

    return Clients


def at_random(
    pooler: str, direct: str, controls: list[psycopg.Connection], examples: int, seed: int | None = None
) -> None:
    """Raises what went wrong first; with the time of the database in it no case is found again by making it smaller."""
    first: list[Exception] = []
    whole = machine(pooler, direct, controls, first)
    try:
        run_state_machine_as_test(
            whole if seed is None else hypothesis.seed(seed)(whole),
            settings=settings(
                max_examples=examples,
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            ),
        )
    except BaseException:
        if first:
            raise first[0] from None
        raise


@pytest.mark.parametrize("seed", SEEDS)
# The door in its thread may call `random` while the machine draws; nothing that is drawn hangs on it.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
def test_clients_at_random_hear_what_they_hear_direct_and_nothing_of_each_other(poolers, seed: int) -> None:
    with (
        poolers(pool={"min": 0, "max": CLIENTS + 1, "wait": "20s"}, pin={"max": CLIENTS}) as pooler,
        poolers.beside() as direct,
        pooler.cluster.control(pooler.database) as behind,
        pooler.cluster.control(direct.rpartition("/")[2]) as beside,
    ):
        at_random(pooler.url, direct, [behind, beside], EXAMPLES, seed)
        pooler.clean()
