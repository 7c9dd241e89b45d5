"""Responses in the background: reserved while the vendor works, settled once by what it shows, for whom it began."""

import asyncio
import json
import random
import signal

import aiohttp
import psycopg
import pytest
from background_vendor import ASK, COLUMNS, COST, OF_CALLS, PRICES, USAGE, background_vendor, instance, rows
from gateway_process import eventually, gateway
from kill_under_load import calling
from openai import AsyncOpenAI

from proxy.egress.billing import background_calls
from proxy.policy.loading import PolicySource, load_policy

DEAR = COST // 100  # nano-dollars: a reservation is less than that, as long as nothing was learnt


async def test_twenty_deep_researches_cost_what_they_cost(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        ids = [await out.begin() for _ in range(20)]
        assert out.limits.spent("d", "ada") == 0
        assert out.limits.reserved > 0
        for id in ids:
            vendor.move(id, "in_progress")
            assert await out.poll(id) == 200
        assert out.limits.spent("d", "ada") == 0
        for id in ids:
            vendor.finish(id)
            await out.poll(id)
            await out.poll(id)
        assert out.limits.spent("d", "ada") == 20 * COST
        assert out.limits.reserved == 0
        assert await out.counted() == {"reported": pytest.approx(34)}
    found = rows(tmp_path)
    assert len(found) == 20
    assert {row["cost"] for row in found} == {COST}
    assert {(row["user_id"], row["basis"], row["outcome"]) for row in found} == {("ada", "reported", "ok")}
    assert {(row["input_tokens"], row["output_tokens"]) for row in found} == {(100_000, 17_500)}


async def stream_again(out, id):
    return await out.poll(id, "/v1/responses/{id}?stream=true&starting_after=2")


async def cancel(out, id):
    return await out.poll(id, "/v1/responses/{id}/cancel", "POST")


async def ask(out, id):
    return await out.poll(id)


ENDS = {
    "completed, by a poll": ("completed", USAGE, ask, COST, "ok"),
    "completed, by its stream from the middle": ("completed", USAGE, stream_again, COST, "ok"),
    "incomplete": ("incomplete", USAGE, ask, COST, "ok"),
    "failed, with usage": ("failed", USAGE, ask, COST, "error"),
    "failed, without": ("failed", None, ask, 0, "error"),
    "cancelled, with usage": ("cancelled", USAGE, cancel, COST, "gone"),
    "cancelled, without": ("in_progress", None, cancel, 0, "gone"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_each_end_is_paid_as_the_vendor_shows_it(tmp_path, end):
    status, usage, how, cost, outcome = ENDS[end]
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        id = await out.begin()
        vendor.move(id, status, usage)
        assert await how(out, id) == 200
        assert (out.limits.spent("d"), out.limits.reserved, len(out.pending)) == (cost, 0, 0)
    (row,) = rows(tmp_path)
    assert (row["cost"], row["outcome"], row["reference"]) == (cost, outcome, id)


SPELLINGS = {
    "OpenAI": ("/v1", "/v1/responses", "/v1/responses/{id}"),
    "doubled slash": ("/v1", "/v1/responses", "/v1//responses/{id}/"),
    "a proxy's root": ("/api/v1", "/v1/responses", "/v1/responses/{id}"),
    "Azure": ("", "/openai/responses?api-version=2025-03-01", "/openai/responses/{id}?api-version=2025-03-01"),
    "Azure, v1": ("", "/openai/v1/responses", "/openai/v1/responses/{id}"),
}


@pytest.mark.parametrize("name", SPELLINGS)
async def test_it_is_settled_however_the_path_is_spelled(tmp_path, name):
    base, create, poll = SPELLINGS[name]
    async with background_vendor() as vendor, instance(tmp_path, vendor, base=base) as out:
        _, body = await out.call("POST", create, {**ASK, "user": "ada"})
        id = json.loads(body)["id"]
        vendor.finish(id)
        assert await out.poll(id, poll) == 200
        assert out.limits.spent("d", "ada") == COST


async def test_what_is_reserved_counts_against_the_owners_cap_until_it_is_settled(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor, cap="{per_user: $3/d}") as out:
        first = await out.begin()
        vendor.finish(first)
        await out.poll(first)  # now a usual one is known
        second = await out.begin()
        assert out.limits.reserved > DEAR
        status, body = await out.call("POST", "/v1/responses", {**ASK, "user": "ada"})
        assert (status, json.loads(body)["error"]["code"]) == (429, "cost_cap_exceeded")
        assert (await out.call("POST", "/v1/responses", {**ASK, "user": "bob"}))[0] == 200
        await cancel(out, second)
        assert (await out.call("POST", "/v1/responses", {**ASK, "user": "ada"}))[0] == 200


async def test_many_polls_at_once_settle_it_once(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        id = await out.begin()
        vendor.finish(id)
        await asyncio.gather(*(out.poll(id) for _ in range(20)), *(stream_again(out, id) for _ in range(20)))
        assert (out.limits.spent("d"), out.limits.reserved) == (COST, 0)
        assert await out.counted() == {"reported": pytest.approx(1.7)}
    assert [row["cost"] for row in rows(tmp_path)] == [COST]


async def test_a_background_stream_is_paid_by_its_own_end(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        status, body = await out.call("POST", "/v1/responses", {**ASK, "user": "ada", "stream": True})
        assert (status, body.count(b"event:")) == (200, 5)
        assert (out.limits.spent("d", "ada"), out.limits.reserved, len(out.pending)) == (COST, 0, 0)
    (row,) = rows(tmp_path)
    assert (row["cost"], row["basis"], row["input_tokens"]) == (COST, "reported", 100_000)


async def test_a_background_stream_that_was_cut_goes_on_and_is_paid_when_it_is_picked_up_again(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        vendor.cut_after = 3
        _, body = await out.call("POST", "/v1/responses", {**ASK, "user": "ada", "stream": True})
        assert body.count(b"event: response.output_text.delta\n") == 1
        assert out.limits.spent("d") == 0
        assert out.limits.reserved > 0
        await eventually(lambda: [row["outcome"] for row in rows(tmp_path)] == ["open"])
        vendor.cut_after = None
        (id,) = vendor.responses
        assert await stream_again(out, id) == 200
        assert (out.limits.spent("d", "ada"), out.limits.reserved) == (COST, 0)
    assert [row["cost"] for row in rows(tmp_path)] == [COST]


async def test_a_stream_from_its_end_on_passes_as_it_is(tmp_path):
    """It has no event: that is no fault, since nothing was left to tell."""
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        id = await out.begin()
        vendor.finish(id)
        assert await out.call("GET", f"/v1/responses/{id}?stream=true&starting_after=9") == (200, b"")
        assert len(vendor.paths) == 2
        assert len(out.pending) == 1


@pytest.mark.parametrize("silent", [False, True])
async def test_one_that_is_deleted_is_paid_at_its_reservation(tmp_path, silent):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        vendor.says_nothing_of_deleting = silent
        id = await out.begin()
        reserved = out.limits.reserved
        assert await out.poll(id, method="DELETE") in (200, 204)
        assert (out.limits.spent("d", "ada"), out.limits.reserved) == (reserved, 0)
        assert await out.poll(id) == 404
    (row,) = rows(tmp_path)
    assert (row["cost"], row["estimated"], row["basis"]) == (reserved, reserved, "estimated")


async def test_openais_sdk_begins_asks_streams_cancels_and_deletes_as_before(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        async with AsyncOpenAI(base_url=f"{out.url}/openai/v1", api_key="k", max_retries=0) as sdk:
            made = await sdk.responses.create(
                model=ASK["model"], input="Why?", background=True, safety_identifier="ada"
            )
            assert (made.status, made.usage) == ("queued", None)
            assert (await sdk.responses.retrieve(made.id)).status == "queued"
            seen = [event.type async for event in await sdk.responses.retrieve(made.id, stream=True, starting_after=2)]
            assert seen == ["response.output_text.delta", "response.completed"]
            assert (await sdk.responses.retrieve(made.id)).usage.output_tokens == 17_500
            stream = await sdk.responses.create(model=ASK["model"], input="Why?", background=True, stream=True)
            assert [event.type async for event in stream][-1] == "response.completed"
            again = await sdk.responses.create(model=ASK["model"], input="Why?", background=True)
            assert (await sdk.responses.cancel(again.id)).status == "cancelled"
            await sdk.responses.delete(again.id)
            assert (out.limits.spent("d"), out.limits.spent("d", "ada"), out.limits.reserved) == (2 * COST, COST, 0)


async def test_usage_that_comes_after_a_cancellation_without_any_is_still_paid_and_once(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        id = await out.begin()
        await cancel(out, id)
        vendor.responses[id]["usage"] = USAGE
        await asyncio.gather(*(out.poll(id) for _ in range(5)))
        await out.poll(id)
        assert out.limits.spent("d", "ada") == COST
    assert [row["cost"] for row in rows(tmp_path)] == [COST]


async def test_an_answer_without_usage_is_paid_at_no_less_than_its_reservation(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        id = await out.begin()
        reserved = out.limits.reserved
        vendor.move(id, "completed", None)
        await out.poll(id)
        assert (out.limits.spent("d"), out.limits.reserved) == (reserved, 0)


async def test_it_is_settled_by_the_end_of_an_answer_that_is_too_large_to_be_kept(tmp_path):
    """Pictures and files that tools made are in it as base64."""
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        id = await out.begin()
        vendor.finish(id)
        one = vendor.responses[id]
        one["output"].append({"type": "image_generation_call", "id": "i", "result": "A" * (5 << 20)})
        one["usage"] = one.pop("usage")  # behind it
        assert len((await out.call("GET", f"/v1/responses/{id}"))[1]) > 5 << 20
        await eventually(lambda: out.limits.reserved == 0)
        assert out.limits.spent("d", "ada") >= COST


async def test_one_that_nobody_asks_after_is_paid_at_its_reservation_once_nobody_can(tmp_path, monkeypatch):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        await out.begin()
        reserved = out.limits.reserved
        await out.pending.sweep()
        assert len(out.pending) == 1
        monkeypatch.setattr(background_calls, "EXPIRES_AFTER", 0.0)
        await out.pending.sweep()
        assert (out.limits.spent("d", "ada"), out.limits.reserved, len(out.pending)) == (reserved, 0, 0)
    (row,) = rows(tmp_path)
    assert (row["cost"], row["outcome"], row["basis"]) == (reserved, "ok", "estimated")


async def test_others_that_are_asked_for_cost_nothing(tmp_path):
    """What was answered at once has been paid then."""
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        vendor.usage_at_once = True
        id = await out.begin(background=False)
        assert out.limits.spent("d") == COST
        for _ in range(3):
            await out.poll(id)
            await stream_again(out, id)
        assert out.limits.spent("d") == COST
    assert [row["cost"] for row in rows(tmp_path)] == [COST]


async def test_too_many_at_once_count_at_their_reservation_and_are_still_settled_on_record(tmp_path, monkeypatch):
    monkeypatch.setattr(background_calls, "MAX_TRACKED", 3)
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        ids = [await out.begin() for _ in range(5)]
        assert len(out.pending) == 3
        assert out.limits.spent("d") > 0
        for id in ids:
            vendor.finish(id)
            await out.poll(id)
        assert (out.limits.spent("d"), out.limits.reserved) == (5 * COST, 0)
    assert [row["cost"] for row in rows(tmp_path)] == 5 * [COST]


# ── restarts and instances ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_reservation_stands_over_a_restart_and_is_settled_after_it(tmp_path, how):
    async with background_vendor() as vendor:
        async with instance(tmp_path, vendor) as out:
            id = await out.begin()
            reserved = out.limits.reserved
            if how == "killed":
                out.kill()
        assert [row["outcome"] for row in rows(tmp_path)] == ["open"]
        async with instance(tmp_path, vendor) as out:
            assert (out.limits.spent("d", "ada"), out.limits.reserved) == (0, reserved)
            vendor.finish(id)
            await out.poll(id)
            assert (out.limits.spent("d", "ada"), out.limits.reserved) == (COST, 0)
            if how == "killed":
                out.kill()
        async with instance(tmp_path, vendor) as out:
            await out.poll(id)
            assert (out.limits.spent("d", "ada"), out.limits.reserved) == (COST, 0)
    (row,) = rows(tmp_path)
    assert (row["cost"], row["user_id"], row["basis"]) == (COST, "ada", "reported")


async def test_it_stands_for_one_of_whom_a_start_remembers_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.egress.billing.spend_accounts.MAX_USERS", 1)
    async with background_vendor() as vendor:
        async with instance(tmp_path, vendor) as out:
            dear = await out.begin(user="bob")
            vendor.finish(dear)
            await out.poll(dear)
            await out.begin(user="ada")
            id = await out.begin(user="ada")
            await cancel(out, id)
            reserved = out.limits.reserved
        (first, *_) = (id for id, one in vendor.responses.items() if one["status"] == "queued")
        async with instance(tmp_path, vendor) as out:
            assert (out.limits.spent("d"), out.limits.spent("d", "ada"), out.limits.reserved) == (COST, 0, reserved)
            vendor.finish(first)
            await out.poll(first)
            assert (out.limits.spent("d"), out.limits.spent("d", "ada"), out.limits.reserved) == (2 * COST, COST, 0)


async def test_one_whose_answer_never_came_stays_at_its_reservation(tmp_path):
    """Killed before the vendor answered: it may have begun, and nobody has its id."""
    async with background_vendor() as vendor:
        async with instance(tmp_path, vendor) as out:
            vendor.silent = True
            call = asyncio.create_task(out.begin())
            await eventually(lambda: vendor.responses)
            reserved = out.limits.reserved
            out.kill()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        async with instance(tmp_path, vendor) as out:
            assert out.limits.spent("d", "ada") == reserved > 0
    assert [(row["cost"], row["outcome"]) for row in rows(tmp_path)] == [(reserved, "open")]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_instances_that_share_a_ledger_settle_it_once_between_them(tmp_path, kind, request):
    url = ""
    if kind == "postgresql":
        url = request.getfixturevalue("cluster").url(request.getfixturevalue("database"))

    def costs():
        if not url:
            return [row["cost"] for row in rows(tmp_path)]
        with psycopg.connect(url) as connection:
            return [row[COLUMNS.index("cost")] for row in connection.execute(OF_CALLS)]

    async with (
        background_vendor() as vendor,
        instance(tmp_path, vendor, ledger=url) as one,
        instance(tmp_path, vendor, ledger=url) as other,
    ):
        ids = [await one.begin() for _ in range(6)]
        async with instance(tmp_path, vendor, ledger=url) as late:  # knows of them by the ledger
            assert late.limits.reserved == one.limits.reserved > 0
            for id in ids:
                vendor.finish(id)
            egresses = (one, other, late)
            await asyncio.gather(*(egress.poll(id) for id in ids[2:] for egress in egresses for _ in range(3)))
            await late.poll(ids[0])
            await other.poll(ids[1])
            assert costs() == 6 * [COST]
            for egress in egresses:
                await egress.pending.sweep()
            assert (one.limits.spent("d", "ada"), one.limits.reserved) == (6 * COST, 0)
            assert (late.limits.spent("d", "ada"), late.limits.reserved) == (6 * COST, 0)
    assert costs() == 6 * [COST]


async def test_a_gateway_that_is_killed_again_and_again_loses_none_and_doubles_none(tmp_path):
    """Ten callers at once begin responses and ask after them until they are over, while it is killed twice."""
    rng = random.Random(5)
    async with background_vendor() as vendor:
        text = f"""
app: {{attribution: "off"}}
upstreams: {{openai: {{base_url: "http://127.0.0.1:{vendor.port}/v1", {PRICES}}}}}
ledger: {{url: "sqlite:///{tmp_path}/ledger.db"}}
"""
        vendor.polls = 2

        async def caller(url, session):
            while True:
                try:
                    async with session.post(f"{url}/responses", json={**ASK, "user": "ada"}) as answer:
                        said = await answer.json()
                    while said["status"] != "completed":
                        async with session.get(f"{url}/responses/{said['id']}") as answer:
                            said = await answer.json()
                except (aiohttp.ClientError, ConnectionError):
                    return

        for turn in range(3):
            async with gateway(tmp_path, "sleep 1000", policy=text) as g, aiohttp.ClientSession() as session:
                assert await calling(g)
                url = f"http://127.0.0.1:{g.egress}/openai/v1"
                if turn == 2:
                    for id in vendor.responses:
                        vendor.finish(id)
                        async with session.get(f"{url}/responses/{id}") as answer:
                            assert answer.status == 200
                    break
                callers = [asyncio.create_task(caller(url, session)) for _ in range(10)]
                await asyncio.sleep(rng.uniform(0.5, 1.0))
                g.signal(signal.SIGKILL)
                await g.ended()
                await asyncio.gather(*callers)
    found = rows(tmp_path)
    known = {row["reference"]: row["cost"] for row in found if row["reference"]}
    assert len(known) == sum(bool(row["reference"]) for row in found) > 15
    assert set(known.values()) == {COST}
    nameless = [row for row in found if not row["reference"]]  # killed before the vendor's word was on record
    assert {row["outcome"] for row in nameless} <= {"open"}
    assert len(vendor.responses.keys() - known.keys()) <= len(nameless) <= 20


async def test_a_change_of_time_zone_keeps_what_is_reserved(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        id = await out.begin()
        reserved = out.limits.reserved
        text = (
            f"upstreams: {{openai: {{base_url: 'http://127.0.0.1:{vendor.port}/v1', cap: {{timezone: Asia/Tokyo}}}}}}"
        )
        out.egress.apply(load_policy(PolicySource("test", None, text), {}))
        await eventually(lambda: out.limits.reserved == reserved)
        assert out.limits.spent("d") == 0
        vendor.finish(id)
        await out.poll(id)
        assert (out.limits.spent("d", "ada"), out.limits.reserved) == (COST, 0)
