"""What metering adds to a call, whole and part by part: estimate, reservation, price, rows; and the table's size."""

import json
import resource
import subprocess
import sys
import time
import timeit
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from bench_tools import table

from proxy.egress.billing.background_calls import BackgroundCalls
from proxy.egress.billing.call_ledger import CallLedger
from proxy.egress.billing.charge import UpstreamBilling
from proxy.egress.billing.pricing.pricer import Pricer
from proxy.egress.billing.pricing.table import PriceTable
from proxy.egress.billing.spend_lookup import SpendLookup
from proxy.egress.billing.token_estimator import TokenEstimator, count_text_bytes
from proxy.egress.body import Body
from proxy.egress.call import Call
from proxy.egress.dialects import OutputSize, dialect_for
from proxy.ledger.write_buffer import WriteBuffer
from proxy.observe.metrics import Metrics
from proxy.policy import schema
from proxy.policy.schema import OPENAI, Cap
from proxy.policy.values import Spend

FILE = Path(__file__).parents[2] / "proxy" / "egress" / "billing" / "pricing" / "prices.json"
BODY = {
    "model": "gpt-4o",
    "messages": [{"role": "system", "content": "x" * 900}, {"role": "user", "content": "y" * 1000}],
    "max_tokens": 300,
}
ANSWER = {
    "model": "gpt-4o-2024-08-06",
    "service_tier": "default",
    "usage": {
        "prompt_tokens": 480,
        "completion_tokens": 180,
        "total_tokens": 660,
        "prompt_tokens_details": {"cached_tokens": 128, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    },
}
# Prices an answer as genai-prices does, in a process of its own: it brings pydantic and an HTTP client along.
PEER = """
import json, sys, timeit
from genai_prices import extract_usage
answer = json.loads(sys.argv[1])
def once():
    return extract_usage(answer, provider_id="openai", api_flavor="chat").calc_price().total_price
once()
print(min(timeit.repeat(once, number=200, repeat=5)) / 200)
"""


def whole_charge() -> float:
    """Microseconds that money adds to a call: reserved against three caps, settled, written down twice."""
    per_user = {"*": (Spend.parse("$500/d"), Spend.parse("$5000/month"))}
    policy = replace(OPENAI, cap=Cap(per_user=per_user, total=Spend.parse("$9000/d")))
    metrics = Metrics(schema.Metrics(), version="bench")
    billing = UpstreamBilling("openai", policy, now=time.time, metrics=metrics)
    upstream = SimpleNamespace(name="openai", billing=billing)
    backlog = WriteBuffer()
    ledger = SimpleNamespace(
        refuses_calls=lambda: False,
        record_open=lambda row: backlog.add_open(row, 0.0),
        record=backlog.add_settled,
        discard=backlog.drop,
    )
    lookup = SpendLookup(None, time.monotonic)
    calls = CallLedger(ledger, time.monotonic, lookup, BackgroundCalls(None, lookup, lambda *_, **__: None, time.time))
    spoken = dialect_for("openai")
    body = Body(json.dumps(BODY).encode(), b"", None, None)
    body.parse()
    number = 0

    def without() -> None:
        asked()
        spoken.usage("chat", ANSWER)

    def asked() -> Call:
        call = Call(upstream, "POST", "/v1/chat/completions", [], 0.0, time.time())
        call.endpoint, call.body, call.ask = "chat", body, spoken.parse_request("chat", body.parsed)
        call.user = f"user-{number % 500}"
        return call

    def once() -> None:
        nonlocal number
        number += 1
        call = asked()
        charge = calls.open_charge(call)
        call.usage = spoken.usage("chat", ANSWER)
        charge.settle(call.usage, OutputSize(700))
        charge.release()
        calls.record_call(call)
        if number % 400 == 0:  # as the writer does, twice a second
            backlog.next_batch(0.0, everything=True)
            backlog.batch_written()

    return micros(once) - micros(without)


def micros(what) -> float:
    what()
    return min(timeit.repeat(what, number=2000, repeat=7)) / 2000 * 1e6


def main() -> None:
    size = len(json.dumps(BODY))
    openai, tariffs = dialect_for("openai"), Pricer("openai", "https://api.openai.com/v1", {}, "highest")
    estimator = TokenEstimator()
    usage = openai.usage("chat", ANSWER)
    assert usage is not None
    now = time.time()
    measure = micros(lambda: count_text_bytes(BODY))
    tokens = micros(lambda: estimator.input_tokens("gpt-4o", size))
    estimate = micros(lambda: tariffs.estimate_cost("chat", "gpt-4o", input_tokens=480, output_tokens=300, at=now))
    read = micros(lambda: openai.usage("chat", ANSWER))
    cost = micros(lambda: tariffs.cost("chat", usage, "gpt-4o", at=now))
    learn = micros(lambda: estimator.learn("gpt-4o", body_bytes=size, usage=usage, text_bytes=700))
    typical = micros(lambda: estimator.typical_output_tokens("gpt-4o"))
    done = subprocess.run([sys.executable, "-c", PEER, json.dumps(ANSWER)], capture_output=True, text=True, check=True)
    peer = float(done.stdout) * 1e6
    total = measure + tokens + typical + estimate + read + cost + learn
    print(f"Metering a call of {size} bytes:\n")
    rows = [
        ["the body's text, measured", f"{measure:.1f} µs"],
        ["its tokens, guessed", f"{tokens:.1f} µs"],
        ["the usual length of an answer", f"{typical:.1f} µs"],
        ["estimate()", f"{estimate:.1f} µs"],
        ["usage, read from the answer", f"{read:.1f} µs"],
        ["cost()", f"{cost:.1f} µs"],
        ["learn()", f"{learn:.1f} µs"],
        ["all of these", f"{total:.1f} µs"],
        ["a whole charge, which has also three caps, metrics, the ledger's rows", f"{whole_charge():.1f} µs"],
        ["genai-prices: usage and price", f"{peer:.1f} µs ({peer / (read + cost):.0f} × usage and cost() here)"],
    ]
    table(["", "time"], rows)
    text = FILE.read_text()
    load = min(timeit.repeat(lambda: PriceTable(text).section("openai"), number=1, repeat=9)) * 1e3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = [PriceTable(text) for _ in range(20)]
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 / len(kept)
    print(f"The table: {len(text) / 1000:.0f} kB, read in {load:.1f} ms, {more:.1f} MiB in memory.")


if __name__ == "__main__":
    main()
