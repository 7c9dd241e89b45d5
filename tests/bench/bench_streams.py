"""Streams of a model beside Envoy that passes them: added time to the first event with 200 under way, CPU time an
event that comes alone and one in bulk; memory. The gateway meters, caps and writes them into its ledger."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import peers
import uvloop
from bench_calls import CAPPED, OWNED, gateway
from bench_tools import HERE, Bench, Peer, free_port, quantile, summarize, table
from drive import USERS

BODY = OWNED.replace("{", '{"stream":true,', 1)
STREAMS, ROUNDS = 200, 3
# Twenty events a second is what a model writes; forty of them, and the next stream of that caller begins.
SHORT_PAUSE, SHORT_EVENTS, SHORT_SECONDS = 0.05, 40, 4.0
PAUSE, SECONDS, WARM_UP = 0.02, 3.0, 1.5
BULK_STREAMS, BULK_SECONDS = 8, 2.0
ANSWER, LONG_ANSWER = 200, 2000  # events; in the longer ones the call itself hardly counts
Way = tuple[str, int, str, Peer | None]  # name, port, path, who is between


class Stream(asyncio.Protocol):
    """Asks for one stream after the other on a connection, and counts what comes."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.events = 0
        self.firsts: list[float] = []
        self.ok = True

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.first = True
        self.transport.write(self.request)
        self.began = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        events = data.count(b"data: {")
        if events and self.first:
            self.first = False
            self.firsts.append(time.perf_counter() - self.began)
        self.events += events
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            self.ok = False
        if data.endswith(b"0\r\n\r\n"):
            self.ask()


async def opened(way: Way, count: int, spread: float) -> list[Stream]:
    """So many streams under way, begun one after the other over `spread` seconds."""
    streams = []
    for n in range(count):
        body = BODY.replace("USER", str(n % USERS))
        head = f"POST {way[2]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        streams.append(Stream((head + body).encode()))
        await asyncio.get_running_loop().create_connection(lambda: streams[-1], "127.0.0.1", way[1])
        await asyncio.sleep(spread / count)
    return streams


def closed(streams: list[Stream]) -> None:
    for stream in streams:
        stream.transport.abort()
    assert all(stream.ok for stream in streams), "an answer was not 200"


async def first_events(way: Way) -> list[float]:
    """Milliseconds from a call to its stream's first event, of those that began in the time measured."""
    streams = await opened(way, STREAMS, SHORT_PAUSE * SHORT_EVENTS)
    for stream in streams:
        stream.firsts.clear()
    await asyncio.sleep(SHORT_SECONDS)
    closed(streams)
    return [first * 1000 for stream in streams for first in stream.firsts]


async def events(way: Way, count: int, warm_up: float, seconds: float) -> tuple[float, float]:
    """Events a second, and microseconds of CPU an event of who is between."""
    streams = await opened(way, count, warm_up)
    peer = way[3]
    before, cpu = sum(stream.events for stream in streams), peer.cpu() if peer else 0.0
    await asyncio.sleep(seconds)
    came = sum(stream.events for stream in streams) - before
    spent = peer.cpu() - cpu if peer else 0.0
    closed(streams)
    return came / seconds, spent / came * 1e6


def ways(bench: Bench, *options: str) -> list[Way]:
    vendor = free_port()
    bench.spawn("vendor", vendor, [sys.executable, str(HERE / "bench_vendor.py"), str(vendor), "ok", *options])
    ours = gateway(bench, "Outrigger", vendor, CAPPED)
    found: list[Way] = [("direct", vendor, "/v1/chat/completions", None)]
    if envoy := peers.envoy(bench, to=vendor):
        found.append((f"Envoy {envoy.version}", envoy.port, "/v1/chat/completions", envoy))
    return [*found, ("Outrigger", ours.port, "/openai/v1/chat/completions", ours)]


def latency(bench: Bench) -> None:
    compared = ways(bench, str(SHORT_PAUSE), str(SHORT_EVENTS))
    found: dict[str, list[list[float]]] = {}
    for _ in range(ROUNDS):
        for way in compared:
            found.setdefault(way[0], []).append(sorted(uvloop.run(first_events(way))))
    print(
        f"{STREAMS} streams under way, {1 / SHORT_PAUSE:.0f} events a second each: ms to the first event of the next one"
    )
    # Each quantile is that of its quietest round: what else the machine does can only add to it.
    least = {
        name: tuple(min(quantile(times, q) for times in rounds) for q in (0.5, 0.99)) for name, rounds in found.items()
    }
    rows, added = [], {}
    for name, (p50, p99) in least.items():
        added[name] = p50 - least["direct"][0], p99 - least["direct"][1]
        count = sum(len(times) for times in found[name])
        rows.append([name, f"{p50:.2f}", f"{p99:.2f}", *(f"{each:+.2f}" for each in added[name]), f"{count}"])
    table(["", "p50", "p99", "p50 added", "p99 added", "streams"], rows)
    ours = added["Outrigger"]
    theirs = next((each for name, each in added.items() if name.startswith("Envoy")), None)
    beside = f"  (Envoy {theirs[0]:.2f} and {theirs[1]:.2f})" if theirs else ""
    envoy = theirs or (0.0, 0.0)
    summarize(
        f"added time to the first event at {STREAMS} streams, p50 and p99",
        f"{ours[0]:.2f} and {ours[1]:.2f} ms{beside}",
        f"≤ {max(0.5, 2 * envoy[0]):.2f} and {max(2.0, envoy[1] + 1):.2f} ms",
    )


def costs(bench: Bench, what: str, compared: list[Way], goal: str, count: int, warm_up: float, seconds: float) -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    for turn in range(ROUNDS):
        for way in compared if turn == 0 else compared[1:]:  # the direct way shows what the vendor can do
            found.setdefault(way[0], []).append(uvloop.run(events(way, count, warm_up, seconds)))
    rows, least = [], {}
    for name, runs in found.items():
        rate = statistics.median(rate for rate, _ in runs)
        least[name] = min(cost for _, cost in runs)
        rows.append([name, f"{rate:,.0f}", f"{least[name]:.2f}" if least[name] else "—"])
    table(["", "events/s", "CPU µs an event"], rows)
    ours = least["Outrigger"]
    for name, theirs in least.items():
        if name.startswith("Envoy"):
            summarize(f"CPU an event {what} ÷ Envoy", f"{ours / theirs:.2f}  ({ours:.2f} / {theirs:.2f} µs)", goal)


def main() -> None:
    with Bench() as bench:
        latency(bench)
    with Bench() as bench:
        compared = ways(bench, str(PAUSE), "1000000")
        print(f"{STREAMS} streams, an event of each every {PAUSE * 1000:.0f} ms: each comes alone")
        costs(bench, "that comes alone", compared, "≤ 2", STREAMS, WARM_UP, SECONDS)
        ours = compared[-1][3]
        assert ours is not None
        print(f"resident at most, with {STREAMS} streams at once: {ours.peak():.1f} MiB\n")
    for count in (ANSWER, LONG_ANSWER):
        with Bench() as bench:
            compared = ways(bench, "0", str(count))
            print(f"{BULK_STREAMS} callers, streams of {count:,} events without a pause, each a write of the vendor")
            costs(bench, f"in bulk, {count:,} a call", compared, "≤ 2.5", BULK_STREAMS, 0.5, BULK_SECONDS)


if __name__ == "__main__":
    main()
