"""Calls out through the gateway beside direct ones: calls a second, CPU, streams, faults, a dead provider."""

import asyncio
import statistics
import sys
import time
from pathlib import Path

import aiohttp
from bench_tools import HERE, ROOT, Bench, free_port

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "what is an outrigger?"}]}
RUNS = 3
# Without them it looks for prices on the web, and refuses to start without a master key.
LITELLMS = ("LITELLM_LOCAL_MODEL_COST_MAP", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY")
LITELLM = ROOT / ".venv-litellm" / "bin" / "litellm"
POLICY = """
listen: {{public: off, admin: 127.0.0.1:{admin}, egress: 127.0.0.1:{egress}}}
app: {{url: "http://127.0.0.1:{app}"}}
log: {{level: {level}}}
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
    text = POLICY.format(egress=egress, admin=admin, app=bench.app_port, vendor=vendor, rules=rules, level=level)
    path = Path(bench.tmp) / f"{name}.yaml"
    path.write_text(text)
    return bench.spawn(name, egress, [sys.executable, "-m", "proxy", "run", "--policy", str(path)])


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


async def told(port: int, method: str, path: str) -> str:
    async with aiohttp.ClientSession() as session, session.request(method, f"http://127.0.0.1:{port}{path}") as answer:
        return await answer.text()


def calls(bench: Bench) -> None:
    vendor = free_port()
    bench.spawn("vendor", vendor, [sys.executable, str(HERE / "bench_vendor.py"), str(vendor)])
    peer = free_port()
    plain = bench.spawn("plain aiohttp", peer, [sys.executable, "-c", PLAIN, str(peer), str(vendor)])
    ours = gateway(bench, "Outrigger", vendor)
    peers = [
        ("direct", None, vendor, "/v1/chat/completions", 3000),
        ("plain aiohttp", plain, plain.port, "/v1/chat/completions", 3000),
        ("Outrigger", ours, ours.port, "/openai/v1/chat/completions", 3000),
    ]
    if LITELLM.exists():
        other = litellm(bench, vendor)
        peers.append(("LiteLLM's proxy", other, other.port, "/v1/chat/completions", 300))
    results: dict[str, list[tuple[float, float]]] = {}
    for _ in range(RUNS):
        for name, process, port, path, count in peers:
            asyncio.run(load(port, path, count // 10, 16, CHAT))
            before = process.cpu() if process else 0.0
            took, _, statuses = asyncio.run(load(port, path, count, 16, CHAT))
            assert set(statuses) == {200}, f"{name} answered {set(statuses)}"
            cpu = (process.cpu() - before) / count if process else 0.0
            results.setdefault(name, []).append((count / took, cpu * 1e6))
    rates = {name: statistics.median(rate for rate, _ in runs) for name, runs in results.items()}
    theirs = rates.get("LiteLLM's proxy", 57.0)
    source = "" if LITELLM.exists() else ", which was 57/s where it was measured (make bench-litellm)"
    for name, process, *_ in peers:
        cpu = statistics.median(cpu for _, cpu in results[name])
        more = f", {cpu:,.0f} µs of CPU a call, {process.resident():.0f} MiB" if process else ""
        print(f"{name:<15} {rates[name]:8,.0f} calls/s{more}  ({rates[name] / theirs:.1f} × LiteLLM's proxy{source})")


def litellm(bench: Bench, vendor: int):
    """As its documentation starts it, with one worker, as on half a core."""
    port = free_port()
    config = Path(bench.tmp) / "litellm.yaml"
    config.write_text(
        "model_list: [{model_name: gpt-4o-mini, litellm_params: {model: openai/gpt-4o-mini, api_key: sk-x, "
        f'api_base: "http://127.0.0.1:{vendor}/v1"}}}}]\n'
    )
    command = [str(LITELLM), "--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"]
    return bench.spawn("LiteLLM", port, ["env", *(f"{name}=true" for name in LITELLMS), *command], patience=180.0)


def streaming(bench: Bench) -> None:
    vendor = free_port()
    bench.spawn("streams", vendor, [sys.executable, str(HERE / "bench_vendor.py"), str(vendor)])
    slow = free_port()
    bench.spawn("slow streams", slow, [sys.executable, str(HERE / "bench_vendor.py"), str(slow), "ok", "0.02"])
    quick, paced = gateway(bench, "streamer", vendor), gateway(bench, "paced", slow)
    body = {**CHAT, "stream": True}
    for name, port, path in (("direct", vendor, ""), ("Outrigger", quick.port, "/openai")):
        rates = []
        for _ in range(RUNS):
            took, _, _ = asyncio.run(load(port, f"{path}/v1/chat/completions", 100, 4, body))
            rates.append(100 * 201 / took)
        print(f"streams, {name:<10} {statistics.median(rates):10,.0f} events/s")
    firsts = {
        name: asyncio.run(first_events(port, path))
        for name, port, path in (("direct", slow, ""), ("through", paced.port, "/openai"))
    }
    p50, p99 = (quantile(firsts["through"], q) - quantile(firsts["direct"], q) for q in (0.5, 0.99))
    print(f"added time to the first event: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms")
    asyncio.run(load(paced.port, "/openai/v1/chat/completions", 200, 200, body))
    print(f"resident at most, with 200 streams at once: {paced.peak():.1f} MiB")


async def first_events(port: int, path: str) -> list[float]:
    times = []
    async with aiohttp.ClientSession() as session:
        for _ in range(310):
            began = time.perf_counter()
            async with session.post(
                f"http://127.0.0.1:{port}{path}/v1/chat/completions", json={**CHAT, "stream": True}
            ) as answer:
                await answer.content.readany()
                times.append(time.perf_counter() - began)
    return times[10:]


def quantile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


def faults(bench: Bench) -> None:
    vendor = free_port()
    bench.spawn("flaky", vendor, [sys.executable, str(HERE / "bench_vendor.py"), str(vendor), "flaky"])
    rules = "    retry: {attempts: 10, budget: 100%, backoff: {first: 5ms, max: 50ms}}\n"
    flaky = gateway(bench, "through faults", vendor, rules)
    _, _, statuses = asyncio.run(load(flaky.port, "/openai/v1/chat/completions", 2000, 16, CHAT))
    attempts = int(asyncio.run(told(vendor, "GET", "/count")))
    failed = sum(status != 200 for status in statuses)
    print(
        f"20 % of attempts fail, attempts: 10 — {failed} of 2,000 calls failed, {attempts / 2000:.2f} attempts a call"
    )

    asyncio.run(told(vendor, "POST", "/mode/dead"))
    rules = "    breaker: off\n    retry: {backoff: {first: 1ms, max: 1ms}}\n"
    budget = gateway(bench, "budget", vendor, rules)
    asyncio.run(load(budget.port, "/openai/v1/chat/completions", 500, 8, CHAT))
    attempts = int(asyncio.run(told(vendor, "GET", "/count")))
    print(f"all fail, default budget — {attempts / 500:.2f} attempts a call")

    asyncio.run(told(vendor, "POST", "/mode/dead"))
    rules = "    breaker: {open: 2s}\n    retry: {attempts: 2, backoff: {first: 5ms, max: 20ms}}\n"
    dead = gateway(bench, "dead", vendor, rules)
    asyncio.run(load(dead.port, "/openai/v1/chat/completions", 300, 10, CHAT))
    attempts = int(asyncio.run(told(vendor, "GET", "/count")))
    _, times, _ = asyncio.run(load(dead.port, "/openai/v1/chat/completions", 300, 1, CHAT))
    print(
        f"provider dead, 10 callers — {attempts} attempts in 300 calls; refused in p50 {quantile(times, 0.5) * 1000:.2f} ms"
    )
    asyncio.run(told(vendor, "POST", "/mode/ok"))
    began = time.perf_counter()
    while asyncio.run(load(dead.port, "/openai/v1/chat/completions", 1, 1, CHAT))[2] != [200]:
        time.sleep(0.05)
    print(f"provider back — served again after {time.perf_counter() - began:.1f} s (open: 2s)")


if __name__ == "__main__":
    with Bench() as bench:
        calls(bench)
        streaming(bench)
        faults(bench)
