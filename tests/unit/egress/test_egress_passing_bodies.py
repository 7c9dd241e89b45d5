"""What is read of bodies that pass: fields of forms, and both ends of JSON, however they are cut in pieces."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.egress.dialects.media_stream import MediaStream
from proxy.egress.dialects.openai_usage import openai_usage
from proxy.egress.json_ends import KEPT_BYTES, JsonEnds
from proxy.egress.multipart import MAX_FIELD_VALUE, MultipartScanner, parse_boundary

FORM = (
    b"preamble\r\n--XX\r\n"
    b'Content-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: x\r\n\r\nabc\r\n--X\r\n--XY\r\n\r\n--XX\r\n'
    b'content-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--XX  \r\n'
    b"Content-Disposition: form-data; name=n\r\n\r\n\r\n--XX\r\n\r\nnameless\r\n--XX--\r\nepilogue"
)


@pytest.mark.parametrize("size", range(1, len(FORM) + 1))
def test_a_form_is_read_however_it_is_cut(size):
    form = MultipartScanner(b"XX")
    for at in range(0, len(FORM), size):
        form.feed(FORM[at : at + size])
    assert form.fields == {"model": "whisper-1", "n": ""}
    assert form.size == len(FORM)


def test_a_field_that_comes_twice_with_two_values_is_known_for_it():
    form = MultipartScanner(b"X")
    part = b'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n'
    form.feed(part % b"a" + part % b"a")
    assert not form.repeated
    form.feed(part % b"b" + b"--X--")
    assert form.repeated == {"model"}


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_no_form_is_too_odd_and_none_is_kept(pieces):
    form = MultipartScanner(b"X")
    for piece in [*pieces, b"\r\n--X\r\n" + b"h" * 100_000, b"v" * 1_000_000]:
        form.feed(piece)
    assert len(form._held) < 10_000
    assert len(form._value) <= MAX_FIELD_VALUE + 1_000_002


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        ("multipart/form-data; boundary=a-b", b"a-b"),
        ('multipart/form-data; charset=x; Boundary="a b"', b"a b"),
        ("multipart/form-data", None),
    ],
)
def test_the_boundary_of_a_form(kind, boundary):
    assert parse_boundary(kind) == boundary


FILL = st.sampled_from(["", "x", '"usage": {"output_tokens": 9}', "é" * 9, "A" * 3 * KEPT_BYTES])
VALUE = st.recursive(
    st.none() | st.integers() | FILL,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["usage", "model", "a"]), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["data", "model", "b", "usage"]), VALUE),
    st.integers(1, KEPT_BYTES * 2),
    st.booleans(),
)
def test_what_is_read_at_the_ends_is_the_objects_own(found, size, packed):
    raw = json.dumps(found).encode()
    data = gzip.compress(raw) if packed else raw
    ends = JsonEnds("gzip" if packed else "identity")
    for at in range(0, len(data), size):
        ends.feed(data[at : at + size])
    reported = ends.members()
    assert all(found[name] == value for name, value in reported.items())
    if len(raw) <= KEPT_BYTES:
        assert reported == found
    assert len(ends._first) + len(ends._last) <= 2 * KEPT_BYTES


@pytest.mark.parametrize("text", ["", "[1]", '{"a', '{"a": 1', "no", "{1: 2}", "\0" * 3 * KEPT_BYTES])
def test_what_is_no_object_has_no_members(text):
    ends = JsonEnds()
    ends.feed(text.encode())
    assert ends.members() == {}


def test_a_body_that_unpacks_to_too_much_is_not_read_on(monkeypatch):
    monkeypatch.setattr("proxy.egress.json_ends.MAX_UNPACKED", 1_000_000)
    ends = JsonEnds("gzip")
    ends.feed(gzip.compress(b" " * 50_000_000))
    assert ends.members() == {}
    assert ends._unpacked <= 1_300_000


EVENTS = (
    b': hello\n\nevent: x\r\ndata: {"type": "image_generation.completed",\r\ndata:  "usage": {"output_tokens": 5}}\r\n'
    b'id: 7\n\ndata: nonsense\n\ndata: {"type": "a.partial_image", "usage": {"output_tokens": 2, "x": {"y": 1}}}'
)


@pytest.mark.parametrize("size", range(1, len(EVENTS) + 1))
def test_a_stream_of_pictures_is_read_however_it_is_cut(size):
    stream = MediaStream(openai_usage)
    for at in range(0, len(EVENTS), size):
        stream.feed(EVENTS[at : at + size])
    stream.close()
    assert stream.usage is not None
    assert (stream.usage.output, stream.image_count, stream.failed) == (7, 2, False)
