"""Bytes that no client of Postgres sends: a clear error or a clean close, and nobody else notices."""

from __future__ import annotations

import random
import socket
import struct
import subprocess

import psutil
import psycopg
import pytest
from postgres_cluster import PASSWORD, USER, program
from postgres_gateway import PostgresGateway
from postgres_wire_client import (
    GSS_REQUEST,
    SSL_REQUEST,
    SYNC,
    V3,
    Gone,
    Message,
    Refused,
    Wire,
    bind,
    fields,
    message,
    parse,
    query,
    startup,
)

REQUEST = struct.Struct("!II")


def said(wire: Wire) -> tuple[list[Message], dict[str, str]]:
    """All that the door says before it closes, and its last error."""
    wire.socket.settimeout(10)
    found = wire.ended()
    errors = [each for each in found if each.kind == "E"]
    return found, fields(errors[-1].body) if errors else {}


AT_FIRST = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(190),
    "a huge length": struct.pack("!II", 0x7FFFFFFF, V3),
    "a negative length": struct.pack("!iI", -1, V3),
    "a length of nothing": struct.pack("!II", 0, V3),
    "a length below its own": struct.pack("!II", 7, V3),
    "a startup longer than Postgres takes": startup({"user": "app", "padding": "x" * 20_000}),
    "protocol 2": startup({"user": "app"}, 2 << 16),
    "protocol 4": startup({"user": "app"}, 4 << 16),
    "a startup without a user": startup({"database": "x"}),
    "a startup that does not end": struct.pack("!II", 13, V3) + b"user\0",
    "a startup of zeros": struct.pack("!II", 16, V3) + bytes(8),
    "a query before the login": query("select 1"),
    "zeros": bytes(100),
    "SMTP": b"EHLO localhost\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
}


@pytest.mark.parametrize("name", AT_FIRST)
def test_what_is_no_startup_is_closed(shared: PostgresGateway, name: str) -> None:
    wire = Wire(shared.url, login=False)
    wire.send(AT_FIRST[name])
    wire.socket.shutdown(socket.SHUT_WR)
    found = said(wire)[0]
    assert [each.kind for each in found] in ([], ["E"]), found
    wire.drop()
    with Wire(shared.url) as after:
        assert after.value("select 1") == "1"


def test_random_bytes_never_hurt(shared: PostgresGateway) -> None:
    chance = random.Random(7)
    before = psutil.Process().memory_info().rss
    for turn in range(300):
        wire = Wire(shared.url, login=False)
        size = chance.choice((1, 5, 8, 9, 100, 5000))
        raw = chance.randbytes(size)
        if turn % 3 == 0:  # a believable length in front
            raw = struct.pack("!II", size + 8, V3) + raw
        try:
            wire.send(raw)
            wire.socket.shutdown(socket.SHUT_WR)
            said(wire)
        except (Gone, OSError):
            pass
        wire.drop()
    for _ in range(100):
        wire = Wire(shared.url)
        try:
            wire.send(chance.randbytes(chance.choice((5, 100, 5000))), query("select 1"))
            wire.socket.shutdown(socket.SHUT_WR)
            said(wire)
        except (Gone, OSError):
            pass
        wire.drop()
    assert psutil.Process().memory_info().rss - before < 32 << 20
    shared.clean()


LOGINS = {
    "a wrong password": ({}, "28P01", {"password": "wrong"}),
    "no password": ({}, "28P01", {"password": ""}),
    "the database's own password": ({}, "28P01", {"password": PASSWORD}),
    "an unknown database": ({"database": "elsewhere"}, "3D000", {}),
    "an unknown user": ({"user": "mallory"}, "28", {}),
    "replication": ({"replication": "database"}, "0A000", {}),
}


@pytest.mark.parametrize("name", LOGINS)
def test_a_login_that_is_refused_is_told_why(shared: PostgresGateway, name: str) -> None:
    more, code, change = LOGINS[name]
    wire = Wire(shared.url, login=False)
    wire.password = change.get("password", wire.password)
    with pytest.raises(Refused) as refused:
        wire.log_in({"user": wire.user, "database": wire.database, **more})
    assert refused.value.code.startswith(code), refused.value
    assert refused.value.fields["S"] == "FATAL"
    assert refused.value.fields["M"]
    assert wire.ended() == []
    wire.drop()


def test_the_database_s_own_password_is_never_told(shared: PostgresGateway) -> None:
    assert PASSWORD not in shared.url
    wire = Wire(shared.url)
    reported = repr([wire.welcome, wire.ask(query("show all"))])
    assert PASSWORD not in reported
    wire.bye()


AFTER_LOGIN = {
    "an unknown kind": (message(b"z", b"abc"), "08P01"),
    "a kind of zero": (b"\0\0\0\0\x04", "08P01"),
    "a length below its own": (b"Q\0\0\0\x03", "08P01"),
    "a negative length": (b"Q\xff\xff\xff\xff", "08P01"),
    "a huge length": (b"Q\x7f\xff\xff\xff" + b"select 1", "08P01"),
    "a huge Sync": (b"S\x40\0\0\0", "08P01"),
    "a Bind cut short": (message(b"B", b"\0\0\0"), "26000"),  # the statement is looked for first
    "a Parse without an end": (message(b"P", b"name"), "08P01"),
    "a Describe of nothing": (message(b"D", b""), "08P01"),
    "a Close of nothing known": (message(b"C", b"Xname\0"), "08P01"),
    "a Query without an end": (message(b"Q", b"select 1"), "08P01"),
    "a second password": (message(b"p", b"again\0"), "08P01"),
}


@pytest.mark.parametrize("name", AFTER_LOGIN)
def test_a_broken_message_is_an_error_and_no_harm(shared: PostgresGateway, name: str) -> None:
    raw, code = AFTER_LOGIN[name]
    wire = Wire(shared.url)
    wire.send(raw, SYNC)
    wire.socket.shutdown(socket.SHUT_WR)
    found, error = said(wire)
    assert not error or error["C"] == code, found
    wire.drop()
    shared.clean()


def test_a_huge_message_is_never_held_in_memory(shared: PostgresGateway) -> None:
    wire = Wire(shared.url)
    before = psutil.Process().memory_info().rss
    try:
        wire.send(b"d\x3f\xff\xff\xff")  # CopyData of a gibibyte, though nothing is being copied
        for _ in range(128):
            wire.send(bytes(1 << 20))
    except (Gone, OSError):
        pass
    assert psutil.Process().memory_info().rss - before < 48 << 20
    wire.drop()
    shared.clean()


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSS_REQUEST])
def test_a_request_for_encryption_is_answered_no_and_the_login_goes_on(shared: PostgresGateway, request_: int) -> None:
    wire = Wire(shared.url, login=False)
    wire.send(REQUEST.pack(8, request_))
    assert wire.exactly(1) == b"N"
    wire.log_in({"user": wire.user, "database": wire.database})
    assert wire.value("select 1") == "1"
    wire.bye()


def test_both_requests_for_encryption_may_be_asked_in_turn(shared: PostgresGateway) -> None:
    wire = Wire(shared.url, login=False)
    for each in (GSS_REQUEST, SSL_REQUEST):
        wire.send(REQUEST.pack(8, each))
        assert wire.exactly(1) == b"N"
    wire.log_in({"user": wire.user, "database": wire.database})
    wire.bye()


def test_bytes_behind_a_request_for_encryption_are_refused(shared: PostgresGateway) -> None:
    """CVE-2021-23214: what was smuggled in front of TLS must not count as said within it."""
    wire = Wire(shared.url, login=False)
    wire.send(REQUEST.pack(8, SSL_REQUEST) + startup({"user": USER, "database": wire.database}))
    wire.socket.shutdown(socket.SHUT_WR)
    rest = b""
    while data := wire.socket.recv(1000):
        rest += data
    assert rest[:1] in (b"", b"N", b"E")
    assert b"SCRAM" not in rest
    wire.drop()


@pytest.mark.parametrize("minor", [1, 2, 9])
def test_a_newer_minor_version_is_negotiated_down(shared: PostgresGateway, minor: int) -> None:
    wire = Wire(shared.url, version=V3 + minor, **{"_pq_.unheard_of": "1"})
    negotiated = [each for each in wire.welcome if each.kind == "v"]
    assert len(negotiated) == 1
    newest, count = struct.unpack_from("!II", negotiated[0].body)
    assert newest <= V3 + 2
    assert count == 1
    assert b"_pq_.unheard_of\0" in negotiated[0].body
    assert wire.value("select 1") == "1"
    wire.bye()


def test_many_clients_more_than_there_may_be_are_refused_in_order(poolers) -> None:
    with poolers(clients=5) as pooler:
        wires = [Wire(pooler.url) for _ in range(5)]
        with pytest.raises(Refused) as refused:
            Wire(pooler.url)
        assert refused.value.code == "53300"
        wires.pop().bye()
        pooler.until(lambda: _enters(pooler))
        for wire in wires:
            wire.bye()


def _enters(pooler: PostgresGateway) -> bool:
    try:
        Wire(pooler.url).bye()
    except Refused:
        return False
    return True


def test_a_long_value_passes_whole(shared: PostgresGateway) -> None:
    with Wire(shared.url) as wire:
        value = "x" * (24 << 20)
        found = wire.ask(parse("select length($1::text), $1::text"), bind([value]), message(b"E", b"\0\0\0\0\0"), SYNC)
        assert [each.kind for each in found] == ["1", "2", "D", "C", "Z"]
        assert found[2].body.endswith(value.encode())


def test_with_tls_on_a_client_that_insists_is_served(poolers) -> None:
    with poolers(tls="on") as pooler:
        with psycopg.connect(pooler.url, sslmode="require") as secure:
            assert secure.pgconn.ssl_in_use
            assert secure.execute("select 'served'").fetchone() == ("served",)
        with Wire(pooler.url) as plain:
            assert plain.value("select 'served'") == "served"
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(pooler.url, sslmode="require", sslnegotiation="direct")
        pooler.until(lambda: "sslnegotiation=postgres" in repr(pooler.events()), "the reason in the log")


def test_psql_looks_into_the_pool(shared: PostgresGateway) -> None:
    url = shared.url.rpartition("/")[0] + "/outrigger"
    with Wire(shared.url) as wire:
        wire.ask(query("begin"))
        command = [program("psql"), url, "-XAt", "-v", "ON_ERROR_STOP=1"]
        for word, shown in (
            ("POOLS", "|transaction"), ("clients", "idle_in_transaction"), ("SERVERS;", "idle_in_transaction"),
            ("stats", shared.database), ("config", "postgres.pool.max|2"),
        ):  # fmt: skip
            assert shown in subprocess.check_output([*command, "-c", f"show {word}"], text=True)
        wrong = subprocess.run([*command, "-c", "show nonsense"], capture_output=True, text=True)
        assert wrong.returncode
        assert "SHOW" in wrong.stderr
