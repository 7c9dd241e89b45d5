"""Every kind of delta of the installed SDKs counts as output, or is named here with the reason why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import anthropic.types as claude
import anthropic.types.beta as claude_beta
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion, responses
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from pydantic import BaseModel

from proxy.egress.dialects import OutputSize, dialect_for
from proxy.egress.dialects.image_tokens import image_tokens

OPENAI, ANTHROPIC = dialect_for("openai"), dialect_for("anthropic")
WORDS = "w" * 4_000

REPEATS = "repeats what its deltas had"
LIFE = "says only how far it is"
GIVEN = "was not written by the model, but given to it"
MARK = "a name, id or mark"
# What has no words that count, and why.
UNCOUNTED = {
    "chat": {"role": MARK},
    "responses": {
        "response.created": LIFE,
        "response.queued": LIFE,
        "response.in_progress": LIFE,
        "response.completed": "has the usage",
        "response.incomplete": "has the usage",
        "response.failed": "has the usage, or cost nothing",
        "error": "is no output",
        "response.audio.done": LIFE,
        "response.audio.transcript.done": LIFE,
        "response.output_item.added": "comes again, whole, as response.output_item.done",
        "response.content_part.added": "comes again, whole, in its item",
        "response.content_part.done": "comes again, whole, in its item",
        "response.reasoning_summary_part.added": "comes again, whole, in its item",
        "response.reasoning_summary_part.done": REPEATS,
        "response.output_text.done": REPEATS,
        "response.refusal.done": REPEATS,
        "response.reasoning_text.done": REPEATS,
        "response.reasoning_summary_text.done": REPEATS,
        "response.function_call_arguments.done": REPEATS,
        "response.mcp_call_arguments.done": REPEATS,
        "response.custom_tool_call_input.done": REPEATS,
        "response.code_interpreter_call_code.done": REPEATS,
        "response.shell_call_command.done": REPEATS,
        "response.shell_call_output_content.delta": GIVEN,
        "response.shell_call_output_content.done": GIVEN,
        "response.output_text.annotation.added": "is read off the text",
        **{
            f"response.{tool}.{state}": LIFE
            for tool, states in {
                "code_interpreter_call": "in_progress interpreting completed",
                "file_search_call": "in_progress searching completed",
                "web_search_call": "in_progress searching completed",
                "image_generation_call": "in_progress generating completed",
                "mcp_call": "in_progress completed failed",
                "mcp_list_tools": "in_progress completed failed",
                "compaction": "compacting",
            }.items()
            for state in states.split()
        },
    },
    "items": {
        "function_call_output": GIVEN,
        "computer_call_output": GIVEN,
        "program_output": GIVEN,
        "tool_search_output": GIVEN,
        "local_shell_call_output": GIVEN,
        "shell_call_output": GIVEN,
        "apply_patch_call_output": GIVEN,
        "custom_tool_call_output": GIVEN,
        "mcp_list_tools": GIVEN,
        "additional_tools": GIVEN,
        "mcp_approval_response": GIVEN,
        "image_generation_call": "counts as an image",
    },
    "messages": {
        "citations_delta": "quotes what the model was given; no tokens (docs.claude.com, citations)",
    },
    "blocks": {
        "web_search_tool_result": GIVEN,
        "web_fetch_tool_result": GIVEN,
        "advisor_tool_result": GIVEN,
        "code_execution_tool_result": GIVEN,
        "bash_code_execution_tool_result": GIVEN,
        "text_editor_code_execution_tool_result": GIVEN,
        "tool_search_tool_result": GIVEN,
        "mcp_tool_result": GIVEN,
        "container_upload": GIVEN,
        "fallback": MARK,
        "mcp_tool_listing": GIVEN,
    },
}


def members(annotation: Any) -> Iterator[Any]:
    """The types of a union, whatever they are wrapped in."""
    while get_origin(annotation) is Annotated or hasattr(annotation, "__value__"):
        annotation = getattr(annotation, "__value__", None) or get_args(annotation)[0]
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        for one in get_args(annotation):
            yield from members(one)
    elif annotation is not type(None):
        yield annotation


def filled(annotation: Any, name: str = "", depth: int = 0) -> object:
    """A value of that type with words wherever a string can be."""
    kinds = list(members(annotation))
    kind = next((one for one in kinds if one is str), kinds[0])
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    if get_origin(kind) in (list, tuple):
        return [filled(get_args(kind)[0], name, depth + 1)]
    if get_origin(kind) is dict or kind in (object, Any):
        return {"words": WORDS}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if depth > 6:
            return None
        fields = kind.model_fields.items()
        return {field: filled(info.annotation, field, depth + 1) for field, info in fields}
    if kind in (int, float, bool):
        return kind(0)
    return WORDS


def kind_of(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["type"].annotation)[0])


def judged(kind: str, endpoint: str, *events: object) -> OutputSize:
    state = dialect_for(kind).stream_state(endpoint, strip_usage=False)
    assert state is not None
    for event in events:
        state.classify(b"data: " + json.dumps(event).encode() + b"\n\n")
    return state.output_size


def holds(what: str, reasons: dict[str, str], written: OutputSize) -> None:
    if what in reasons:
        assert not written or written.image_tokens, (
            f"{what} is said not to count ({reasons[what]}), and does: {written!r}"
        )
    else:
        assert written, f"{what} neither counts nor has a reason"


@pytest.mark.parametrize("name", ChoiceDelta.model_fields)
def test_every_part_of_a_chats_delta_counts(name):
    delta = {name: filled(ChoiceDelta.model_fields[name].annotation, name)}
    holds(name, UNCOUNTED["chat"], judged("openai", "chat", {"choices": [{"index": 0, "delta": delta}]}))


def test_nothing_else_of_a_chats_chunk_has_words():
    """A part that is new, beside `choices` and `delta`, has to be looked at."""
    known = "id choices created model object moderation obfuscation service_tier system_fingerprint usage"
    assert set(ChatCompletionChunk.model_fields) == set(known.split())
    choice = next(iter(members(ChatCompletionChunk.model_fields["choices"].annotation)))
    assert set(get_args(choice)[0].model_fields) == {"delta", "finish_reason", "index", "logprobs"}
    legacy = get_args(Completion.model_fields["choices"].annotation)[0]
    assert set(legacy.model_fields) == {"finish_reason", "index", "logprobs", "text"}


@pytest.mark.parametrize("name", ChatCompletionMessage.model_fields)
def test_every_part_of_a_whole_chat_counts(name):
    message = {name: filled(ChatCompletionMessage.model_fields[name].annotation, name)}
    reasons = {"role": MARK, "annotations": "read off the text"}
    holds(name, reasons, OPENAI.output_size("chat", {"choices": [{"message": message}]}))


EVENTS = list(members(responses.ResponseStreamEvent))


@pytest.mark.parametrize("event", EVENTS, ids=kind_of)
def test_every_event_of_a_response_counts(event):
    if kind_of(event) == "response.output_item.done":
        return  # see the items
    holds(kind_of(event), UNCOUNTED["responses"], judged("openai", "responses", filled(event)))


ITEMS = list(members(responses.ResponseOutputItem))


@pytest.mark.parametrize("item", ITEMS, ids=kind_of)
def test_every_item_of_a_response_counts_in_a_stream_and_whole(item):
    whole = filled(item)
    event = {"type": "response.output_item.done", "output_index": 0, "item": whole}
    holds(kind_of(item), UNCOUNTED["items"], judged("openai", "responses", event))
    holds(kind_of(item), UNCOUNTED["items"], OPENAI.output_size("responses", {"output": [whole]}))


DELTAS = [*members(claude.RawContentBlockDelta), *members(claude_beta.BetaRawContentBlockDelta)]
BLOCKS = [
    *members(claude.RawContentBlockStartEvent.model_fields["content_block"].annotation),
    *members(claude_beta.BetaRawContentBlockStartEvent.model_fields["content_block"].annotation),
]


@pytest.mark.parametrize("delta", DELTAS, ids=lambda one: one.__name__)
def test_every_delta_of_claudes_counts(delta):
    event = {"type": "content_block_delta", "index": 0, "delta": filled(delta)}
    holds(kind_of(delta), UNCOUNTED["messages"], judged("anthropic", "messages", event))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda one: one.__name__)
def test_every_block_of_claudes_counts_in_a_stream_and_whole(block):
    event = {"type": "content_block_start", "index": 0, "content_block": filled(block)}
    holds(kind_of(block), UNCOUNTED["blocks"], judged("anthropic", "messages", event))
    holds(kind_of(block), UNCOUNTED["blocks"], ANTHROPIC.output_size("messages", {"content": [filled(block)]}))


def test_claudes_other_events_have_no_words():
    known = {"message_start", "message_delta", "message_stop", "content_block_start", "content_block_stop"}
    for union in (claude.RawMessageStreamEvent, claude_beta.BetaRawMessageStreamEvent):
        assert {kind_of(one) for one in members(union)} == {*known, "content_block_delta"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.sampled_from(
    ["content", "audio", "data", "input", "thinking", "signature", "reasoning_details", "type", "result", "tool_calls"]
)


@settings(deadline=None)
@given(st.dictionaries(NAMES, JSON | st.dictionaries(NAMES, JSON)))
def test_no_answer_is_too_odd_to_be_measured(part):
    for answer in (part, {"choices": [{"message": part}]}, {"output": [part]}, {"content": [part]}):
        for kind, endpoint in (("openai", "chat"), ("openai", "responses"), ("anthropic", "messages")):
            written = dialect_for(kind).output_size(endpoint, answer)
            assert (
                min(
                    written.text_bytes,
                    written.reasoning_bytes,
                    written.audio_tokens,
                    written.image_tokens,
                    written.other_tokens,
                )
                >= 0
            )


def test_only_text_teaches_what_text_takes():
    written = OutputSize(100)
    assert written.learnable_text_bytes(0) == 100
    written.add_text("hm", reasoning=True)
    assert written.learnable_text_bytes(0) == 0, "what was thought may be among the tokens, or not"
    assert written.learnable_text_bytes(7) == 100, "here the vendor says how many of them"
    written.add_audio("A" * 10)
    assert written.learnable_text_bytes(7) == 0


@pytest.mark.parametrize(
    ("model", "size", "quality", "tokens"),
    [  # developers.openai.com/api/docs/guides/image-generation
        ("gpt-image-1", "1024x1024", "low", 272),
        ("gpt-image-1", "1024x1024", "medium", 1056),
        ("gpt-image-1", "1024x1024", "high", 4160),
        ("gpt-image-1-mini", "1024x1536", "high", 6240),
        ("gpt-image-1.5", "auto", "auto", 6240),
        ("gpt-image-2", "1024x1024", "high", 7024),
        ("gpt-image-2", "1536x1024", "high", 5488),
        ("gpt-image-2", None, None, 7024),
        (None, "0x0", 7, 4609),
        ("flux", "99999x99999", "draft", 159227),
    ],
)
def test_an_image_takes_tokens_by_size_and_quality(model, size, quality, tokens):
    assert image_tokens(model, size, quality) == tokens
