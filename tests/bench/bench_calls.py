"""Calls out beside Envoy that passes them, Portkey's gateway, LiteLLM's proxy and a plain aiohttp proxy: CPU time a call
and calls a second; faults, a dead provider. Streams are in bench_streams."""

import asyncio
import statistics
import sys
import time
from pathlib import Path

import aiohttp
import peers
from bench_tools import GATEWAY, HERE, Bench, Peer, free_port, quantile, summarize, table
from drive import drive, generator

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "what is an outrigger?"}]}
OWNED = '{"model":"gpt-4o-mini","user":"premium_USER","messages":[{"role":"user","content":"what is an outrigger?"}]}'
ROUNDS, SECONDS, CALLERS = 3, 2, 16
LITELLM_SECONDS = 5  # so slow that the calls under way when the time is up would count
OURS = "Outrigger: metered, capped, on the ledger"
# By user and day, by user and month, and all together.
CAPPED = "    cap: {per_user: [$100/d, $1000/month], unattributed: $10/d, total: $10000/d}\n"
POLICY = """
listen: {{public: off, admin: 127.0.0.1:{admin}, egress: 127.0.0.1:{egress}}}
app: {{url: "http://127.0.0.1:{app}"}}
log: {{level: {level}}}
ledger: {{url: "sqlite:///{ledger}"}}
upstreams:
  openai:
    base_url: http://127.0.0.1:{vendor}/v1
{rules}
"""
# aiohttp's server and client and nothing else: what any Python gateway of this build would be at best.
PLAIN = """
import sys, aiohttp
from aiohttp import web
async def main():
    session = aiohttp.ClientSession(auto_decompress=False)
    async def handle(request):
        async with session.post("http://127.0.0.1:" + sys.argv[2] + request.raw_path, data=await request.read(),
                                headers={"Content-Type": "application/json"}) as answer:
            return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")
    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    return app
web.run_app(main(), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
"""


def gateway(bench: Bench, name: str, vendor: int, rules: str = "", level: str = "info"):
    egress, admin = free_port(), free_port()
    path, ledger = Path(bench.tmp) / f"calls-{egress}.yaml", f"{bench.tmp}/calls-{egress}.db"
    ports = {"egress": egress, "admin": admin, "app": bench.app_port, "vendor": vendor}
    text = POLICY.format(rules=rules, level=level, ledger=ledger, **ports)
    path.write_text(text)
    return bench.spawn(name, egress, [*GATEWAY, "run", "--policy", str(path)])


async def load(port: int, path: str, count: int, callers: int, body: dict) -> tuple[float, list[float], list[int]]:
    """Seconds for all, each call's seconds, each call's status."""
    times, statuses, left = [], [], count

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = time.perf_counter()
            async with session.post(f"http://127.0.0.1:{port}{path}", json=body) as answer:
                await answer.read()
                statuses.append(answer.status)
            times.append(time.perf_counter() - began)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(caller(session) for _ in range(callers)))
        return time.perf_counter() - began, times, statuses


async def fetch_text(port: int, method: str, path: str) -> str:
    async with aiohttp.ClientSession() as session, session.request(method, f"http://127.0.0.1:{port}{path}") as answer:
        return await answer.text()


def calls(bench: Bench) -> None:
    vendor = free_port()
    bench.spawn("vendor", vendor, [sys.executable, str(HERE / "bench_vendor.py"), str(vendor)])
    port = free_port()
    plain = bench.spawn("plain aiohttp proxy", port, [sys.executable, "-c", PLAIN, str(port), str(vendor)])
    direct, through = "/v1/chat/completions", "/openai/v1/chat/completions"
    ways: dict[str, tuple[Peer | None, str, str]] = {
        "Envoy, passing": (peers.envoy(bench, to=vendor), direct, ""),
        "plain aiohttp proxy": (plain, direct, ""),
        "Outrigger: metered, on the ledger": (gateway(bench, "Outrigger", vendor), through, ""),
        OURS: (gateway(bench, "Outrigger", vendor, CAPPED), through, ""),
        "Portkey's gateway": (peers.portkey(bench), direct, peers.PORTKEY_FIELDS.format(vendor=vendor)),
        "LiteLLM's proxy": (peers.litellm(bench, vendor), direct, ""),
    }
    costs: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    for turn in range(ROUNDS + 1):  # the first warms up
        rate = drive(vendor, SECONDS, CALLERS, direct, body=OWNED) / SECONDS
        rates.setdefault("direct", []).append(rate)
        for name, (peer, path, fields) in ways.items():
            if peer is None:
                continue
            seconds = 1 if turn == 0 else LITELLM_SECONDS if name == "LiteLLM's proxy" else SECONDS
            before = peer.cpu()
            done = drive(peer.port, seconds, CALLERS, path, body=OWNED, fields=fields)
            if turn:
                rates.setdefault(name, []).append(done / seconds)
                costs.setdefault(name, []).append((peer.cpu() - before) / done * 1e6)
    print(
        f"{CALLERS} callers, small chats, {SECONDS} s each by turns, {ROUNDS} rounds, {generator()}; one core each, access logs on"
    )
    least = {name: min(each) for name, each in costs.items()}  # what else the machine does can only add to it
    rows = [["direct", f"{statistics.median(rates['direct']):,.0f}", "—", "—", "—"]]
    for name, cost in least.items():
        peer = ways[name][0]
        assert peer is not None
        row = [peer.labelled(name), f"{statistics.median(rates[name]):,.0f}", f"{cost:,.0f}"]
        rows.append([*row, f"{cost / least[OURS]:.2f} ×", f"{peer.resident():.0f}"])
    table(["", "calls/s", "CPU µs a call", "beside the capped way out", "MiB"], rows)
    ours = least[OURS]
    if passing := least.get("Envoy, passing"):
        summarize(
            "way out, metered, capped, on the ledger ÷ Envoy passing",
            f"{ours / passing:.2f}  ({ours:.0f} / {passing:.0f} µs)",
            "≤ 4.0",
        )
    for name, goal in (("Portkey's gateway", 4), ("LiteLLM's proxy", 40)):
        if theirs := least.get(name):
            summarize(f"{name} ÷ way out", f"{theirs / ours:.1f}  ({theirs:,.0f} / {ours:.0f} µs)", f"≥ {goal}")


def faults(bench: Bench) -> None:
    vendor = free_port()
    bench.spawn("flaky", vendor, [sys.executable, str(HERE / "bench_vendor.py"), str(vendor), "flaky"])
    rules = "    retry: {attempts: 10, budget: 100%, backoff: {first: 5ms, max: 50ms}}\n"
    flaky = gateway(bench, "through faults", vendor, rules)
    _, _, statuses = asyncio.run(load(flaky.port, "/openai/v1/chat/completions", 2000, 16, CHAT))
    attempts = int(asyncio.run(fetch_text(vendor, "GET", "/count")))
    failed = sum(status != 200 for status in statuses)
    print(
        f"20 % of attempts fail, attempts: 10 — {failed} of 2,000 calls failed, {attempts / 2000:.2f} attempts a call"
    )

    asyncio.run(fetch_text(vendor, "POST", "/mode/dead"))
    rules = "    breaker: off\n    retry: {backoff: {first: 1ms, max: 1ms}}\n"
    budget = gateway(bench, "budget", vendor, rules)
    asyncio.run(load(budget.port, "/openai/v1/chat/completions", 500, 8, CHAT))
    attempts = int(asyncio.run(fetch_text(vendor, "GET", "/count")))
    print(f"all fail, default budget — {attempts / 500:.2f} attempts a call")

    asyncio.run(fetch_text(vendor, "POST", "/mode/dead"))
    rules = "    breaker: {open: 2s}\n    retry: {attempts: 2, backoff: {first: 5ms, max: 20ms}}\n"
    dead = gateway(bench, "dead", vendor, rules)
    asyncio.run(load(dead.port, "/openai/v1/chat/completions", 300, 10, CHAT))
    attempts = int(asyncio.run(fetch_text(vendor, "GET", "/count")))
    _, times, _ = asyncio.run(load(dead.port, "/openai/v1/chat/completions", 300, 1, CHAT))
    print(
        f"provider dead, 10 callers — {attempts} attempts in 300 calls; refused in p50 {quantile(times, 0.5) * 1000:.2f} ms"
    )
    asyncio.run(fetch_text(vendor, "POST", "/mode/ok"))
    began = time.perf_counter()
    while asyncio.run(load(dead.port, "/openai/v1/chat/completions", 1, 1, CHAT))[2] != [200]:
        time.sleep(0.05)
    print(f"provider back — served again after {time.perf_counter() - began:.1f} s (open: 2s)")


if __name__ == "__main__":
    with Bench() as bench:
        calls(bench)
        faults(bench)
