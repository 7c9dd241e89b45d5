"""JSON of calls: as it is read, and as it is written again for a vendor or an app."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.egress.dialects import dialect_for
from proxy.egress.dialects.base import MAX_COUNT
from proxy.util.json_bytes import json_bytes, parse_json

ROOT = Path(__file__).parents[3] / "proxy" / "egress"
ANY = st.text(st.one_of(st.characters(), st.characters(categories=["Cs"])))
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | ANY


@given(st.recursive(ANY, lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)))
def test_what_is_written_reads_as_what_it_was(value):
    read = json.loads(json.dumps(value))  # two halves that meet are one letter
    assert json.loads(json_bytes(read)) == read


def test_nobody_else_on_the_way_out_writes_json():
    writers = [path.name for path in ROOT.rglob("*.py") if "json.dumps(" in path.read_text()]
    assert writers == []


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)))
def test_what_is_read_is_what_python_reads(value):
    text = json.dumps(value).encode()
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": NaN, "b": Infinity}',
        b'{"a": "\\ud83d"}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": 1, "a": 2}',
        b'{"a": 1e999}',
        b"[" * 1200 + b"]" * 1200,
        b"{'a': 1}",
        b"",
        b'{"a": 1} x',
        b'{"a": \x01}',
    ],
)
def test_what_one_reader_refuses_is_read_as_the_other_reads_it(text):
    assert repr(outcome(parse_json, text)) == repr(outcome(json.loads, text))


def outcome(read, text):
    try:
        return read(text)
    except (ValueError, RecursionError) as error:
        return type(error)


def test_a_number_of_any_length_is_written_again_to_its_last_digit():
    body = b'{"model": "a", "seed": 123456789012345678901234567890, "stream": true, "stream_options": {}}'
    openai = dialect_for("openai")
    asked = openai.with_usage_option("chat", body, parse_json(body))
    assert (
        json.loads(asked)["seed"] == json.loads(openai.with_model(body, "b"))["seed"] == 123456789012345678901234567890
    )


@pytest.mark.parametrize("number", ["123456789012345678901234567890", "1e30", "999999999999.0"])
@pytest.mark.parametrize(("kind", "endpoint"), [("openai", "chat"), ("anthropic", "messages")])
def test_more_than_64_bits_still_ask_for_as_much_as_there_can_be(kind, endpoint, number):
    """A number that is read as a float must not reserve less than a whole one did."""
    asked = dialect_for(kind).parse_request(endpoint, parse_json(b'{"max_tokens": %s}' % number.encode()))
    assert asked.max_tokens == MAX_COUNT


def test_more_than_64_bits_ask_for_as_many_choices_as_there_can_be():
    openai = dialect_for("openai")
    assert openai.parse_request("chat", parse_json(b'{"n": 123456789012345678901234567890}')).choices == 128
    assert openai.parse_request("chat", parse_json(b'{"n": 0}')).choices == 1
