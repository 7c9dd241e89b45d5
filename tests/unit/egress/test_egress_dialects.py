"""Dialects: what is asked, what it took, and what a broken or refused answer looks like."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from proxy.egress.dialects import EventKind, dialect_for

OPENAI, ANTHROPIC, HTTP = dialect_for("openai"), dialect_for("anthropic"), dialect_for("http")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WORDS = (
    "model stream user temperature seed max_tokens stream_options response_format n text metadata usage error choices"
    " type response message delta"
)
KEYS = st.sampled_from(WORDS.split())


@pytest.mark.parametrize(
    ("method", "path", "endpoint"),
    [
        ("POST", "/v1/chat/completions", "chat"),
        ("POST", "/chat/completions", "chat"),
        ("POST", "/openai/deployments/my-gpt/chat/completions", "chat"),
        ("POST", "/deployments/my-gpt/embeddings", "embeddings"),
        ("POST", "/openai/v1/responses", "responses"),
        ("POST", "/openai/deployments/chat/completions", "completions"),
        ("POST", "/openai/files", None),
        ("POST", "/v1/responses", "responses"),
        ("POST", "/v1/completions", "completions"),
        ("POST", "/v1/audio/speech", "audio"),
        ("POST", "/v1/images/edits", "images"),
        ("GET", "/v1/chat/completions", None),
        ("POST", "/v1/responses/resp_1/cancel", None),
        ("POST", "/v1/files", None),
        ("POST", "/v1/batches", None),
        ("POST", "/v1/threads/t/runs", None),
        ("POST", "/v1/fine_tuning/jobs", None),
    ],
)
def test_only_inference_endpoints_are_known(method, path, endpoint):
    assert OPENAI.endpoint(method, path) == endpoint


def test_anthropics_messages_alone_are_inference():
    assert ANTHROPIC.endpoint("POST", "/v1/messages") == "messages"
    assert ANTHROPIC.endpoint("POST", "/v1/messages/batches") is None
    assert ANTHROPIC.endpoint("POST", "/v1/messages/count_tokens") is None


@settings(deadline=None)
@given(st.dictionaries(KEYS, JSON), st.sampled_from(["chat", "responses", "completions", "messages", "embeddings"]))
def test_no_body_and_no_answer_is_too_odd(body, endpoint):
    for one in (OPENAI, ANTHROPIC, HTTP):
        one.parse_request(endpoint, body)
        one.usage(endpoint, body)
        one.is_permanent(429, body)
        one.error_status(body)
        one.with_usage_option(endpoint, json.dumps(body).encode(), body)
        one.synthetic_response(endpoint, body, "text", id="1", created=1)
        state = one.stream_state(endpoint, strip_usage=True)
        if state is not None:
            assert state.classify(b"data: " + json.dumps(body).encode() + b"\n\n") in EventKind


def test_usage_is_asked_for_without_touching_another_byte():
    raw = b'{"stream": true,\n "x": 1e5}'
    changed = OPENAI.with_usage_option("chat", raw, json.loads(raw))
    assert changed == b'{"stream_options":{"include_usage":true},"stream": true,\n "x": 1e5}'
    assert OPENAI.with_usage_option("chat", b"{}", {}) is None
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    assert OPENAI.with_usage_option("chat", json.dumps(asked).encode(), asked) is None
    off = {"stream": True, "stream_options": {"include_usage": False, "x": 1}}
    changed = OPENAI.with_usage_option("chat", json.dumps(off).encode(), off)
    assert changed is not None
    assert json.loads(changed)["stream_options"] == {"include_usage": True, "x": 1}


@pytest.mark.parametrize("code", ["insufficient_quota", "credit_balance_exhausted", "project_spend_limit_exceeded"])
def test_what_is_spent_stays_spent(code):
    assert OPENAI.is_permanent(429, {"error": {"code": code}})
    assert not OPENAI.is_permanent(429, {"error": {"code": "rate_limit_exceeded"}})
    assert not OPENAI.is_permanent(500, {"error": {"code": code}})


def test_usage_of_every_kind():
    chat = {
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
    }
    found = OPENAI.usage("chat", chat)
    assert found is not None
    # Reasoning that the completion has no room for was written besides it.
    assert (found.input, found.cached_input, found.output, found.reasoning) == (10, 4, 2, 2)
    found = ANTHROPIC.usage(
        "messages", {"usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2}}
    )
    assert found is not None
    assert (found.input, found.cached_input, found.output) == (7, 4, 2)
    assert OPENAI.usage("chat", {}) is None


def chunk(**delta: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("event", "verdict"),
    [
        (b": keepalive\n\n", EventKind.PREAMBLE),
        (chunk(role="assistant", content=""), EventKind.PREAMBLE),
        (chunk(content="a"), EventKind.CONTENT),
        (chunk(refusal="no"), EventKind.CONTENT),
        (chunk(tool_calls=[{"index": 0}]), EventKind.CONTENT),
        (b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n', EventKind.DROP),
        (b'data: {"error": {"type": "server_error"}}\n\n', EventKind.ERROR),
        (b"data: [DONE]\n\n", EventKind.END),
        (b"data: {half\n\n", EventKind.MALFORMED),
        (b"data: 3\n\n", EventKind.MALFORMED),
    ],
)
def test_every_event_of_a_chat_is_known_for_what_it_is(event, verdict):
    state = OPENAI.stream_state("chat", strip_usage=True)
    assert state is not None
    assert state.classify(event) is verdict


@pytest.mark.parametrize(
    ("said", "status", "again"),
    [
        ("server_error", 500, True),
        ("rate_limit_exceeded", 429, True),
        ("insufficient_quota", 429, False),
        ("invalid_request_error", 400, False),
    ],
)
def test_an_error_inside_a_stream_is_judged_like_an_answers(said, status, again):
    state = OPENAI.stream_state("chat", strip_usage=False)
    assert state is not None
    state.classify(b'data: {"error": {"type": "%s"}}\n\n' % said.encode())
    assert (state.error_status, state.retryable) == (status, again)


def test_canned_answers_are_well_formed():
    made = OPENAI.synthetic_response("chat", {"model": "m", "n": 2}, "rest", id="1", created=1)
    assert made is not None
    assert [choice.message.content for choice in ChatCompletion.model_validate_json(made.body).choices] == ["rest"] * 2
    made = OPENAI.synthetic_response("chat", {"response_format": {"type": "json_schema"}}, "rest", id="1", created=1)
    assert made is not None
    message = ChatCompletion.model_validate_json(made.body).choices[0].message
    assert (message.content, message.refusal) == (None, "rest")
    made = OPENAI.synthetic_response(
        "responses", {"text": {"format": {"type": "json_schema"}}}, "rest", id="1", created=1
    )
    assert made is not None
    assert Response.model_validate_json(made.body).output[0].content[0].type == "refusal"
    assert OPENAI.synthetic_response("embeddings", {}, "rest", id="1", created=1) is None


def test_refusals_speak_the_dialect():
    error = json.loads(OPENAI.error_body("cost_cap_exceeded", 429, "spent", request_id="r"))["error"]
    assert error == {"message": "spent", "type": "insufficient_quota", "param": None, "code": "cost_cap_exceeded"}
    said = json.loads(ANTHROPIC.error_body("upstream_timeout", 504, "late", request_id="r"))
    assert (said["type"], said["error"]["type"], said["request_id"]) == ("error", "timeout_error", "r")
