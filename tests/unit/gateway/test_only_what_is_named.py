"""Parts that a policy does not name are not loaded: they cost memory, and most policies do without."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import asyncio, sys
from proxy.ingress.service import IngressService
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.policy.loading import PolicySource, load_policy

class App:
    is_ready, state, address = True, "ready", ("127.0.0.1", 1)

async def main():
    policy = load_policy(PolicySource("t", None, sys.argv[1]), {})
    loop = asyncio.get_running_loop()
    IngressService(loop, policy, App(), own_endpoints=None, metrics=Metrics(policy.metrics, version="t"), log=EventLog(policy.log, out=2))
    parts = ("proxy.ingress.cache.response_cache", "proxy.ingress.compression.encoders", "proxy.ingress.route_filters")
    print(*(name for name in parts if name in sys.modules))

asyncio.run(main())
"""


def loaded(policy: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, policy], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.rpartition(".")[2] for name in done.stdout.splitlines()[-1].split()}


def test_a_cache_and_what_compresses_are_loaded_only_if_a_route_names_them():
    assert loaded("routes: [{name: a, timeout: 5s}]") == set()
    assert loaded("routes: [{name: a, compress: auto}]") == {"encoders", "route_filters"}
    assert "response_cache" in loaded("routes: [{name: a, cache: {}}]")
