"""What a store does for several instances: membership, messages, small values. Real servers of both kinds."""

from __future__ import annotations

import asyncio

import pytest
from gateway_process import eventually
from store_servers import StoreServer, instances, new_instance

from proxy.store.interface import MAX_MESSAGE_BYTES, MAX_VALUE_BYTES


async def test_instances_know_of_each_other_and_forget_who_has_left(server: StoreServer) -> None:
    async with instances(server, 2, region="oregon") as (one, two):
        await eventually(lambda: one.store.instances == two.store.instances == 2)
        assert {member.id for member in one.store.members} == {one.store.instance_id, two.store.instance_id}
        assert {member.region for member in one.store.members} == {"oregon"}
        assert one.store.members == two.store.members or await eventually(
            lambda: one.store.members == two.store.members
        )
        late = new_instance(server)
        await late.store.start()
        assert late.store.instances == 3  # it knows the others from its start on
        await late.store.stop()
        await eventually(lambda: one.store.instances == 2, timeout=5)


async def test_a_message_is_heard_by_every_other_instance_once(server: StoreServer) -> None:
    async with instances(server, 3) as (one, two, three):
        heard: dict[str, list[object]] = {"one": [], "two": [], "three": []}
        for name, instance in (("one", one), ("two", two), ("three", three)):
            instance.store.subscribe("block", lambda message, name=name: heard[name].append(message["user"]))
        for user in range(120):
            one.store.publish("block", {"user": user})
        two.store.publish("block", {"user": "é ' \" \\ {"})
        await eventually(lambda: len(heard["three"]) == 121 and len(heard["two"]) == 120 and len(heard["one"]) == 1)
        assert heard["two"] == list(range(120))
        assert heard["one"] == ["é ' \" \\ {"]
        await asyncio.sleep(1.0)
        assert len(heard["three"]) == 121


async def test_who_comes_later_does_not_hear_what_was_said_before(server: StoreServer) -> None:
    async with instances(server, 1) as (one,):
        one.store.publish("block", {"user": "early"})
        await one.store.get("nothing")  # it leaves in the same write, ahead of the message
        await one.store.get("nothing")  # and this one behind it
        heard: list[object] = []
        late = new_instance(server)
        late.store.subscribe("block", heard.append)
        await late.store.start()
        one.store.publish("block", {"user": "late"})
        await eventually(lambda: heard)
        assert heard == [{"user": "late"}]
        await late.store.stop()


async def test_a_message_that_nobody_can_read_ends_nothing(server: StoreServer) -> None:
    async with instances(server, 2) as (one, two):
        heard: list[object] = []
        two.store.subscribe("block", lambda message: heard.append(message["user"]))
        one.store.publish("block", {"somebody": "else"})
        one.store.publish("block", {"user": "known"})
        await eventually(lambda: heard == ["known"])
        assert [text for event, text in two.events if event == "store"] == [
            "A message about block cannot be read: 'user'."
        ]
        with pytest.raises(ValueError):
            one.store.publish("block", {"user": "x" * MAX_MESSAGE_BYTES})


async def test_values_are_kept_as_long_as_asked_and_no_longer(server: StoreServer) -> None:
    async with instances(server, 2) as (one, two):
        data = bytes(range(256)) * 400
        await one.store.set("answer", data, 60)
        assert await two.store.get("answer") == data
        assert await two.store.get("another") is None
        await one.store.set("answer", b"", 60)
        assert await two.store.get("answer") == b""
        await one.store.delete("answer", "another")
        assert await two.store.get("answer") is None
        await one.store.set("short", b"x", 0.2)
        await asyncio.sleep(0.5)
        assert await one.store.get("short") is None
        whole = b"\0" * MAX_VALUE_BYTES
        await one.store.set("large", whole, 60)
        assert await two.store.get("large") == whole
        with pytest.raises(ValueError):
            await one.store.set("larger", whole + b"\0", 60)


async def test_a_value_is_added_by_one_and_taken_away_by_its_owner(server: StoreServer) -> None:
    async with instances(server, 2) as (one, two):
        assert await one.store.add("fill", b"one", 60)
        assert not await two.store.add("fill", b"two", 60)
        assert not await two.store.delete_if("fill", b"two")
        assert await one.store.delete_if("fill", b"one")
        assert await two.store.add("fill", b"two", 0.2)
        await asyncio.sleep(0.5)
        assert await one.store.add("fill", b"one", 60)
        assert await two.store.get("fill") == b"one"


async def test_everything_that_is_kept_expires(server: StoreServer) -> None:
    async with instances(server, 2) as (one, two):
        await one.store.set("answer", b"x", 60)
        one.store.publish("block", {"user": "u"})
        await one.store.get("answer")
        if server.kind == "valkey":
            keys = [
                word
                for word in server.server.ask("KEYS", f"{server.prefix}:*").split("\r\n")
                if word.startswith(server.prefix)
            ]
            assert len(keys) == 3
            for key in keys:
                assert int(server.server.ask("PTTL", key).strip(":\r\n")) > 0, key
        else:
            # Rows past their time are swept; what has not expired stays.
            await one.store.set("gone", b"x", 0.01)
            await asyncio.sleep(0.2)
            one.store._connection.sweep()
            database = server.url.rpartition("/")[2]
            with server.server.control(database) as control:
                await one.store.get("answer")
                rows = control.execute(f'select key from "{server.prefix}".kept').fetchall()
                assert rows == [("answer",)]


async def test_operations_of_one_turn_leave_together_and_come_back_in_order(server: StoreServer) -> None:
    async with instances(server, 1) as (one,):
        for number in range(200):
            assert await one.store.add(f"k{number}", b"%d" % number, 60)
        found = await asyncio.gather(*(one.store.get(f"k{number}") for number in range(200)))
        assert found == [b"%d" % number for number in range(200)]
        text = (await one.metrics.render())[0].decode()
        assert 'outrigger_store_operation_seconds_count{op="get"} 200.0' in text
        assert "outrigger_store_up 1.0" in text
