"""What metering adds to a call: its price, its estimate, what is learnt from it; and the table's size."""

import json
import resource
import subprocess
import sys
import time
import timeit
from pathlib import Path

from bench_tools import table

from proxy.egress.dialects import dialect
from proxy.egress.money.estimate import Estimator, text_bytes_of
from proxy.egress.money.table import Table
from proxy.egress.money.tariff import Tariffs

FILE = Path(__file__).parents[2] / "proxy" / "egress" / "money" / "prices.json"
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


def micros(what) -> float:
    what()
    return min(timeit.repeat(what, number=2000, repeat=7)) / 2000 * 1e6


def main() -> None:
    size = len(json.dumps(BODY))
    openai, tariffs = dialect("openai"), Tariffs("openai", "https://api.openai.com/v1", {}, "highest")
    estimator = Estimator()
    usage = openai.usage("chat", ANSWER)
    assert usage is not None
    now = time.time()
    measure = micros(lambda: text_bytes_of(BODY))
    tokens = micros(lambda: estimator.input_tokens("gpt-4o", size))
    estimate = micros(lambda: tariffs.estimate("chat", "gpt-4o", input_tokens=480, output_tokens=300, at=now))
    read = micros(lambda: openai.usage("chat", ANSWER))
    cost = micros(lambda: tariffs.cost("chat", usage, "gpt-4o", at=now))
    learn = micros(lambda: estimator.learn("gpt-4o", body_bytes=size, usage=usage, text_bytes=700))
    typical = micros(lambda: estimator.typical_output("gpt-4o"))
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
        ["all of it", f"{total:.1f} µs"],
        ["genai-prices: usage and price", f"{peer:.1f} µs ({peer / (read + cost):.0f} × usage and cost() here)"],
    ]
    table(["", "time"], rows)
    text = FILE.read_text()
    load = min(timeit.repeat(lambda: Table(text).section("openai"), number=1, repeat=9)) * 1e3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = [Table(text) for _ in range(20)]
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 / len(kept)
    print(f"The table: {len(text) / 1000:.0f} kB, read in {load:.1f} ms, {more:.1f} MiB in memory.")


if __name__ == "__main__":
    main()
