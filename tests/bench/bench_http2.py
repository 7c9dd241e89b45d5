"""Whether HTTP/2 towards vendors would pay: CPU time of its framing (h2, pure Python) beside that of the HTTP/1.1 engine,
for a call and for an event of a stream with 100 streams under way. In one process, without sockets and TLS: what differs
is the framing. HTTP/1.1 has a connection for each stream, HTTP/2 one for all.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from bench_tools import ROOT, table
from bench_vendor import BODY, EVENT
from yarl import URL

from proxy.http.outgoing_client import OutgoingClient, OutgoingResponse, _render_head
from proxy.http.upstream_connection import UpstreamConnection

STREAMS, EVENTS, CALLS, ROUNDS = 100, 50, 2000, 5
FIELDS = [
    ("accept", "application/json"),
    ("content-type", "application/json"),
    ("user-agent", "OpenAI/Python 1.109.1"),
    ("x-stainless-lang", "python"),
    ("x-stainless-package-version", "1.109.1"),
    ("x-stainless-os", "Linux"),
    ("x-stainless-arch", "x64"),
    ("x-stainless-runtime", "CPython"),
    ("x-stainless-async", "false"),
    ("authorization", "Bearer sk-0123456789abcdef0123456789abcdef"),
]
QUESTION = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"what is an outrigger?"}]}'
ANSWERED = [("content-type", "application/json"), ("content-length", str(len(BODY)))]
STREAMED = [("content-type", "text/event-stream")]
WINDOW = 2**30  # bytes, so that no side waits for the other


def fastest(what) -> float:
    """Seconds of CPU, the best of several rounds."""
    times = []
    for _ in range(ROUNDS):
        run = what()
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


# ── HTTP/2 ───────────────────────────────────────────────────────────────────────────────────


def pair():
    """Two ends that have greeted each other."""
    client, server = H2Connection(H2Configuration(client_side=True)), H2Connection(H2Configuration(client_side=False))
    for end in (client, server):
        end.initiate_connection()
        end.increment_flow_control_window(WINDOW - 65535)
        end.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: WINDOW})
    for _ in range(2):
        server.receive_data(client.data_to_send())
        client.receive_data(server.data_to_send())
    return client, server


def ask(client, stream: int, *, ends: bool) -> None:
    head = [(":method", "POST"), (":path", "/v1/chat/completions"), (":scheme", "https"), (":authority", "vendor")]
    client.send_headers(stream, [*head, *FIELDS])
    client.send_data(stream, QUESTION, end_stream=ends)


def take(client, data: bytes) -> None:
    """What a client does with what comes: events, and windows that are opened again."""
    for event in client.receive_data(data):
        if isinstance(event, DataReceived):
            client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    client.data_to_send()


def h2_calls():
    client, server = pair()
    answers = []
    for number in range(CALLS):  # the answers beforehand, by a client that is not measured
        stream = 2 * number + 1
        ask(client, stream, ends=True)
        server.receive_data(client.data_to_send())
        server.send_headers(stream, [(":status", "200"), *ANSWERED])
        server.send_data(stream, BODY, end_stream=True)
        answers.append(server.data_to_send())
        client.receive_data(answers[-1])
    client, _ = pair()

    def run() -> None:
        for number, answer in enumerate(answers):
            ask(client, 2 * number + 1, ends=True)
            client.data_to_send()
            take(client, answer)

    return run


def h2_events(together: int):
    def make():
        client, server = pair()
        for number in range(STREAMS):
            ask(client, 2 * number + 1, ends=True)
        server.receive_data(client.data_to_send())
        for number in range(STREAMS):
            server.send_headers(2 * number + 1, [(":status", "200"), *STREAMED])
        client.receive_data(server.data_to_send())
        reads, count = [], 0
        for _ in range(EVENTS):
            for number in range(STREAMS):
                server.send_data(2 * number + 1, EVENT)
                count += 1
                if count % together == 0:
                    reads.append(server.data_to_send())
        return lambda: [take(client, data) for data in reads]

    return make


# ── HTTP/1.1 ─────────────────────────────────────────────────────────────────────────────────


class Transport:
    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        pass


def connection(loop: asyncio.AbstractEventLoop) -> UpstreamConnection:
    made = UpstreamConnection(loop, peer_name="It", lenient=True, joins_chunks=True)
    made.connection_made(Transport())
    return made


def lines(fields: list[tuple[str, str]]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode()


def h1_calls(loop: asyncio.AbstractEventLoop):
    client, url = OutgoingClient(), URL("http://vendor/v1/chat/completions")
    answer = b"HTTP/1.1 200 OK\r\n" + lines(ANSWERED) + b"\r\n" + BODY
    peer = connection(loop)

    def make():
        def run() -> None:
            for _ in range(CALLS):
                head = _render_head("POST", url, FIELDS, QUESTION, None, None, None)
                peer.send_request(head + QUESTION, "POST", None, None)
                peer.data_received(answer)
                OutgoingResponse(client, ("http", "vendor", 80), peer, None)

        return run

    return make


def h1_events(loop: asyncio.AbstractEventLoop):
    def make():
        client, peers = OutgoingClient(), []
        for _ in range(STREAMS):
            peer = connection(loop)
            peer.send_request(b"", "POST", None, None)
            peer.data_received(b"HTTP/1.1 200 OK\r\n" + lines(STREAMED) + b"Transfer-Encoding: chunked\r\n\r\n")
            peers.append((peer, OutgoingResponse(client, ("http", "vendor", 80), peer, None)))
        chunk = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)

        def run() -> None:
            for _ in range(EVENTS):
                for peer, response in peers:
                    peer.data_received(chunk)
                    response._chunks.clear()
                    response._size = 0

        return run

    return make


async def main() -> None:
    loop = asyncio.get_running_loop()
    calls = fastest(h1_calls(loop)) / CALLS, fastest(h2_calls) / CALLS
    events = STREAMS * EVENTS
    alone = fastest(h1_events(loop)) / events
    rows = [
        ["a call, asked and answered", f"{calls[0] * 1e6:.1f}", f"{calls[1] * 1e6:.1f}"],
        ["an event that comes alone", f"{alone * 1e6:.2f}", f"{fastest(h2_events(1)) / events * 1e6:.2f}"],
        ["of 100 that come in one read", f"{alone * 1e6:.2f}", f"{fastest(h2_events(100)) / events * 1e6:.2f}"],
    ]
    print(f"Framing towards a vendor, {STREAMS} streams under way, without sockets and TLS: CPU µs")
    table(["", "HTTP/1.1", f"HTTP/2 (h2 {h2.__version__})"], rows)


if __name__ == "__main__":
    for path in Path(ROOT / ".venv-peers" / "lib").glob("python*/site-packages"):
        sys.path.append(str(path))
    try:
        import h2
        from h2.config import H2Configuration
        from h2.connection import H2Connection
        from h2.events import DataReceived
        from h2.settings import SettingCodes
    except ImportError:
        print("h2 could not be set up and is not compared")
    else:
        asyncio.run(main())
