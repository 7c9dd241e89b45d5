"""Parts that a policy does not name are not loaded: they cost memory, and most policies do without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# As `run` does it, up to the moment at which the gateway would start to live.
PROGRAM = """
import sys
from proxy import cli
from proxy.http.aiohttp_loading import load_aiohttp

load_aiohttp()
from proxy import gateway

async def show_modules(self):
    print("\\nMODULES", *sys.modules)
    return 0

gateway.Gateway.run = show_modules
sys.exit(cli.main(["run", "--policy", sys.argv[1], *sys.argv[2:]], {}))
"""
BASE = """
listen: {public: off, admin: 127.0.0.1:0, egress: 127.0.0.1:0}
app: {url: "http://127.0.0.1:1"}
"""
DATABASE = "postgresql://u:p@127.0.0.1:1/d"
ROUTE = "routes: [{name: a, timeout: 5s, %s}]"
PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----"""

# What a policy says, and the modules that it brings. None of them is loaded without it.
NAMED = {
    "routes.compress": (
        ROUTE % "compress: auto",
        {"proxy.ingress.compression.encoders", "proxy.ingress.route_filters"},
    ),
    "routes.cache": (ROUTE % "cache: {}", {"proxy.ingress.cache.response_cache"}),
    "identity.jwt": ("identity: {user: [{jwt: {claim: sub, key: 0123456789abcdef0123456789abcdef}}]}", {"jwt"}),
    "identity.jwt of a public key": (
        f"identity: {{user: [{{jwt: {{claim: sub, algorithms: [EdDSA], key: {json.dumps(PUBLIC_KEY)}}}}}]}}",
        {"jwt", "cryptography"},
    ),
    "pace": ("upstreams: {openai: {pace: {requests: 5/min}}}", {"aiolimiter", "importlib.metadata"}),
    "postgres": (f'postgres: {{url: "{DATABASE}", listen: "127.0.0.1:0"}}', {"asyncpg", "proxy.postgres.service"}),
    "ledger": (f'ledger: {{url: "{DATABASE}"}}', {"asyncpg", "proxy.ledger.postgres"}),
    "store": (f'store: {{url: "{DATABASE}"}}', {"asyncpg", "proxy.store.postgres", "proxy.store.money_scripts"}),
    "store in Valkey": ("store: {url: 'redis://127.0.0.1:1'}", {"hiredis", "proxy.store.valkey"}),
    "background": (ROUTE % "background: {mode: prefer}", {"proxy.tasks.service", "proxy.tasks.worker"}),
    "schedules": (
        "schedules: [{name: a, cron: '0 3 * * *', timezone: Europe/Berlin, request: {method: POST, path: /}}]",
        {"proxy.tasks.service", "cronsim"},
    ),
    "cap.timezone": ("upstreams: {openai: {cap: {total: $1/d, timezone: Europe/Berlin}}}", {"zoneinfo"}),
    "sentry": ("sentry: {dsn: 'https://k@127.0.0.1:1/1'}", {"sentry_sdk"}),
}


def load(tmp_path: Path, policy: str) -> set[str]:
    file = tmp_path / "policy.yaml"
    ledger = "" if "ledger:" in policy else f'ledger: {{url: "sqlite:///{tmp_path}/ledger.db"}}\n'
    file.write_text(BASE + ledger + policy)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.rpartition("\nMODULES ")[2].split())


def test_a_part_is_loaded_only_if_the_policy_names_it(tmp_path):
    plain = load(tmp_path, "")
    optional = set.union(*(modules for _, modules in NAMED.values()))
    assert plain & optional == set()


@pytest.mark.parametrize("key", NAMED)
def test_what_a_policy_names_is_loaded_with_it(tmp_path, key):
    policy, modules = NAMED[key]
    assert modules <= load(tmp_path, policy)


def test_what_libraries_would_take_along_is_left_out(tmp_path):
    assert load(tmp_path, "") & {"brotli", "backports.zstd", "aiohttp.web", "argparse", "difflib", "zipfile"} == set()
    assert "cryptography" not in load(tmp_path, NAMED["identity.jwt"][0])
