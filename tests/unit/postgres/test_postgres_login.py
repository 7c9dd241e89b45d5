"""How a client comes in: every first packet, whole and byte by byte, and the password."""

from __future__ import annotations

import hashlib
import hmac
import struct
from base64 import b64decode, b64encode

import pytest

from proxy.postgres import wire
from proxy.postgres.auth.login import Login, LoginPolicy
from proxy.postgres.auth.scram import ScramExchange, ScramVerifier
from proxy.postgres.auth.startup import CANCEL_REQUEST, GSS_REQUEST, SSL_REQUEST, parse_startup, split_packet

PASSWORD = "quite secret"
VERIFIER = ScramVerifier(PASSWORD)


def gate(**more):
    return LoginPolicy(VERIFIER, "app", "shop", **more)


def first(code, body=b""):
    return struct.pack(">II", len(body) + 8, code) + body


def startup(version=196608, **names):
    named = {"user": "app", "database": "shop", **names}
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in named.items() if value is not None)
    return first(version, body + b"\0")


def client_final(password, challenge, bare=b"n=,r=abc", binding=b"biws"):
    """What a client answers (RFC 5802 section 3)."""
    parts = dict(part.split(b"=", 1) for part in challenge.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b64decode(parts[b"s"]), int(parts[b"i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    without = b"c=" + binding + b",r=" + parts[b"r"]
    signed = bare + b"," + challenge + b"," + without
    proof = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
    return without + b",p=" + b64encode(bytes(a ^ b for a, b in zip(key, proof, strict=True))), signed, salted


def first_answer(text=b"n,,n=,r=abc", mechanism=b"SCRAM-SHA-256"):
    return wire.message(wire.PASSWORD, mechanism + b"\0" + struct.pack(">i", len(text)) + text)


def fed(login, data, step):
    return b"".join(login.feed(data[pos : pos + step]) for pos in range(0, len(data), step))


def code_of(said):
    return next(wire.error_fields(body) for kind, body in wire.split_messages(said) if kind == wire.ERROR)["C"]


@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize("password", [PASSWORD, "wrong", ""])
def test_a_password_is_proved_in_two_messages(step, password):
    login = Login(gate())
    said = fed(login, first(SSL_REQUEST), 8)
    assert said == b"N"
    said = fed(login, startup(application_name="x"), step)
    assert said == wire.message(wire.AUTHENTICATION, b"\0\0\0\nSCRAM-SHA-256\0\0")
    ((_, challenge),) = wire.split_messages(fed(login, first_answer(), step))
    final, signed, salted = client_final(password, challenge[4:])
    said = fed(login, wire.message(wire.PASSWORD, final) + b"Q", step)
    if password != PASSWORD:
        assert code_of(said) == "28P01"
        assert login.closing
        return
    ((_, body),) = wire.split_messages(said)
    assert body[4:] == b"v=" + b64encode(hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256"))
    assert login.accepted.application_name == "x"
    assert (login.remainder + b"Q")[:1] == b"Q"


@pytest.mark.parametrize(
    "sent",
    [
        first_answer(mechanism=b"SCRAM-SHA-256-PLUS"),
        first_answer(b"p=tls-server-end-point,,n=,r=abc"),
        first_answer(b"n,,n="),
        first_answer(b"n,,m=ext,n=,r=abc"),
        first_answer(b""),
        wire.message(wire.PASSWORD, b"secret\0"),
        wire.message(wire.QUERY, b"select 1\0"),
        wire.HEADER.pack(wire.PASSWORD, 1 << 30),
    ],
)
def test_what_is_no_proof_is_refused(sent):
    login = Login(gate())
    login.feed(startup())
    assert code_of(login.feed(sent)) in ("28P01", "08P01")
    assert login.closing


@pytest.mark.parametrize("final", [b"", b"c=biws", b"c=eSws,r=x,p=abc", b",p=", b"c=biws,r=abc,p=!!"])
def test_a_proof_that_is_none_is_none(final):
    exchange = ScramExchange(VERIFIER)
    exchange.answer_first(b"n,,n=,r=abc")
    assert exchange.answer_final(final) is None


def test_a_client_that_could_bind_the_channel_is_told_apart():
    exchange = ScramExchange(VERIFIER)
    challenge = exchange.answer_first(b"y,,n=,r=abc")
    final, _, _ = client_final(PASSWORD, challenge, binding=b64encode(b"y,,"))
    assert exchange.answer_final(final).startswith(b"v=")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (startup(user="other"), "28000"),
        (startup(replication="database"), "0A000"),
        (startup(2 << 16), "0A000"),
        (startup(user=None), "08P01"),
        (first(196608, b"user\0app"), "08P01"),
        (first(196608, b"user\0app\0x\0\0"), "08P01"),
    ],
)
def test_what_is_refused_is_refused_with_a_sentence(sent, code):
    login = Login(gate())
    assert code_of(login.feed(sent)) == code
    assert login.closing
    assert login.failure


@pytest.mark.parametrize("version", [196608 + 2, 196608 + 9999])
def test_a_later_protocol_is_talked_down(version):
    said = Login(gate()).feed(startup(version, **{"_pq_.thing": "1"}))
    found = list(wire.split_messages(said))
    assert found[0] == (wire.NEGOTIATE_VERSION, struct.pack(">ii", 0, 1) + b"_pq_.thing\0")
    assert found[1][0] == wire.AUTHENTICATION


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 20,
        b"\0\0\0\0\0\0\0\0",
        first(SSL_REQUEST) + b"x",
    ],
)
def test_what_is_no_start_is_hung_up_on(sent):
    login = Login(gate())
    login.feed(sent)
    assert login.closing
    assert login.accepted is None


def test_encryption_is_declined_or_begun():
    login = Login(gate())
    assert fed(login, first(GSS_REQUEST), 3) + fed(login, first(SSL_REQUEST), 3) == b"NN"
    assert login.tls_declined
    login = Login(gate(tls=True))
    assert login.feed(first(GSS_REQUEST)) + login.feed(first(SSL_REQUEST)) == b"NS"
    assert login.wants_tls
    login.on_tls_started()
    assert login.feed(startup()).startswith(b"R")


def test_a_cancel_is_no_login():
    login = Login(gate())
    assert fed(login, first(CANCEL_REQUEST, struct.pack(">II", 7, 0xFFFFFFFF)), 5) == b""
    assert login.cancel_key == (7, 0xFFFFFFFF)


def test_the_console_is_a_database_too():
    login = Login(gate())
    assert login.feed(startup(database="outrigger")).startswith(b"R")


# ── what a startup packet asks for ───────────────────────────────────────────────────────────────


def asked(**names):
    return parse_startup(*split_packet(startup(**names)))


@pytest.mark.parametrize(
    ("names", "name", "encoding", "key"),
    [
        ({}, "", None, ()),
        ({"application_name": "a", "client_encoding": "'utf-8'"}, "a", "UTF8", ()),
        ({"client_encoding": "latin1"}, "", "LATIN1", ()),
        ({"search_path": "a", "jit": "off"}, "", None, (("jit", "off"), ("search_path", "a"))),
        ({"options": "-c statement_timeout=5s --search-path=b -c application_name=n"}, "n", None,
         (("search_path", "b"), ("statement_timeout", "5s"))),
        ({"options": r"-c search_path=a\ b -csome.thing=1"}, "", None, (("search_path", "a b"), ("some.thing", "1"))),
        ({"options": "-e"}, "", None, (("options", "-e"),)),
    ],
)  # fmt: skip
def test_every_name_of_the_packet_is_kept(names, name, encoding, key):
    found = asked(**names)
    assert (found.application_name, found.encoding, found.pool_key) == (name, encoding, key)


def test_a_database_that_is_not_named_is_the_users():
    assert asked(database=None).database == "app"


@pytest.mark.parametrize("value", ["off", "false", "0", "no"])
def test_no_replication_is_no_replication(value):
    assert not asked(replication=value).replication
