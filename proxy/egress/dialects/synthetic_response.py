"""Well-formed answers made here, for `fallback: text`: whole or streamed, and a refusal if JSON was asked for.

platform.openai.com/docs/api-reference, docs.anthropic.com/en/api/messages: every member that the SDKs require is
there, and the usage is zero.
"""

from __future__ import annotations

from typing import Any

from proxy.egress.dialects.base import Json, SyntheticResponse, as_mapping, as_text
from proxy.egress.sse import format_event
from proxy.util.json_bytes import json_bytes

JSON_TYPE, STREAM_TYPE = "application/json", "text/event-stream; charset=utf-8"


def openai_response(endpoint: str, body: Json, text: str, *, id: str, created: int) -> SyntheticResponse | None:
    """The answer in an endpoint's shape; None for endpoints without text: embeddings, audio, images, moderations."""
    model = as_text(body.get("model")) or "none"
    if endpoint == "chat":
        return _chat_response(body, text, f"chatcmpl-{id}", created, model)
    if endpoint == "completions":
        return _completions_response(body, text, f"cmpl-{id}", created, model)
    return _responses_response(body, text, id, created, model) if endpoint == "responses" else None


def _wants_json(asked: object) -> bool:
    return as_mapping(asked).get("type") in ("json_object", "json_schema")


def _choice_numbers(body: Json) -> range:
    wanted = body.get("n")
    return range(wanted if isinstance(wanted, int) and 1 <= wanted <= 128 else 1)


def _chat_response(body: Json, text: str, id: str, created: int, model: str) -> SyntheticResponse:
    refused = _wants_json(body.get("response_format"))
    part = {"content": None, "refusal": text} if refused else {"content": text}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    head = {"id": id, "created": created, "model": model}
    if body.get("stream") is not True:
        choices = [
            {
                "index": n,
                "message": {"role": "assistant", "refusal": None, **part},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for n in _choice_numbers(body)
        ]
        return _whole_response({**head, "object": "chat.completion", "choices": choices, "usage": usage})
    head["object"] = "chat.completion.chunk"
    events = []
    for n in _choice_numbers(body):
        for delta, finish in (
            ({"role": "assistant", "content": "" if not refused else None}, None),
            (part, None),
            ({}, "stop"),
        ):
            choice = {"index": n, "delta": delta, "logprobs": None, "finish_reason": finish}
            events.append({**head, "choices": [choice]})
    if as_mapping(body.get("stream_options")).get("include_usage") is True:
        events.append({**head, "choices": [], "usage": usage})
    return _streamed_response(events, done=True)


def _completions_response(body: Json, text: str, id: str, created: int, model: str) -> SyntheticResponse:
    choices = [{"index": n, "text": text, "logprobs": None, "finish_reason": "stop"} for n in _choice_numbers(body)]
    answer: dict[str, Any] = {
        "id": id,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
    }
    if body.get("stream") is True:
        return _streamed_response([answer], done=True)
    return _whole_response({**answer, "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}})


def _responses_response(body: Json, text: str, id: str, created: int, model: str) -> SyntheticResponse:
    refused = _wants_json(as_mapping(body.get("text")).get("format"))
    kind, key = ("refusal", "refusal") if refused else ("output_text", "text")
    more: dict[str, Any] = {} if refused else {"annotations": [], "logprobs": []}
    part = {"type": kind, key: text, **more}
    item = {"type": "message", "id": f"msg_{id}", "status": "completed", "role": "assistant", "content": [part]}
    answer: dict[str, Any] = {
        "id": f"resp_{id}",
        "object": "response",
        "created_at": created,
        "model": model,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": [item],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
    }
    if body.get("stream") is not True:
        return _whole_response(answer)
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    delta = {"type": f"response.{kind}.delta", **at, "delta": text, **({} if refused else {"logprobs": []})}
    done = {"type": f"response.{kind}.done", **at, key: text, **({} if refused else {"logprobs": []})}
    # The SDKs assemble an answer from all of these, and miss any that is left out.
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **at, "part": {**part, key: ""}},
        delta,
        done,
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": answer},
    ]
    for number, event in enumerate(events):
        event["sequence_number"] = number
    return _streamed_response(events, named=True)


def anthropic_response(body: Json, text: str, *, id: str) -> SyntheticResponse:
    answer: dict[str, Any] = {
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "model": as_text(body.get("model")) or "none",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    if body.get("stream") is not True:
        return _whole_response(answer)
    return _streamed_response(
        [
            {"type": "message_start", "message": {**answer, "content": [], "stop_reason": None}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 0},
            },
            {"type": "message_stop"},
        ],
        named=True,
    )


def _whole_response(answer: Json) -> SyntheticResponse:
    return SyntheticResponse(JSON_TYPE, json_bytes(answer))


def _streamed_response(events: list[dict[str, Any]], *, named: bool = False, done: bool = False) -> SyntheticResponse:
    parts = [format_event(json_bytes(event), event["type"] if named else "") for event in events]
    return SyntheticResponse(STREAM_TYPE, b"".join(parts) + (format_event(b"[DONE]") if done else b""))
