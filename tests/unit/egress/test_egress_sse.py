"""Server-sent events as bytes: nothing is lost, nothing is changed, however they arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.egress.sse import EventSplitter, EventTooLarge, format_event, parse_event

STREAMS = {
    "LF": (b"data: a\n\ndata: b\n\n", ["a", "b"]),
    "CRLF": (b"data: a\r\n\r\nevent: x\r\ndata: b\r\n\r\n", ["a", "b"]),
    "CR": (b"data: a\r\rdata: b\r\r:\r\r", ["a", "b", None]),
    "a comment": (b": keepalive\n\ndata: a\n\n", [None, "a"]),
    "several data lines": (b"data: a\ndata:b\ndata\n\n", ["a\nb\n"]),
    "UTF-8": ("data: häß€\n\n".encode(), ["häß€"]),
    "a byte order mark": ("\ufeffdata: a\n\n".encode(), ["a"]),
    "other fields": (b"id: 1\nretry: 5\nevent: x\ndata: {}\n\n", ["{}"]),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_events_come_out_whole_however_the_bytes_come_in(name, step):
    data, wanted = STREAMS[name]
    splitter = EventSplitter()
    events = [event for at in range(0, len(data), step) for event in splitter.feed(data[at : at + step])]
    rest = splitter.flush()
    assert b"".join(events) + rest == data
    events += [rest] if rest.strip() else []
    assert [parse_event(event).data for event in events if event.strip()] == wanted


@given(
    st.lists(st.sampled_from([b"data: a", b"\n", b"\r\n", b"\r", b": c", b"x", "é".encode()[:1]]), max_size=60),
    st.integers(1, 9),
)
def test_what_comes_out_is_what_came_in(parts, step):
    data, splitter, out = b"".join(parts), EventSplitter(), b""
    for at in range(0, len(data), step):
        out += b"".join(splitter.feed(data[at : at + step]))
    assert out + splitter.flush() == data


def test_a_last_event_without_a_blank_line_is_the_rest():
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\n\ndata: [DONE]") == [b"data: a\n\n"]
    assert splitter.flush() == b"data: [DONE]"


def test_an_event_has_a_largest_size():
    with pytest.raises(EventTooLarge):
        EventSplitter(limit=100).feed(b"data: " + b"x" * 200)


@given(st.text(alphabet=st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"])))
def test_a_message_says_what_was_put_into_it(text):
    assert parse_event(format_event(text.encode(), "name")).data == text
    assert parse_event(format_event(text.encode(), "name")).name == "name"
