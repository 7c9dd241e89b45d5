"""Events told by their bytes are told as if they had been parsed: the same verdicts, counts and numbers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.egress.dialects import anthropic, openai_chat_stream, openai_responses_stream
from proxy.egress.dialects.base import EventKind
from proxy.egress.dialects.delta_template import learn_template
from proxy.egress.sse import EventSplitter
from proxy.egress.upstream_response import judge_events, split_events

MODULES = {
    "chat": (openai_chat_stream, lambda: openai_chat_stream.ChatStream(strip_usage=False)),
    "responses": (openai_responses_stream, openai_responses_stream.ResponsesStream),
    "messages": (anthropic, anthropic.MessagesStream),
}
texts = st.one_of(
    st.text(max_size=12), st.sampled_from(["word ", "", '"', "\\", "\n\n", "é€", "\u2028", '{"content":"x"}', "\x7f"])
)
styles = st.sampled_from([(",", ":"), (", ", ": ")])


@st.composite
def chat_event(draw, style, ascii_only):
    delta = {"content": draw(texts)}
    if draw(st.integers(0, 9)) == 0:
        delta |= draw(
            st.sampled_from(
                [{"role": "assistant"}, {"refusal": "no"}, {"tool_calls": [{"index": 0}]}, {"reasoning": "hm"}]
            )
        )
    choice = {"index": draw(st.sampled_from([0, 0, 0, 1])), "delta": delta, "finish_reason": None}
    if draw(st.integers(0, 9)) == 0:
        choice["finish_reason"] = "stop"
    said = {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
    if draw(st.integers(0, 9)) == 0:
        said["usage"] = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    if draw(st.booleans()):
        said["obfuscation"] = "x" * draw(st.integers(0, 5))
    return b"data: " + json.dumps(said, separators=style, ensure_ascii=ascii_only).encode() + b"\n\n"


@st.composite
def responses_event(draw, style, ascii_only):
    kind = draw(
        st.sampled_from(
            [*["response.output_text.delta"] * 6, "response.reasoning_text.delta", "response.output_item.done"]
        )
    )
    said = {
        "type": kind,
        "sequence_number": draw(st.integers(0, 300)),
        "item_id": "m",
        "output_index": draw(st.sampled_from([0, 0, 1])),
    }
    if kind == "response.output_item.done":
        part = {"type": "output_text", "text": draw(texts), "annotations": []}
        said["item"] = {"type": "message", "id": "m", "content": [part]}
    else:
        said |= {"delta": draw(texts), "logprobs": [], "obfuscation": "x" * draw(st.integers(0, 5))}
    body = json.dumps(said, separators=style, ensure_ascii=ascii_only).encode()
    return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"


@st.composite
def messages_event(draw, style, ascii_only):
    delta = draw(
        st.sampled_from([{"type": "text_delta"}] * 5 + [{"type": "thinking_delta"}, {"type": "input_json_delta"}])
    )
    key = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}[delta["type"]]
    said = {
        "type": "content_block_delta",
        "index": draw(st.sampled_from([0, 0, 1])),
        "delta": {**delta, key: draw(texts)},
    }
    body = json.dumps(said, separators=style, ensure_ascii=ascii_only).encode()
    return b"event: content_block_delta\ndata: " + body + b"\n\n"


PLAIN = {
    "chat": b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n',
    "responses": b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":7,'
    b'"output_index":0,"delta":"%s","obfuscation":"abc"}\n\n',
    "messages": b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    b'"text":"%s"}}\n\n',
}
EVENTS = {"chat": chat_event, "responses": responses_event, "messages": messages_event}


def picture(state):
    seen = {name: getattr(state, name, None) for name in ("ended", "usage", "model", "sequence_number", "error_status")}
    return {**seen, "size": repr(state.output_size), "deltas": getattr(state, "_delta_bytes", None)}


@pytest.mark.parametrize("dialect", MODULES)
@given(data=st.data())
def test_a_stream_is_told_the_same_with_templates_and_without(dialect, data):
    make = MODULES[dialect][1]
    style, ascii_only = data.draw(styles), data.draw(st.booleans())
    events = data.draw(st.lists(EVENTS[dialect](style, ascii_only), min_size=1, max_size=12))
    # Some have another byte somewhere: what is not the same is parsed, whatever it is.
    for number in data.draw(st.lists(st.integers(0, len(events) - 1), max_size=3)):
        event = bytearray(events[number])
        at = data.draw(st.integers(0, len(event) - 3))
        if event[at] < 128:
            event[at] = data.draw(st.sampled_from(b'x"\\{}[],:0 \t'))
        events[number] = bytes(event)
    with_templates, without = make(), make()
    without._templates_learnt = 10**6
    for event in events:
        assert with_templates.classify(event) is without.classify(event), event
        assert picture(with_templates) == picture(without), event
    assert without._template is None


@pytest.mark.parametrize("dialect", MODULES)
@given(data=st.data())
def test_a_stream_in_any_pieces_is_told_as_its_events_one_by_one(dialect, data):
    make = MODULES[dialect][1]
    style, ascii_only = data.draw(styles), data.draw(st.booleans())
    events = data.draw(st.lists(EVENTS[dialect](style, ascii_only), min_size=1, max_size=40))
    events *= data.draw(st.sampled_from([1, 1, 10]))  # as many as are looked at together
    if data.draw(st.integers(0, 3)) == 0:
        at = data.draw(st.integers(0, len(events) - 1))
        events[at] = events[at].replace(b"\n", data.draw(st.sampled_from([b"\r\n", b"\r", b"\n\n"])))
    whole, cuts = b"".join(events), [0]
    cuts += sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    together, splitter = make(), EventSplitter()
    pieces = [whole[start:end] for start, end in zip(cuts, [*cuts[1:], len(whole)], strict=True)]
    judged = [pair for piece in [*filter(None, pieces), b""] for pair in judge_events(splitter, together, piece)]
    assert b"".join(piece for piece, _ in judged) == whole
    alone = make()
    alone._templates_learnt = 10**6
    splitter = EventSplitter()
    one_by_one = [alone.classify(event) for data in (whole, b"") for event in split_events(splitter, data)]
    assert picture(together) == picture(alone)
    seen = [verdict for _, verdict in judged if verdict is not EventKind.CONTENT]
    # Blank lines may count as an event of their own, which says nothing.
    assert [v for v in seen if v is not EventKind.PREAMBLE] == [
        v for v in one_by_one if v not in (EventKind.CONTENT, EventKind.PREAMBLE)
    ]


@pytest.mark.parametrize("dialect", MODULES)
def test_plain_events_that_come_together_pass_as_they_came(dialect):
    plain = PLAIN[dialect]
    state = MODULES[dialect][1]()
    state.classify(plain % b"one")
    texts = [b"two", b"and\\nmore", "é€".encode(), b'\\"said\\"', b"\\u00e9"] * 500
    together = b"".join(plain % text for text in texts)
    judged = list(judge_events(EventSplitter(), state, together + plain % b"\\ud800" + plain % b"end"))
    assert [piece for piece, _ in judged] == [together, plain % b"\\ud800", plain % b"end"]
    assert state.output_size.text_bytes == 3 + 500 * (3 + 8 + 5 + 6 + 2) + 1 + 3


@pytest.mark.parametrize("dialect", MODULES)
def test_templates_are_learnt_from_plain_events(dialect):
    """Else all would be parsed, and the test above would be of nothing."""
    plain = PLAIN[dialect]
    state = MODULES[dialect][1]()
    state.classify(plain % b"one")
    assert state._template.match(plain % b"two and more").size == 12
    assert state._template.match(plain % b'"') is None


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"content":"a","content":"a"}\n\n',
        b'data: {"content":"\\u0061"}\n\n',
        b'data: {"content":"a"}\r\n\r\n',
        b'data: {"text":"a"}\n\n',
    ],
    ids=["twice", "with an escape", "with CR", "below another key"],
)
def test_an_event_that_does_not_show_its_text_plainly_teaches_nothing(event):
    assert learn_template(event, b"content", "a") is None
