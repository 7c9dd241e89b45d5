"""A client that sends the same head again and again over one connection: it is read once, and everything else is each
request's own. What comes in between, or in other pieces, is read as ever."""

import asyncio
import re
import time
from contextlib import asynccontextmanager
from pathlib import Path

import jwt
import pytest
from ingress_gateway import OK, answering, ingress_gateway, until

from proxy.policy.loading import PolicySource, load_policy

GET = b"GET /a?b=1 HTTP/1.1\r\nHost: test\r\nX-User: ada\r\n\r\n"
OTHER = b"GET /other HTTP/1.1\r\nHost: test\r\nX-User: bo\r\n\r\n"
POST = b"POST /a?b=1 HTTP/1.1\r\nHost: test\r\nX-User: ada\r\nContent-Length: 3\r\n\r\n"
IDENTITY = "identity: {user: [{header: X-User}]}\n"


class Client:
    """One connection to the gateway."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def ask(self, *pieces: bytes, answers: int = 1) -> list[bytes]:
        """Send pieces, each in a packet of its own; the heads of the answers."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
        return [await self.answer() for _ in range(answers)]

    async def answer(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        await self.reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
        return head


def policy_of(text: str):
    return load_policy(PolicySource("test", None, text), {})


@asynccontextmanager
async def connected(gateway):
    reader, writer = await gateway.connect()
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def lines_of(heads: list[bytes]) -> list[bytes]:
    return [head.split(b"\r\n")[0] for head in heads]


def without_ids(head: bytes) -> bytes:
    return re.sub(rb"(?i)(x-request-id|x-outrigger-request): [0-9a-f]{32}", rb"\1: id", head)


def ids_of(heads: list[bytes]) -> set[bytes]:
    return {found for head in heads for found in re.findall(rb"(?i)(?:x-request-id|x-outrigger-request): (\S+)", head)}


async def test_each_request_has_ids_limits_and_a_line_of_its_own(tmp_path: Path):
    policy = IDENTITY + "routes: [{name: r, match: {path: /*}, rate_limit: 5/h}]"
    async with ingress_gateway(answering(OK), policy, tmp=tmp_path) as gateway, connected(gateway) as client:
        heads = [(await client.ask(GET))[0] for _ in range(7)]
        assert [head.split()[1] for head in heads] == [b"200"] * 5 + [b"429"] * 2
        assert [int(re.search(rb"RateLimit-Remaining: (\d+)", head)[1]) for head in heads] == [4, 3, 2, 1, 0, 0, 0]
        assert len(ids_of(gateway.app.heads)) == 10  # two of each that reached the app
        assert len(ids_of(heads)) == 7
        assert {without_ids(head) for head in gateway.app.heads} == {without_ids(gateway.app.heads[0])}
        await until(lambda: gateway.log.read_text().count('"event":"request"') == 7)
        assert gateway.log.read_text().count('"user":"ada"') == 7


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([OTHER], id="another head"),
        pytest.param([POST + b"abc"], id="a body"),
        pytest.param([POST, b"abc"], id="a body behind its head"),
        pytest.param([GET[:20], GET[20:]], id="the same in two pieces"),
        pytest.param([GET + GET[:20], GET[20:]], id="two in other pieces"),
        pytest.param([b"\r\n" + GET], id="an empty line before it"),
        pytest.param([GET + GET], id="two at once"),
        pytest.param([GET + OTHER], id="another behind it"),
        pytest.param([GET + POST + b"abc"], id="a body behind it"),
    ],
)
async def test_what_comes_between_is_read_as_it_is(sent):
    """The app gets the same heads as if each request had come over a connection of its own."""
    together = b"".join(sent)
    answers = together.count(b" HTTP/1.1\r\n")
    async with ingress_gateway(answering(OK), IDENTITY) as gateway, connected(gateway) as client:
        for _ in range(3):
            await client.ask(GET)
            await client.ask(GET)
            await client.ask(*sent, answers=answers)
        await client.ask(GET)
        apart = together.replace(POST + b"abc", b"P").replace(OTHER, b"O").replace(GET, b"G").strip().decode()
        lines = {"G": GET, "O": OTHER, "P": POST}
        expected = [*(["G", "G", *apart] * 3), "G"]
        assert lines_of(gateway.app.heads) == [lines[one].split(b"\r\n")[0] for one in expected]


async def test_many_of_the_same_one_behind_the_other_are_all_answered_in_turn():
    async with ingress_gateway(answering(OK), IDENTITY) as gateway, connected(gateway) as client:
        await client.ask(GET)
        for _ in range(40):  # more than are read ahead, each in a packet of its own or a few together
            client.writer.write(GET)
            await client.writer.drain()
        for _ in range(40):
            assert (await client.answer()).startswith(b"HTTP/1.1 200")
        assert len(gateway.app.heads) == 41


async def test_the_beginning_of_a_head_behind_one_that_is_whole_is_no_end_of_it():
    """Seen once, `GET + beginning` must not be taken for a request of its own when it comes again."""
    async with ingress_gateway(answering(OK), IDENTITY) as gateway, connected(gateway) as client:
        beginning = b"GET /b HTTP/1.1\r\nX-Part: "
        await client.ask(GET + beginning)
        await client.ask(GET + beginning)  # the first line of it is the value of X-Part
        assert lines_of(gateway.app.heads) == [b"GET /a?b=1 HTTP/1.1", b"GET /b HTTP/1.1"]


async def test_a_client_that_closes_with_the_next_request_is_closed():
    closing = GET[:-2] + b"Connection: close\r\n\r\n"
    async with ingress_gateway(answering(OK), IDENTITY) as gateway, connected(gateway) as client:
        await client.ask(GET)
        await client.ask(closing)
        assert await client.reader.read() == b""
        assert len(gateway.app.heads) == 2


async def test_bad_input_behind_the_same_head_is_refused():
    async with ingress_gateway(answering(OK), IDENTITY) as gateway, connected(gateway) as client:
        await client.ask(GET)
        await client.ask(GET)
        assert (await client.ask(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b c\r\n\r\n"))[0].startswith(b"HTTP/1.1 400")
        client.writer.write(GET)
        assert await client.reader.read() == b""
        assert len(gateway.app.heads) == 2


async def test_a_reload_holds_for_the_next_request_with_the_same_head():
    async with ingress_gateway(answering(OK), IDENTITY) as gateway, connected(gateway) as client:
        await client.ask(GET)
        await client.ask(GET)
        changed = IDENTITY + "routes: [{name: slow, match: {path: /a}, rate_limit: 1/h}]"
        gateway.service.apply(policy_of(changed))
        assert (await client.ask(GET))[0].startswith(b"HTTP/1.1 200")
        assert (await client.ask(GET))[0].startswith(b"HTTP/1.1 429")
        assert len(gateway.app.heads) == 3


async def test_a_path_that_a_reload_claims_is_answered_here_from_then_on():
    head = GET.replace(b"/a?b=1", b"/healthz")
    async with ingress_gateway(answering(OK), IDENTITY) as gateway, connected(gateway) as client:
        await client.ask(head)
        await client.ask(head)
        gateway.service.apply(policy_of(IDENTITY + "listen: {claim: [/healthz]}"))
        await client.ask(head)
        gateway.service.apply(policy_of(IDENTITY))
        await client.ask(head)
        assert len(gateway.app.heads) == 3


async def test_a_token_that_expires_names_nobody_from_then_on(tmp_path: Path):
    policy = f"identity: {{user: [{{jwt: {{header: Authorization, claim: sub, key: {'k' * 32}, algorithms: [HS256]}}}}, ip]}}"
    token = jwt.encode({"sub": "ada", "exp": time.time() + 2}, "k" * 32, algorithm="HS256")
    head = b"GET /a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer %s\r\n\r\n" % token.encode()
    async with ingress_gateway(answering(OK), policy, tmp=tmp_path) as gateway, connected(gateway) as client:
        await client.ask(head)
        await client.ask(head)

        async def is_forgotten() -> bool:
            await client.ask(head)
            return '"user":"ip:127.0.0.1"' in gateway.log.read_text()

        deadline = time.monotonic() + 8.0
        while not await is_forgotten():
            assert time.monotonic() < deadline
        assert '"user":"ada"' in gateway.log.read_text()


async def test_the_same_head_over_other_connections_is_known_there_too():
    async with ingress_gateway(answering(OK), IDENTITY) as gateway:
        for _ in range(5):
            async with connected(gateway) as client:
                assert (await client.ask(GET))[0].startswith(b"HTTP/1.1 200")
        assert len(gateway.service.listener.known_heads) == 1
        assert {without_ids(head) for head in gateway.app.heads} == {without_ids(gateway.app.heads[0])}
        assert len(ids_of(gateway.app.heads)) == 10


async def test_a_proxy_and_a_stranger_that_send_the_same_head_are_told_apart():
    """The head says whose it is by X-Forwarded-For, which counts for a peer that is believed alone."""
    head = GET[:-2] + b"X-Forwarded-For: 203.0.113.7\r\n\r\n"
    policy = IDENTITY + "listen: {trusted_proxies: [127.0.0.2/32]}"
    async with ingress_gateway(answering(OK), policy) as gateway:
        seen = []
        for peer in ("127.0.0.2", "127.0.0.3") * 4:
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, local_addr=(peer, 0))
            writer.write(head)
            await Client(reader, writer).answer()
            writer.close()
            seen.append(re.search(rb"X-Forwarded-For: (\S+)", gateway.app.heads[-1])[1])
        assert seen == [b"203.0.113.7", b"127.0.0.3"] * 4


async def test_a_head_without_a_token_is_remembered_beside_those_that_have_one(tmp_path: Path):
    source = f"{{header: Authorization, claim: sub, key: {'k' * 32}, algorithms: [HS256]}}"
    policy = f"identity: {{user: [{{jwt: {source}}}, {{header: X-User}}]}}"
    token = jwt.encode({"sub": "eve"}, "k" * 32, algorithm="HS256")
    with_token = GET[:-2] + b"Authorization: Bearer %s\r\n\r\n" % token.encode()
    async with ingress_gateway(answering(OK), policy, tmp=tmp_path) as gateway, connected(gateway) as client:
        for _ in range(5):
            await client.ask(GET)
            await client.ask(with_token)
        await until(lambda: gateway.log.read_text().count('"event":"request"') == 10)
        assert gateway.log.read_text().count('"user":"ada"') == 5
        assert gateway.log.read_text().count('"user":"eve"') == 5
        known = gateway.service.listener.known_heads
        assert known.find(GET).facts.user == "ada"
        assert known.find(with_token).facts is None
