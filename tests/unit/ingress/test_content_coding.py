"""Which coding a client gets, and which answers may be coded at all."""

import zlib
from types import SimpleNamespace

import pytest

from proxy.ingress.compression.compressed_response import choose_response_coding, is_compressible
from proxy.ingress.compression.encoders import Encoders, choose_coding
from proxy.ingress.entity_tags import matches_weakly, strengthen_tags, weaken_tag

ALL = ("zstd", "br", "gzip")


@pytest.mark.parametrize(
    ("said", "coding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, br", "br"),
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("gzip;q=0, br;q=0", None),
        ("gzip;q=0.0", None),
        ("gzip;q=0, *", "zstd"),
        ("*", "zstd"),
        ("*;q=0", None),
        ("zstd;q=0, *;q=0.1", "br"),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("identity;q=0", None),
        ("gzip ; q=0.3 , br ;q=0.4", "br"),
        ("gzip;q=nonsense", None),
        ("gzip;q=2", None),
        ("deflate", None),
        (";;,,gzip", "gzip"),
    ],
)
def test_the_client_says_which_coding_it_gets(said, coding):
    assert choose_coding(said, ALL) == coding


def test_a_coding_that_is_not_installed_is_not_offered():
    assert Encoders().whole == ("gzip",)
    assert choose_coding("br, zstd", Encoders().whole) is None


@pytest.mark.parametrize("coding", Encoders.load().whole)
@pytest.mark.parametrize("stream", [False, True])
def test_what_was_flushed_can_be_decoded_at_once_and_all_of_it_in_the_end(coding, stream):
    encoders = Encoders.load()
    encoder = encoders.make(coding, stream=stream)
    sent = encoder.compress(b"one ") + encoder.flush()
    assert sent
    if coding == "gzip":
        assert zlib.decompressobj(31).decompress(sent) == b"one "
    sent += encoder.compress(b"two " * 5000) + encoder.finish()
    assert encoders.decoders[coding](sent) == b"one " + b"two " * 5000
    assert len(sent) < 500


@pytest.mark.parametrize("coding", Encoders.load().whole)
def test_answers_one_after_the_other_and_at_once_do_not_know_of_each_other(coding):
    encoders = Encoders.load()
    given_up = encoders.make(coding, stream=False)
    given_up.compress(b"never finished " * 100)
    for number in range(3):
        one, other = encoders.make(coding, stream=False), encoders.make(coding, stream=False)
        text = b"text %d " % number * 500
        coded, also = one.compress(text), other.compress(text[::-1])
        assert encoders.decoders[coding](coded + one.finish()) == text
        assert encoders.decoders[coding](also + other.finish()) == text[::-1]


def head(status=200, kind=b"text/html", bodyless=False, **fields):
    headers = [(b"Content-Type", kind)] if kind else []
    headers += [(name.replace("_", "-").encode(), value) for name, value in fields.items()]
    return SimpleNamespace(status=status, headers=headers, bodyless=bodyless)


@pytest.mark.parametrize(
    ("given", "size", "expected"),
    [
        (head(), 5000, True),
        (head(), None, True),
        (head(), 100, False),
        (head(kind=b"text/event-stream; charset=utf-8"), None, True),
        (head(kind=b"Application/Problem+JSON"), 5000, True),
        (head(kind=b"image/svg+xml"), 5000, True),
        (head(kind=b"image/png"), 5000, False),
        (head(kind=b"application/octet-stream"), 5000, False),
        (head(kind=b""), 5000, False),
        (head(status=404), 5000, True),
        (head(status=206), 5000, False),
        (head(status=204, bodyless=True), None, False),
        (head(status=304, bodyless=True), 5000, False),
        (head(Content_Encoding=b"gzip"), 5000, False),
        (head(Content_Encoding=b"identity"), 5000, True),
        (head(Cache_Control=b"max-age=5, No-Transform"), 5000, False),
        (head(Cache_Control=b"no-transformation"), 5000, True),
        (head(Repr_Digest=b"sha-256=:a:"), 5000, False),
    ],
)
def test_which_answers_may_be_coded(given, size, expected):
    assert is_compressible(given, size) is expected


def test_a_client_of_http_1_0_gets_it_plain():
    client = SimpleNamespace(http10=True, joined_header=lambda name: "gzip")
    assert choose_response_coding(client, ("gzip",)) is None


def test_tags_are_made_weak_and_strong_again():
    assert weaken_tag(b'"a"') == b'W/"a"'
    assert weaken_tag(b'W/"a"') == b'W/"a"'
    assert weaken_tag(b"nonsense") == b"nonsense"
    assert strengthen_tags(b'W/"a", "b",W/"c,d"') == b'"a", "b", "c,d"'
    assert strengthen_tags(b"*") == b"*"
    assert matches_weakly(b'"x", W/"a"', b'"a"')
    assert matches_weakly(b"*", b'"a"')
    assert not matches_weakly(b'"x"', b'W/"a"')
