"""Calls out: relayed, tried again, refused, in the shapes that SDKs know."""

import asyncio
import gzip
import io
import json
import ssl

import pytest
from egress_gateway import CHAT, QUICK, Vendor, chunks, completion, egress_gateway, errs, hangs, resets, says, streams


async def test_a_call_passes_and_its_answer_comes_back_as_it_was(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says(x_request_id="req_1"))) as out:
        vendor_status, headers, text = await out.chat(headers={"Authorization": "Bearer sk-1", "X-Own": "a"})
        assert (vendor_status, json.loads(text)) == (200, completion())
        assert headers["x-request-id"] == "req_1"
        assert headers["x-outrigger-attempts"] == "1"
        assert headers["x-outrigger-cache"] == "off"


async def test_path_query_and_headers_arrive_byte_for_byte(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor) as out:
        reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
        writer.write(
            b"GET /openai/v1/files/a%2Fb%20c/../d?q=%7E&x=1+2 HTTP/1.1\r\nHost: x\r\nauthorization: Bearer k\r\n"
            b"X-Outrigger-Request: t\r\ntracestate: a=1,outrigger=t\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\n\r\n"
        )
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
    method, path, headers, _ = vendor.requests[0]
    assert (method, path) == ("GET", "/v1/files/a%2Fb%20c/../d?q=%7E&x=1+2")
    headers = {name.title(): value for name, value in headers.items()}
    assert headers["Authorization"] == "Bearer k"
    assert headers["Tracestate"] == "a=1"
    assert not {"X-Hop", "X-Outrigger-Request", "User-Agent", "Accept", "Accept-Encoding"} & set(headers)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 520, 529])
async def test_what_may_pass_is_tried_again(tmp_path, status):
    vendor = Vendor(errs(status), says())
    async with egress_gateway(tmp_path, vendor) as out:
        got, headers, _ = await out.chat(headers={"Idempotency-Key": "k"})
        assert (got, headers["x-outrigger-attempts"]) == (200, "2")
    assert [request[2]["Idempotency-Key"] for request in vendor.requests] == ["k", "k"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_what_is_the_callers_fault_is_not(tmp_path, status):
    vendor = Vendor(errs(status), says())
    async with egress_gateway(tmp_path, vendor) as out:
        got, headers, text = await out.chat()
        assert (got, json.loads(text)["error"]["message"]) == (status, "no")
        assert "x-should-retry" not in headers
    assert len(vendor.requests) == 1


async def test_a_spent_quota_is_final_and_the_sdk_is_told(tmp_path):
    vendor = Vendor(errs(429, "insufficient_quota"))
    async with egress_gateway(tmp_path, vendor) as out:
        status, headers, _ = await out.chat()
        assert (status, headers["x-should-retry"]) == (429, "false")
    assert len(vendor.requests) == 1


async def test_a_transient_429_may_come_again(tmp_path):
    async with egress_gateway(tmp_path, Vendor(errs(429, "rate_limit_exceeded"))) as out:
        status, headers, _ = await out.chat()
        assert status == 429
        assert "x-should-retry" not in headers


async def test_a_final_failure_tells_the_sdk_not_to_come_again(tmp_path):
    vendor = Vendor(errs(503))
    async with egress_gateway(tmp_path, vendor, openai="retry: {attempts: 3, backoff: {first: 1ms, max: 1ms}}") as out:
        status, headers, _ = await out.chat()
        assert (status, headers["x-should-retry"], headers["x-outrigger-attempts"]) == (503, "false", "3")
    assert len(vendor.requests) == 3


async def test_retry_after_is_obeyed(tmp_path):
    vendor = Vendor(errs(503, retry_after_ms="300"), says())
    async with egress_gateway(tmp_path, vendor) as out:
        began = asyncio.get_running_loop().time()
        assert (await out.chat())[0] == 200
        assert 0.29 < asyncio.get_running_loop().time() - began < 2


async def test_a_retry_after_beyond_the_policys_max_goes_to_the_app(tmp_path):
    vendor = Vendor(errs(503, retry_after="31"), says())
    async with egress_gateway(tmp_path, vendor) as out:
        status, headers, _ = await out.chat()
        assert (status, headers["Retry-After"]) == (503, "31")
    assert len(vendor.requests) == 1


async def test_the_upstreams_own_word_on_retries_is_obeyed(tmp_path):
    vendor = Vendor(errs(500, x_should_retry="false"), errs(400, x_should_retry="true"), says())
    async with egress_gateway(tmp_path, vendor) as out:
        assert (await out.chat())[0] == 500
        assert (await out.chat())[0] == 200
    assert len(vendor.requests) == 3


async def test_none_of_ours_on_top_of_the_sdks(tmp_path):
    vendor = Vendor(errs(500), says())
    async with egress_gateway(tmp_path, vendor) as out:
        assert (await out.chat(headers={"x-stainless-retry-count": "1"}))[0] == 500
    assert len(vendor.requests) == 1


async def test_a_reset_is_tried_again_where_the_endpoint_allows(tmp_path):
    vendor = Vendor(resets(), says())
    async with egress_gateway(tmp_path, vendor) as out:
        assert (await out.chat())[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [("files", {}), ("batches", {}), ("threads", {}), ("responses", {"background": True, "model": "m", "input": "x"})],
)
async def test_what_must_not_happen_twice_does_not(tmp_path, path, body):
    vendor = Vendor(errs(500), says())
    async with egress_gateway(tmp_path, vendor) as out:
        async with out.session.post(f"{out.url}/openai/v1/{path}", json=body) as answer:
            assert (answer.status, answer.headers["x-outrigger-attempts"]) == (500, "1")
    assert len(vendor.requests) == 1


async def test_nobody_there_is_502_after_all_tries(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor) as out:
        await vendor.stop()
        status, headers, text = await out.chat()
        assert (status, json.loads(text)["error"]["code"]) == (502, "upstream_unreachable")
        assert (headers["x-should-retry"], headers["x-outrigger-attempts"]) == ("false", "4")


async def test_the_deadline_covers_everything(tmp_path):
    async with egress_gateway(tmp_path, Vendor(hangs()), openai="timeout: {connect: 300ms, total: 300ms}") as out:
        began = asyncio.get_running_loop().time()
        status, headers, text = await out.chat()
        assert (status, json.loads(text)["error"]["code"]) == (504, "upstream_timeout")
        assert headers["x-should-retry"] == "false"
        assert asyncio.get_running_loop().time() - began < 1


async def test_the_sdks_patience_bounds_attempts_and_waits_together(tmp_path):
    async with egress_gateway(tmp_path, Vendor(hangs())) as out:
        began = asyncio.get_running_loop().time()
        status, _, _ = await out.chat(headers={"x-stainless-read-timeout": "1"})
        assert status == 504
        assert 0.5 < asyncio.get_running_loop().time() - began < 1


async def test_the_budget_holds_back_retries_of_all_callers(tmp_path):
    vendor = Vendor(errs(500))
    policy = "breaker: off\nretry: {budget: 20%, backoff: {first: 1ms, max: 1ms}}"
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        for _ in range(60):
            await out.chat()
    assert 60 < len(vendor.requests) <= 60 * 1.25


async def test_the_breaker_opens_answers_at_once_and_closes_again(tmp_path):
    vendor = Vendor(*[errs(500)] * 5, says())
    policy = "retry: {attempts: 1}\nbreaker: {window: 60s, min_calls: 5, failure_ratio: 50%, open: 300ms}"
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        for _ in range(5):
            assert (await out.chat())[0] == 500
        status, headers, text = await out.chat()
        assert (status, json.loads(text)["error"]["code"]) == (503, "upstream_unavailable")
        assert headers["Retry-After"] == "1"
        assert out.egress.health().state == "degraded"
        assert 'breaker_state{upstream="openai"} 2.0' in await out.text()
        assert len(vendor.requests) == 5
        await asyncio.sleep(0.35)
        assert (await out.chat())[0] == 200
        assert out.egress.health().state == "ok"


async def test_a_429_with_retry_after_holds_back_the_next_calls_and_trips_nothing(tmp_path):
    vendor = Vendor(errs(429, "rate_limit_exceeded", retry_after="40"))
    async with egress_gateway(tmp_path, vendor, openai="retry: {attempts: 1}\npace: {wait: 1s}") as out:
        assert (await out.chat())[0] == 429
        status, headers, text = await out.chat()
        assert (status, json.loads(text)["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(headers["Retry-After"]) >= 30
        assert "x-should-retry" not in headers
        assert out.openai.breakers.state == "closed"
    assert len(vendor.requests) == 1


async def test_the_real_key_is_put_in_and_only_the_made_one_is_served(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor, openai="api_key: sk-real") as out:
        status, _, text = await out.chat(headers={"Authorization": "Bearer sk-other"})
        assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
        shown = out.egress._keys.key_for("openai")
        assert (await out.chat(headers={"Authorization": f"Bearer {shown}"}))[0] == 200
    assert [request[2]["Authorization"] for request in vendor.requests] == ["Bearer sk-real"]
    assert "sk-real" not in (tmp_path / "log").read_text()


async def test_uploads_stream_and_are_sent_once(tmp_path):
    vendor = Vendor(errs(500), says())
    body = b"--b\r\n" + b"x" * 6_000_000
    async with egress_gateway(tmp_path, vendor) as out:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        async with out.session.post(
            f"{out.url}/openai/v1/audio/transcriptions", data=io.BytesIO(body), headers=headers
        ) as answer:
            assert answer.status == 500
    assert [len(request[3]) for request in vendor.requests] == [len(body)]


async def test_usage_is_counted_and_logged(tmp_path):
    policy = f"{QUICK}\nprices: {{gpt-4o-mini-2024-07-18: {{input: 1, output: 1}}}}"
    async with egress_gateway(tmp_path, Vendor(says()), openai=policy) as out:
        await out.chat()
        text = await out.text()
        labels = 'model="gpt-4o-mini-2024-07-18"'
        assert f'outrigger_upstream_calls_total{{{labels},outcome="ok",upstream="openai"}} 1.0' in text
        assert f'outrigger_tokens_total{{kind="input",{labels},upstream="openai"}} 7.0' in text
        [call] = await out.logged()
        assert (call["input_tokens"], call["output_tokens"], call["attempts"], call["outcome"]) == (7, 5, 1, "ok")
        assert call["user"] == "unattributed"


# ── streams ──────────────────────────────────────────────────────────────────────────────────

STREAM = {**CHAT, "stream": True}


async def test_a_stream_passes_byte_for_byte_without_the_usage_that_we_asked_for(tmp_path):
    vendor = Vendor(streams(chunks("a", "b", usage=True)))
    async with egress_gateway(tmp_path, vendor) as out:
        status, _, text = await out.chat(STREAM)
        assert status == 200
        assert text.encode() == b"".join(chunks("a", "b"))
        assert vendor.bodies[0]["stream_options"] == {"include_usage": True}
        assert (await out.logged())[0]["output_tokens"] == 5


async def test_usage_that_the_app_asked_for_stays(tmp_path):
    async with egress_gateway(tmp_path, Vendor(streams(chunks("a", usage=True)))) as out:
        _, _, text = await out.chat({**STREAM, "stream_options": {"include_usage": True}})
        assert text.encode() == b"".join(chunks("a", usage=True))


async def test_a_host_that_knows_no_stream_options_is_asked_as_the_app_did(tmp_path):
    refuses = says({"error": {"message": "unknown field stream_options"}}, 400)
    vendor = Vendor(refuses, streams(chunks("a")))
    async with egress_gateway(tmp_path, vendor) as out:
        assert (await out.chat(STREAM))[0] == 200
        assert (await out.chat(STREAM))[0] == 200
    assert ["stream_options" in body for body in vendor.bodies] == [True, False, False]


async def test_a_stream_that_fails_before_its_first_event_is_tried_again(tmp_path):
    overloaded = b'data: {"error": {"message": "x", "type": "server_error"}}\n\n'
    vendor = Vendor(streams(chunks()[:1], then="cut"), streams([overloaded]), streams(chunks("a")))
    async with egress_gateway(tmp_path, vendor) as out:
        status, headers, text = await out.chat(STREAM)
        assert (status, headers["x-outrigger-attempts"]) == (200, "3")
        assert text.encode() == b"".join(chunks("a"))


@pytest.mark.parametrize("then", ["cut", "end"])
async def test_a_stream_cut_short_ends_with_an_error_event(tmp_path, then):
    async with egress_gateway(tmp_path, Vendor(streams(chunks("a")[:2], then=then))) as out:
        status, _, text = await out.chat(STREAM)
        last = text.strip().split("\n\n")[-1]
        assert status == 200
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_unreachable"
        assert "[DONE]" not in text


async def test_a_stream_that_stalls_ends_with_an_error_event(tmp_path):
    policy = "timeout: {idle: 200ms}"
    async with egress_gateway(tmp_path, Vendor(streams(chunks("a")[:2], then="stall")), openai=policy) as out:
        _, _, text = await asyncio.wait_for(out.chat(STREAM), 5)
        assert '"code": "upstream_timeout"' in text


async def test_a_stream_without_done_but_with_a_finish_reason_is_whole(tmp_path):
    async with egress_gateway(tmp_path, Vendor(streams(chunks("a", done=False)))) as out:
        _, _, text = await out.chat(STREAM)
        assert text.encode() == b"".join(chunks("a", done=False))


async def test_a_last_event_without_its_blank_line_is_not_lost(tmp_path):
    events = chunks("a")
    async with egress_gateway(tmp_path, Vendor(streams([*events[:-1], b"data: [DONE]"]))) as out:
        _, _, text = await out.chat(STREAM)
        assert text.endswith("data: [DONE]\n\n")


async def test_an_event_that_is_no_json_ends_the_stream_with_an_error(tmp_path):
    async with egress_gateway(tmp_path, Vendor(streams([*chunks("a")[:2], b"data: {broken\n\n", *chunks("b")]))) as out:
        _, _, text = await out.chat(STREAM)
        assert "no JSON" in text
        assert "{broken" not in text


# ── cache, fallbacks ─────────────────────────────────────────────────────────────────────────

EXACT = {**CHAT, "temperature": 0}


async def test_the_same_question_is_answered_from_memory(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor, openai="cache: {ttl: 1h}") as out:
        first, second = await out.chat(EXACT), await out.chat(EXACT)
        other_key = await out.chat(EXACT, headers={"Authorization": "Bearer other"})
        unfit = await out.chat(CHAT)
        seen = [answer[1]["x-outrigger-cache"] for answer in (first, second, other_key, unfit)]
        assert seen == ["miss", "hit", "miss", "off"]
        assert first[2] == second[2]
    assert len(vendor.requests) == 3


async def test_streams_are_replayed_byte_for_byte(tmp_path):
    vendor = Vendor(streams(chunks("a", "b", usage=True)))
    async with egress_gateway(tmp_path, vendor, openai="cache: {ttl: 1h}") as out:
        first, second = await out.chat({**EXACT, "stream": True}), await out.chat({**EXACT, "stream": True})
        assert first[2] == second[2]
        assert second[1]["x-outrigger-cache"] == "hit"
        assert second[1]["Content-Type"] == "text/event-stream"


async def test_identical_calls_in_flight_share_one(tmp_path):
    async def slow(request):
        await asyncio.sleep(0.2)
        return await says()(request)

    vendor = Vendor(slow)
    async with egress_gateway(tmp_path, vendor, openai="coalesce: true") as out:
        answers = await asyncio.gather(*(out.chat(EXACT) for _ in range(5)))
        assert {answer[2] for answer in answers} == {json.dumps(completion())}
        assert sorted(answer[1]["x-outrigger-cache"] for answer in answers) == ["coalesced"] * 4 + ["miss"]
    assert len(vendor.requests) == 1


async def test_an_expired_answer_is_better_than_none(tmp_path):
    vendor = Vendor(says(), errs(500))
    policy = "cache: {ttl: 50ms, stale_if_error: 1h}\nretry: {attempts: 1}"
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        first = await out.chat(EXACT)
        await asyncio.sleep(0.1)
        status, headers, text = await out.chat(EXACT)
        assert (status, text) == (200, first[2])
        assert (headers["x-outrigger-cache"], headers["x-outrigger-fallback"]) == ("stale", "stale")


async def test_another_model_then_another_upstream_then_a_text(tmp_path):
    vendor, azure = Vendor(errs(500)), Vendor(says(completion("azure")), errs(500))
    policy = (
        "retry: {attempts: 1}\nfallback:\n  - {model: small}\n  - {upstream: azure}\n  - {text: The assistant rests.}"
    )
    more = '  azure: {kind: openai, base_url: "http://127.0.0.1:<1>/v1", env: [], api_key: sk-azure, retry: {attempts: 1}}\n'
    async with egress_gateway(tmp_path, vendor, azure, openai=policy, more=more) as out:
        status, headers, text = await out.chat(headers={"Authorization": "Bearer sk-openai"})
        assert (status, headers["x-outrigger-fallback"]) == (200, "upstream=azure")
        assert json.loads(text) == completion("azure")
        assert [body["model"] for body in vendor.bodies] == ["gpt-4o-mini", "small"]
        assert azure.requests[0][2]["Authorization"] == "Bearer sk-azure"
        status, headers, text = await out.chat()
        assert (status, headers["x-outrigger-fallback"]) == (200, "text")
        assert json.loads(text)["choices"][0]["message"]["content"] == "The assistant rests."
        reported = await out.text()
        for model in ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"):
            assert f'{{model="{model}",outcome="fallback",upstream="openai"}} 1.0' in reported


async def test_an_error_inside_a_stream_that_stays_is_the_apps_as_it_came(tmp_path):
    event = b'data: {"error": {"message": "x", "type": "server_error"}}\n\n'
    async with egress_gateway(
        tmp_path, Vendor(streams([event])), openai="retry: {attempts: 2, backoff: {first: 1ms}}"
    ) as out:
        status, headers, text = await out.chat(STREAM)
        assert (status, text.encode(), headers["x-outrigger-attempts"]) == (200, event, "2")
        assert out.openai.breakers.counts() == (1, 1)


async def test_a_shared_stream_that_breaks_is_told_to_everybody(tmp_path):
    vendor = Vendor(streams(chunks("a")[:2], pause=0.1, then="cut"))
    async with egress_gateway(tmp_path, vendor, openai="coalesce: true") as out:
        answers = await asyncio.gather(*(out.chat({**EXACT, "stream": True}) for _ in range(3)))
        assert all("upstream_unreachable" in answer[2] for answer in answers)
    assert len(vendor.requests) == 1


async def test_an_upgrade_that_is_not_offered_is_an_ordinary_call(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor) as out:
        headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AA"}
        assert (await out.chat(headers=headers))[0] == 200
    assert vendor.bodies == [CHAT]
    assert not {"Upgrade", "HTTP2-Settings", "HTTP2-settings"} & set(vendor.requests[0][2])


async def test_a_compressed_body_arrives_as_it_was_sent(tmp_path):
    packed = gzip.compress(json.dumps(CHAT).encode())
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor) as out:
        reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
        head = "POST /openai/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(packed)}\r\n\r\n".encode() + packed)
        assert b" 200 " in await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert int(vendor.requests[0][2]["Content-Length"]) == len(packed)


async def test_a_certificate_that_is_not_valid_is_said_so_once_and_not_tried_again(tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {cert} -days 1 -subj /CN=localhost"
    if (await (await asyncio.create_subprocess_shell(f"{command} 2>/dev/null")).wait()) != 0:
        pytest.skip("no openssl here to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    more = f'  tls: {{base_url: "https://localhost:{port}"}}\n'
    async with egress_gateway(tmp_path, Vendor(says()), more=more) as out:
        status, headers, text = await out.chat(upstream="tls")
        assert (status, headers["x-outrigger-attempts"]) == (502, "1")
        assert "certificate" in json.loads(text)["error"]["message"]
        assert "certificate" in (await out.logged())[0]["reason"]
    server.close()
