"""What goes to Sentry, and what must not: against one that takes envelopes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
from fake_sentry import fake_sentry
from free_ports import free_port
from gateway_process import APPS, eventually, gateway

from proxy.observe.log import EventLog
from proxy.observe.sentry import REPEAT_SECONDS, connect_sentry
from proxy.policy import schema
from proxy.policy.schema import Sentry as Policy

pytest.importorskip("sentry_sdk")
# The SDK looks whether there is an eventlet, which says that it is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", r"ignore:\s*Eventlet is deprecated")

SECRET = "hunter2hunter2"


async def test_a_crash_of_the_app_is_told_with_its_status_and_nothing_else(tmp_path):
    async with fake_sentry() as fake:
        environ = {"SENTRY_DSN": fake.dsn, "RENDER_SERVICE_NAME": "shop", "MY_SECRET": SECRET}
        app = (sys.executable, str(APPS / "plain.py"), SECRET)
        async with gateway(tmp_path, *app, policy="app: {restart: {backoff: 50ms}}\n", environ=environ) as g:
            await g.ready()
            await g.request(f"/?token={SECRET}", headers=[f"Authorization: Bearer {SECRET}"])
            os.kill(g.app_pid(), signal.SIGKILL)
            await eventually(lambda: fake.events)
            await eventually(lambda: len(g.events("app.ready")) == 2)
            assert await g.stop() == 0
        (event,) = fake.events
        assert event["message"] == "The app ended with status 137 (SIGKILL)."
        assert event["fingerprint"] == ["app.exit", "137"]
        assert event["tags"] == {"event": "app.exit"}
        assert (event["environment"], event["level"]) == ("shop", "error")
        assert SECRET.encode() not in fake.raw
        assert not {"request", "user", "extra", "breadcrumbs"} & event.keys()


async def test_a_fault_of_ours_is_told_by_kind_and_place_once_a_minute_never_by_its_words(tmp_path):
    now = 1000.0
    async with fake_sentry() as fake:
        sentry = connect_sentry(Policy(dsn=fake.dsn), version="1", clock=lambda: now)
        assert sentry is not None
        with open(tmp_path / "log", "wb") as out:
            log = EventLog(schema.Log(), out=out)
            log.on_error = sentry.capture_event

            def fail(secret: str) -> None:
                try:
                    raise ValueError(f"words with {secret}")
                except ValueError as error:
                    log.emit("fault", f"{type(error).__name__}: {error}", level="error", request_id="r-1")

            for _ in range(5):
                fail(SECRET)
            log.emit("policy.refused", f"an operator's {SECRET}", level="error")
            now += REPEAT_SECONDS
            fail(SECRET)
            log.close()
        await asyncio.to_thread(sentry.close)
        first, second = fake.events
        assert first["fingerprint"] == second["fingerprint"] == ["fault", "", "ValueError", "test_sentry.py:fail"]
        (value,) = first["exception"]["values"]
        assert (value["type"], value["value"]) == ("ValueError", "A fault of the gateway")
        assert value["stacktrace"]["frames"][-1]["function"] == "fail"
        assert "vars" not in value["stacktrace"]["frames"][-1]
        assert first["tags"] == {"event": "fault", "request_id": "r-1"}
        assert SECRET.encode() not in fake.raw


async def test_what_nobody_caught_in_the_loop_is_told_as_well():
    async with fake_sentry() as fake:
        loop = asyncio.get_running_loop()
        sentry = connect_sentry(Policy(dsn=fake.dsn), version="1", clock=loop.time)
        assert sentry is not None
        heard: list[dict] = []
        loop.default_exception_handler = heard.append  # type: ignore[method-assign]
        loop.set_exception_handler(sentry.handle_loop_exception)
        loop.call_soon(lambda: 1 // 0)
        await eventually(lambda: heard)
        await asyncio.to_thread(sentry.close)
        assert fake.events[0]["exception"]["values"][0]["type"] == "ZeroDivisionError"


async def test_a_sentry_that_is_away_holds_up_nobody():
    loop = asyncio.get_running_loop()
    sentry = connect_sentry(Policy(dsn=f"http://publickey@127.0.0.1:{free_port()}/7"), version="1", clock=loop.time)
    assert sentry is not None
    began = loop.time()
    for status in range(50):
        sentry.capture_event("app.exit", "The app ended.", {"status": status})
    assert loop.time() - began < 5
    await asyncio.wait_for(asyncio.to_thread(sentry.close), 15)


def test_without_a_dsn_there_is_none():
    assert connect_sentry(Policy(), version="1", clock=lambda: 0.0) is None
