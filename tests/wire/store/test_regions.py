"""Two regions: a store of each, caps and the ledger in one database, and a report of both."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from egress_gateway import CHAT, Vendor, says
from gateway_process import ROOT, GatewayProcess, gateway
from kill_under_load import calling
from shared_egress import PRICE
from store_servers import valkey_server

from proxy.units import NANOS

ADA_MAY = 20  # calls a day, in both regions together
POLICY = """
app: {{attribution: "off"}}
store: {{url: '{store}', prefix: regions, region: {region}, money: '{database}', timeout: 2s}}
ledger: {{url: '{database}'}}
upstreams:
  openai:
    base_url: http://127.0.0.1:{port}/v1
    prices: {{gpt-4o-mini: {{input: 1, output: 2}}}}
    cap: {{per_user: ${cap:f}/d}}
"""


async def call(g: GatewayProcess, user: str) -> bytes:
    body = json.dumps({**CHAT, "user": user, "max_tokens": 5}).encode()
    fields = ["Content-Type: application/json"]
    return (await g.request("/openai/v1/chat/completions", method="POST", headers=fields, body=body, port=g.egress))[
        9:12
    ]


async def call_times(g: GatewayProcess, user: str, times: int) -> Counter[bytes]:
    return Counter([await call(g, user) for _ in range(times)])


def report(folder: Path, by: str) -> dict[str, dict[str, str]]:
    """The report's CSV, by the name of each row, with the policy of an instance."""
    (policy,) = folder.glob("policy-*.yaml")
    command = [sys.executable, "-m", "proxy", "report", "--policy", str(policy), "--by", by, "--csv"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=30)
    assert said.returncode == 0, said.stderr
    return {row[by]: row for row in csv.DictReader(io.StringIO(said.stdout))}


@pytest.mark.timeout(120)
async def test_a_report_is_of_all_regions_and_rows_say_of_which(own, tmp_path: Path) -> None:
    vendor = Vendor(says())
    await vendor.start()
    database = own.url("app")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(vendor.stop)
        made: dict[str, GatewayProcess] = {}
        for region in ("oregon", "frankfurt"):
            store = stack.enter_context(valkey_server())
            folder = tmp_path / region
            folder.mkdir()
            policy = POLICY.format(
                store=store.url, region=region, database=database, port=vendor.port, cap=ADA_MAY * PRICE / NANOS
            )
            made[region] = await stack.enter_async_context(gateway(folder, "sleep 1000", policy=policy))
        assert await asyncio.gather(*map(calling, made.values())) == [True, True]

        oregon, frankfurt = made.values()
        found = await asyncio.gather(
            call_times(oregon, "ada", 15), call_times(frankfurt, "ada", 15),
            call_times(oregon, "bob", 3), call_times(frankfurt, "cleo", 4),
        )  # fmt: skip
        ada, refused = (sum(each[status] for each in found[:2]) for status in (b"200", b"429"))
        assert found[2:] == [{b"200": 3}, {b"200": 4}]
        # One cap for both: the vendor's own count.
        assert ada + refused == 30
        assert ADA_MAY - 2 <= ada <= ADA_MAY
        assert len(vendor.requests) == ada + 7
        for region, g in made.items():
            metrics = (await g.request("/metrics", port=g.admin)).decode()
            (spent,) = (line for line in metrics.splitlines() if line.startswith("outrigger_cost_usd_total{"))
            assert f'region="{region}"' in spent
            assert await g.stop() == 0

    # Whichever region's policy it is asked with.
    users = report(tmp_path / "oregon", "user")
    assert users == report(tmp_path / "frankfurt", "user")
    # Calls that a cap refused are in it, too.
    assert {name: row["calls"] for name, row in users.items()} == {"ada": "30", "bob": "3", "cleo": "4"}
    spent_by = {name: Decimal(row["cost_usd"]) * NANOS for name, row in users.items()}
    assert spent_by == {"ada": ada * PRICE, "bob": 3 * PRICE, "cleo": 4 * PRICE}
    (model,) = (row for name, row in report(tmp_path / "oregon", "model").items() if Decimal(row["cost_usd"]))
    assert Decimal(model["cost_usd"]) * NANOS == len(vendor.requests) * PRICE

    with psycopg.connect(database) as ledger:
        rows = ledger.execute(
            "SELECT region, user_id, count(*), sum(cost) FROM outrigger_calls GROUP BY 1, 2"
        ).fetchall()
    assert {(region, user): int(cost) for region, user, _, cost in rows} == {
        ("oregon", "ada"): found[0][b"200"] * PRICE, ("frankfurt", "ada"): found[1][b"200"] * PRICE,
        ("oregon", "bob"): 3 * PRICE, ("frankfurt", "cleo"): 4 * PRICE,
    }  # fmt: skip
    assert sum(count for _, user, count, _ in rows if user == "ada") == 30
