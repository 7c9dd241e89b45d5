"""What the gateway and its commands say is so: texts that are of now, seconds that are none too few, nobody's prompts."""

import asyncio
import io
import json
import os

import pytest
from egress_gateway import Vendor, says
from free_ports import free_port
from gateway_process import ROOT
from ingress_gateway import OK, answering, ingress_gateway

from proxy.cli.checks.stores import check_database
from proxy.cli.checks.upstreams import check_upstreams
from proxy.cli.ctl import run_ctl
from proxy.cli.report import run_report
from proxy.observe.redact import Redactor
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import REDACT

CALL_FIELDS = b"x-outrigger-attempts: 1\r\nX-Outrigger-Cost: 0.25\r\nx-outrigger-cache: off\r\nX-Vendor: v\r\n"


# ── seconds ──────────────────────────────────────────────────────────────────────────────────


async def test_nobody_is_told_to_come_again_in_no_time():
    policy = "routes: [{name: r, match: {path: /*}, rate_limit: 1/s}]"
    async with ingress_gateway(answering(OK), policy) as f:
        answers = [await f.get("/") for _ in range(3)]
        await asyncio.sleep(0.7)  # less than half a second is left of the window
        answers.append(await f.get("/"))
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429 ")]
    assert refused
    for answer in refused:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Retry-After: 1" in head
        assert json.loads(body)["retry_after"] == 1
        assert json.loads(body)["detail"].endswith("come again in 1 s.")


# ── whose business it is ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("policy", "shown"), [("", False), ("listen: {call_fields: true}", True)])
async def test_what_a_call_cost_stays_with_the_app_unless_the_policy_says_otherwise(policy, shown):
    answer = OK.replace(b"Content-Length", CALL_FIELDS + b"Content-Length")
    async with ingress_gateway(answering(answer), policy) as f:
        head = (await f.get("/")).lower()
    assert (b"x-outrigger-cost: 0.25" in head) is shown
    assert (b"x-outrigger-attempts: 1" in head) is shown
    assert b"x-vendor: v" in head


@pytest.mark.parametrize(
    ("query", "logged"),
    [
        ("prompt=I+am+ill", "prompt=***"),
        ("a=1&message=hello", "a=1&message=***"),
        ("q=what%20should%20I%20eat%20today", "q=***"),
        ("q=why+does+my+knee+hurt", "q=***"),
        (f"x={'y' * 101}", "x=***"),
        ("q=red+shoes&page=2", "q=red+shoes&page=2"),
        ("from=2026-11-01T10%3A00&to=2026-11-02", "from=2026-11-01T10%3A00&to=2026-11-02"),
        ("id=0123456789abcdef0123456789abcdef", "id=0123456789abcdef0123456789abcdef"),
    ],
)
async def test_what_people_write_into_a_query_is_not_in_the_log(query, logged, tmp_path):
    async with ingress_gateway(answering(OK), tmp=tmp_path) as f:
        await f.get(f"/ask?{query}")
        head = f.app.heads[0]
    assert f"/ask?{query}".encode() in head  # the app has it
    lines = [json.loads(line) for line in f.log.read_text().splitlines() if '"request"' in line]
    assert [line["path"] for line in lines if line["event"] == "request"] == [f"/ask?{logged}"]
    assert Redactor(REDACT).redact_target(f"/ask?{query}") == f"/ask?{logged}"


async def test_every_refusal_counts_for_the_alert_on_refusals():
    policy = "routes: [{name: r, match: {path: /r}, max_body: 1KiB}, {name: s, match: {path: /s}, rate_limit: 1/h}]"
    async with ingress_gateway(answering(OK), policy) as f:
        for _ in range(3):
            await f.get("/r", method="POST", body=b"x" * 2000)
            await f.get("/s")
        scrape = await f.text()
    assert 'outrigger_http_refusals_total{name="body-too-large",route="r"} 3.0' in scrape
    assert 'outrigger_http_refusals_total{name="rate-limited",route="s"} 2.0' in scrape


# ── commands ─────────────────────────────────────────────────────────────────────────────────


def policy_file(folder, text):
    path = folder / "outrigger.yaml"
    path.write_text(text)
    return str(path)


def test_report_and_ctl_need_no_variables_but_their_own(tmp_path):
    text = (
        "identity: {user: [jwt: {header: Authorization, claim: sub, key: '${JWT_KEY}', algorithms: [HS256]}]}\n"
        "upstreams: {openai: {api_key: '${THE_KEY}'}}\n"
        f"ledger: {{url: 'sqlite:///{tmp_path}/none.db'}}\nlisten: {{admin: 127.0.0.1:{free_port()}}}\n"
    )
    path, out, err = policy_file(tmp_path, text), io.StringIO(), io.StringIO()
    assert run_report(["--policy", path], {}, out, err) == 0
    assert "there is no ledger" in err.getvalue()
    assert run_ctl(["block", "ann", "--policy", path], {}, out, err) == 1
    assert "no gateway answers" in err.getvalue()
    assert "JWT_KEY" not in err.getvalue() + out.getvalue()


def test_they_do_say_it_where_it_is_their_own(tmp_path):
    path = policy_file(tmp_path, "ledger: {url: '${LEDGER}'}\nadmin: {token: '${TOKEN}'}\n")
    for command, words, name in ((run_report, [], "LEDGER"), (run_ctl, ["reload"], "TOKEN")):
        err = io.StringIO()
        assert command([*words, "--policy", path], {}, io.StringIO(), err) == 2
        assert name in err.getvalue()


def parsed(text="", **environ):
    return load_policy(PolicySource("t", None, text), environ)


async def test_doctor_says_nothing_of_a_vendor_that_nothing_here_calls(tmp_path):
    (tmp_path / "requirements.txt").write_text("flask\n")
    (tmp_path / "app.py").write_text("from flask import Flask\napp = Flask('a')\n")
    [found] = await check_upstreams(parsed(), {}, tmp_path)
    assert (found.level, found.subject) == ("ok", "upstream openai")
    assert "nothing here calls it" in found.text


async def test_doctor_tells_of_an_address_that_no_upstream_names():
    vendor = Vendor(says({"data": []}))
    await vendor.start()
    environ = {
        "OPENAI_API_BASE_URL": "https://llm.example/v1",
        "APP_BASE_URL": "https://me.example",
        "OPENAI_API_KEY": "k",
    }
    policy = parsed(f"upstreams: {{openai: {{base_url: http://127.0.0.1:{vendor.port}/v1}}}}", **environ)
    found = await check_upstreams(policy, environ, ROOT)
    await vendor.stop()
    [warned] = [one for one in found if one.level == "warning"]
    assert warned.text.startswith("OPENAI_API_BASE_URL leads to llm.example, and no upstream names that variable")


@pytest.mark.parametrize(("needs", "level"), [("flask\nasyncpg\n", "warning"), ("flask\n", "ok")])
async def test_doctor_is_not_content_with_an_empty_pool_before_an_app_with_a_database(needs, level, tmp_path):
    (tmp_path / "requirements.txt").write_text(needs)
    (tmp_path / "app.py").write_text("from flask import Flask\napp = Flask('a')\n")
    [found] = await check_database(parsed("postgres: {url: '${DATABASE_URL:-}'}"), dict(os.environ), tmp_path)
    assert found.level == level
