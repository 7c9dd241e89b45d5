"""`routes[].retries`: how often an app that takes no connection is tried for a request of which no byte was sent."""

from __future__ import annotations

import asyncio

import pytest
from ingress_gateway import OK, answering, ingress_gateway

from proxy.ingress import relay

POLICY = "routes: [{name: often, match: {path: /often}, retries: {attempts: 20, on: [connect]}}]"
REPEATED = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(relay, "MAX_REFUSING_SECONDS", 0.25)


async def status(request) -> int:
    return int((await request).split(b" ", 2)[1])


async def test_an_app_that_refuses_is_tried_as_often_as_the_route_says_and_only_for_methods_that_may_be_repeated():
    app = answering(OK)
    async with ingress_gateway(app, POLICY) as gateway:
        await app.stop()  # it counts as ready, and refuses
        patient = [asyncio.create_task(status(gateway.get("/often", method=method))) for method in REPEATED]
        others = [gateway.get("/often", method="POST", body=b"x"), gateway.get("/often", method="PATCH", body=b"x")]
        once = [gateway.get(f"/once?{method}", method=method) for method in REPEATED]
        assert set(await asyncio.gather(*map(status, [*others, *once]))) == {502}
        assert not any(task.done() for task in patient)
        await app.start()
        assert set(await asyncio.gather(*patient)) == {200}


async def test_the_last_attempt_ends_it_and_nothing_is_sent_twice():
    app = answering(OK)
    async with ingress_gateway(app, POLICY.replace("attempts: 20", "attempts: 2")) as gateway:
        await app.stop()
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await status(gateway.get("/often")) == 502
        assert loop.time() - began >= 2 * relay.MAX_REFUSING_SECONDS
        await app.start()
        assert await status(gateway.get("/often")) == 200
        assert len(app.heads) == 1


async def test_a_retry_waits_no_longer_than_the_whole_exchange_may_take():
    app = answering(OK)
    async with ingress_gateway(app, POLICY.replace("retries:", "total: 400ms, retries:")) as gateway:
        await app.stop()
        assert await status(gateway.get("/often")) == 504


async def test_on_without_connect_is_one_attempt():
    app = answering(OK)
    async with ingress_gateway(app, POLICY.replace("[connect]", "[]")) as gateway:
        await app.stop()
        assert await status(gateway.get("/often")) == 502
