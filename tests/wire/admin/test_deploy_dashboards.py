"""The Grafana dashboard and the Prometheus rules name what a gateway exposes, and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from gateway_process import APPS, ROOT, gateway
from postgres_cluster import needs
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.metric_family import MetricFamily
from proxy.observe.metrics import NAMESPACE, Metrics
from proxy.policy import schema
from proxy.policy.loading import PolicySource, load_policy

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "outrigger.json"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_MATCHERS = re.compile(r"(\w+)\s*\{([^}]*)\}")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_OURS = re.compile(rf"\b{NAMESPACE}_\w+")


def panels() -> list[dict]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str, str]]:
    """Where, the PromQL, and the text that shows its labels."""
    for panel in panels():
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"], target["legendFormat"]
    for one in json.loads(DASHBOARD.read_text())["annotations"]["list"]:
        yield f"annotation {one['name']}", one["expr"], one["titleFormat"]
    for rule in rules():
        yield f"rule {rule['alert']}", rule["expr"], " ".join(rule["annotations"].values())


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def names(query: str) -> set[str]:
    return set(_OURS.findall(_STRING.sub('""', query)))


def labels(query: str, shown: str) -> set[str]:
    found = set()
    for _, inner in _MATCHERS.findall(query):
        found |= {part.strip() for part in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", _STRING.sub('""', inner))}
    for inner in _GROUPED.findall(query):
        found |= {part.strip() for part in inner.split(",") if part.strip()}
    found |= set(re.findall(r"\$labels\.(\w+)", shown)) | set(re.findall(r"\{\{\s*(\w+)\s*\}\}", shown))
    return found


def labels_of() -> dict[str, set[str]]:
    """By a metric's name without its suffix: the labels that it has, in use or not."""
    metrics = Metrics(schema.Metrics(), version="test")
    found = {name: set(one.label_names) for name, one in vars(metrics).items() if isinstance(one, MetricFamily)}
    return {f"{NAMESPACE}_{name}": of for name, of in found.items()}


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> str:
    return asyncio.run(scraped(tmp_path_factory.mktemp("scrape")))


@pytest.fixture(scope="module")
def exposed(scrape: str) -> dict[str, str]:
    """What one scrape of a running gateway has: sample names (with suffix) and their family's name."""
    found = {}
    for family in text_string_to_metric_families(scrape):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        found |= {family.name + suffix: family.name for suffix in suffixes}
    return found


async def scraped(tmp: Path) -> str:
    policy = "upstreams: {openai: {base_url: http://127.0.0.1:9, cap: {total: $1/d}}}\nroutes: [{name: ask, rate_limit: 5/min}]\n"
    async with gateway(tmp, sys.executable, str(APPS / "plain.py"), policy=policy) as running:
        await running.ready()
        return (await running.request("/metrics", port=running.admin)).partition(b"\r\n\r\n")[2].decode()


@pytest.mark.parametrize(("where", "query", "shown"), list(queries()), ids=lambda one: one if len(one) < 40 else "")
def test_only_metrics_and_labels_that_exist_are_named(exposed, where, query, shown):
    known = labels_of()
    used = names(query)
    assert used <= set(exposed), f"{where}: a scrape does not have {sorted(used - set(exposed))}"
    assert used or re.match(r"up\b", query), f"{where}: asks for nothing of ours"
    has = {"instance", "job", "le", "alert_name"}
    for name in used:
        has |= known.get(name, known.get(exposed[name], set()))
        has |= {"version", "python"} if name.endswith("build_info") else set()
    assert labels(query, shown) <= has, f"{where}: none of {sorted(used)} has {sorted(labels(query, shown) - has)}"


def test_every_metric_of_the_gateway_that_has_a_reader_is_on_the_dashboard(exposed):
    """What nobody looks at is not measured for nothing: it is named here with its reason."""
    elsewhere = {
        "outrigger_price_table_age_seconds": "changes by the day; `check` warns",
        "outrigger_rate_limit_evicted_total": "only with 50,000 users",
        "outrigger_log_dropped_total": "only where nobody reads the log",
        "outrigger_ledger_folded_total": "the backlog comes first",
        "outrigger_ledger_dropped_total": "the backlog comes first",
        "outrigger_ledger_write_seconds": "the backlog comes first: a slow disk shows there",
        "outrigger_alert_delivery_seconds": "asked for when alerts come late",
        "outrigger_postgres_connect_seconds": "waiting for a connection comes first",
    }
    shown = {exposed[name] for _, query, _ in queries() for name in names(query)}
    ours = {family for family in exposed.values() if not family.startswith(f"{NAMESPACE}_process_")}
    hidden = {name.removesuffix("_total") for name in elsewhere}
    assert ours - shown <= hidden


def test_the_panels_lie_side_by_side_and_have_ids_of_their_own():
    whole = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in whole}) == len(whole)
    cells: set[tuple[int, int]] = set()
    for panel in whole:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells |= mine


def test_every_rule_leads_to_a_heading_of_the_incidents():
    text = (DEPLOY / "INCIDENTS.md").read_text()
    headings = set(re.findall(r"^#+ (\S+)$", text, re.MULTILINE))
    reported = {rule["labels"]["alert_name"] for rule in rules()}
    path = ROOT / "config" / "policy.yaml"
    shipped = set(load_policy(PolicySource("policy", path, path.read_text()), {}).alerts.rules)
    assert reported | shipped <= headings
    assert shipped - reported == {"postgres_down"}  # no metric tells of it
    assert reported - shipped == {"gone"}


@needs("promtool")
def test_promtool_accepts_rules_and_their_tests():
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", str(RULES.with_name("rules.test.yml"))]):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@needs("promtool")
def test_promtool_reads_every_query_of_the_dashboard(tmp_path: Path):
    rows = []
    for number, (_, query, _) in enumerate(queries()):
        text = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
        rows.append({"record": f"query:{number}", "expr": text})
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rows}]}))
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs("promtool")
def test_promtool_reads_the_configuration(tmp_path: Path):
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    (tmp_path / "token").write_text("t")
    (tmp_path / "rules.yml").write_text(RULES.read_text())
    (tmp_path / "prometheus.yml").write_text(
        text.replace("/run/secrets/outrigger_admin_token", str(tmp_path / "token"))
    )
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_refusals_of_a_limit_are_counted_from_the_start(scrape: str):
    """A rule on `increase` misses the first of what was not there before."""
    assert 'outrigger_rate_limit_total{decision="refused",route="ask",tier=""} 0.0' in scrape
