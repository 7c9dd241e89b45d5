"""The door's other sides: the console, the certificate, whom a connection works for."""

from __future__ import annotations

import ssl
from types import SimpleNamespace

import pytest
from postgres_script import S, X, kinds, parse_message, query_message

from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import RequestRegistry
from proxy.policy import schema
from proxy.policy.schema import Postgres
from proxy.postgres import wire
from proxy.postgres.admin_console import TABLES, AdminConsole
from proxy.postgres.auth.tls import self_signed_context
from proxy.postgres.service import PostgresService


def make(**policy):
    requests = RequestRegistry(lambda: 0.0)
    metrics = Metrics(schema.Metrics(), version="t")
    log = SimpleNamespace(emit=lambda *_, **__: None)
    url = "postgresql://app:real@db.example/shop"
    return (
        PostgresService(Postgres(url=url, **policy), requests=requests, metrics=metrics, log=log, environ={}),
        requests,
        metrics,
    )


def console(pooler):
    said, ended = [], []
    return AdminConsole(pooler, said.append, ended.append), said, ended


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("word", TABLES)
async def test_the_console_answers_in_tables(word, step):
    pooler, _, _ = make()
    pooler._accept_client()
    heard, said, _ = console(pooler)
    data = query_message(f" Show {word.upper()} ;") + query_message("")
    for pos in range(0, len(data), step):
        heard.data_received(data[pos : pos + step])
    answer = b"".join(said)
    assert kinds(answer).replace("D", "") == "TCZIZ"
    assert b"real" not in answer
    assert pooler.password.encode() not in answer


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (query_message("select 1"), "EZ"),
        (query_message("show nothing"), "EZ"),
        (parse_message("", "show pools") + S, "EZ"),
        (X, ""),
    ],
)
async def test_the_console_says_what_it_knows(sent, answered):
    heard, said, ended = console(make()[0])
    heard.data_received(sent)
    assert kinds(b"".join(said)) == answered
    assert bool(ended) is (sent is X)


async def test_the_console_hears_no_novel():
    heard, said, ended = console(make()[0])
    heard.data_received(wire.HEADER.pack(wire.QUERY, 1 << 30))
    assert wire.error_fields(ended[0][5:])["C"] == "08P01"


def test_a_certificate_is_made_that_a_client_can_speak_to():
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.check_hostname, theirs.verify_mode = False, ssl.CERT_NONE
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(here, there)
    server = self_signed_context().wrap_bio(there, here, server_side=True)
    done = set()
    for _ in range(10):
        for each in (client, server):
            try:
                each.do_handshake()
                done.add(each)
            except ssl.SSLWantReadError:
                pass
    assert done == {client, server}
    client.write(b"hello")
    assert server.read() == b"hello"


async def test_a_connection_works_for_a_request_until_it_works_for_another():
    pooler, requests, _ = make()
    client = pooler._accept_client()
    client.port = 4711
    cancelled = []
    pooler._cancel_work = cancelled.append
    request = SimpleNamespace(user="u", tier="t", request_id="r", trace_id=None, route_name="checkout")
    for token in ("one", "two"):
        requests.begin(token, request)
    assert pooler.assign_request(4711, "one")
    assert pooler.assign_request(4711, "two")
    assert not pooler.assign_request(4712, "two")
    assert client.route == "checkout"
    requests.end("one", abandoned=True)
    assert cancelled == []
    requests.end("two", abandoned=True)
    assert cancelled == [client]


async def test_what_it_shows_of_itself_has_every_series_from_the_start():
    pooler, _, metrics = make()
    text = (await metrics.render())[0].decode()
    for outcome in ("ok", "error", "abandoned", "refused"):
        assert f'outrigger_postgres_transactions_total{{outcome="{outcome}"}} 0.0' in text
    assert 'outrigger_postgres_client_connections{state="idle_in_transaction"} 0.0' in text
    assert pooler.health().state == "ok"
    assert pooler.status()["transactions"] == {"ok": 0, "error": 0, "abandoned": 0, "refused": 0}


async def test_no_password_of_the_database_reaches_the_app():
    pooler, _, _ = make(env={"DATABASE_URL": "url", "DB_PASSWORD": "password"})
    env = pooler.app_variables("127.0.0.1", 6432)
    assert env == {
        "DATABASE_URL": f"postgresql://app:{pooler.password}@127.0.0.1:6432/shop",
        "DB_PASSWORD": pooler.password,
    }
