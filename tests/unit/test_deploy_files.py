"""What deploy/ ships holds together: Render's Blueprint, Compose, the Dockerfile, and the policies inside them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import venv
from pathlib import Path

import pytest
import yaml

from proxy import __repository__
from proxy.cli.init import INSTALL_COMMAND
from proxy.policy.loading import PolicySource, load_policy

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
# Render's Blueprint YAML Reference and Compute Plans, October 2026
SERVICE = {
    "type", "name", "runtime", "plan", "region", "buildCommand", "startCommand", "preDeployCommand", "healthCheckPath",
    "maxShutdownDelaySeconds", "envVars", "numInstances", "scaling", "disk", "domains", "autoDeployTrigger",
    "rootDir", "repo", "branch", "buildFilter", "previews",
}  # fmt: skip
VARIABLE = {"key", "value", "sync", "generateValue", "fromDatabase", "fromService", "fromGroup"}
DATABASE = {"name", "plan", "region", "databaseName", "user", "postgresMajorVersion", "ipAllowList", "diskSizeGB"}
PLAN = re.compile(r"\d+(\.\d)?c-\d+(mb|g)")
BLUEPRINTS = ("render.yaml", "worker.yaml")


def read(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.fixture(params=BLUEPRINTS)
def service(request) -> dict:
    (one,) = read(request.param)["services"]
    return one


def test_a_blueprint_has_only_keys_that_render_knows(service):
    assert set(service) <= SERVICE
    for variable in service["envVars"]:
        assert set(variable) <= VARIABLE
        assert len(variable) == 2, variable
    assert PLAN.fullmatch(service["plan"])
    for database in read("render.yaml")["databases"]:
        assert set(database) <= DATABASE
        assert PLAN.fullmatch(database["plan"])
        assert isinstance(database["postgresMajorVersion"], str)


def test_no_secret_is_written_into_a_blueprint(service):
    kinds = {variable["key"]: set(variable) - {"key"} for variable in service["envVars"]}
    assert kinds["OPENAI_API_KEY"] == kinds["SLACK_WEBHOOK_URL"] == {"sync"}
    assert kinds.get("OUTRIGGER_ADMIN_TOKEN", {"generateValue"}) == {"generateValue"}
    named = [one["fromDatabase"]["name"] for one in service["envVars"] if "fromDatabase" in one]
    assert named == [one["name"] for one in read("render.yaml")["databases"]]


def test_renders_patience_at_the_end_is_longer_than_ours(service):
    text = next((one["value"] for one in service["envVars"] if one["key"] == "OUTRIGGER_POLICY_TEXT"), None)
    policy = load_policy(PolicySource("worker", None, text), {}) if text else shipped()
    needed = (policy.listen.drain if policy.listen.public else 0) + policy.app.stop_timeout
    assert needed + 5 <= service["maxShutdownDelaySeconds"] <= 300
    assert "disk" not in service  # takes no delay of its own


def test_a_build_command_makes_the_gateways_environment_anew(service):
    """Without --clear pip keeps what an earlier build left there, the version being the same."""
    app, venv, gateway = service["buildCommand"].split(" && ")
    assert app == "pip install -r requirements.txt"
    assert f"{venv} && {gateway}".replace("python ", "python3 ", 1) == INSTALL_COMMAND
    assert service["startCommand"].startswith(".outrigger/bin/outrigger -- ")


def test_no_page_has_an_address_of_its_own_to_copy():
    """The repository's address stands in proxy/__init__.py alone; a page names it, if at all, as it stands there."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *DEPLOY.rglob("*"), *ROOT.glob(".github/**/*.y*ml")]
    for page in pages:
        if page.is_file() and page.parent != DEPLOY / "release" and "__pycache__" not in page.parts:
            text = page.read_text()
            assert "OWNER/" not in text, page
            assert set(re.findall(r"https://github\.com/[^/\s]+/outrigger\b", text)) <= {__repository__}, page


def test_the_web_service_is_probed_where_the_gateway_answers():
    (web,) = read("render.yaml")["services"]
    assert web["healthCheckPath"] == "/_outrigger/healthz"


def test_the_worker_has_no_public_port_and_says_what_its_calls_may_cost():
    (worker,) = read("worker.yaml")["services"]
    (text,) = [one["value"] for one in worker["envVars"] if one["key"] == "OUTRIGGER_POLICY_TEXT"]
    policy = load_policy(PolicySource("worker", None, text), {})
    assert policy.listen.public is None
    assert policy.upstreams["openai"].cap is not None
    assert "healthCheckPath" not in worker


def shipped():
    path = ROOT / "config" / "policy.yaml"
    return load_policy(PolicySource("policy", path, path.read_text()), {})


# ── the image ──────────────────────────────────────────────────────────────────────────────


def steps() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text()
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def test_the_image_is_built_in_two_stages_and_runs_as_nobody_in_particular():
    words = [word for word, _ in steps()]
    froms = [rest for word, rest in steps() if word == "FROM"]
    assert len(froms) == 2
    assert froms[0] == f"{froms[1]} AS outrigger"  # a virtual environment points at its Python
    user = next(rest for word, rest in steps() if word == "USER")
    assert user.isdigit()
    assert int(user) > 0
    assert words.index("USER") > max(index for index, word in enumerate(words) if word == "RUN")


def test_the_image_takes_only_files_that_are_there_and_not_ignored():
    allowed = [
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for word, rest in steps():
        if word == "COPY" and not rest.startswith("--from"):
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists(), source
                assert source == "." or any(source.startswith(one) for one in allowed), source
    assert all((ROOT / one).exists() for one in allowed)


def test_the_image_starts_the_gateway_before_the_app():
    (command,) = [json.loads(rest) for word, rest in steps() if word == "CMD"]  # no shell between signals and it
    assert command == ["/opt/outrigger/bin/outrigger", "--", "uvicorn app:app --port $PORT"]


@pytest.mark.skipif("OUTRIGGER_DEPLOY" not in os.environ, reason="installs; with OUTRIGGER_DEPLOY=1")
def test_the_images_first_stage_makes_a_gateway_that_runs(tmp_path: Path):
    """Its RUN step in a plain folder: no image is built here."""
    run = next(rest for word, rest in steps() if word == "RUN")
    source = tmp_path / "src"
    source.mkdir()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name in (line[1:] for line in ignored if line.startswith("!")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", ROOT / name, source / name], check=True)
    venv.create(tmp_path / "python", symlinks=True)
    run = run.replace("/opt", f"{tmp_path}/opt").replace("/src", str(source)).replace("--no-cache-dir", "-q")
    path = f"{tmp_path}/python/bin:{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", run], check=True, env={**os.environ, "PATH": path})
    checked = subprocess.run(
        [tmp_path / "opt/outrigger/bin/outrigger", "check", ROOT / "config" / "policy.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# ── Compose ────────────────────────────────────────────────────────────────────────────────


def test_compose_mounts_what_is_there_and_shows_itself_on_loopback_alone():
    compose = read("compose.yaml")
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert set(service.get("secrets", ())) <= set(compose["secrets"]), name
        assert set(service.get("depends_on", ())) <= set(compose["services"]), name


def test_compose_gives_the_app_what_the_smallest_instance_has_and_time_to_end():
    app = read("compose.yaml")["services"]["app"]
    assert (app["mem_limit"], app["cpus"]) == ("512m", 0.5)
    policy = shipped()
    assert int(app["stop_grace_period"].removesuffix("s")) >= policy.listen.drain + policy.app.stop_timeout + 5


def test_prometheus_scrapes_the_app_and_grafana_asks_prometheus():
    compose = read("compose.yaml")["services"]
    scrape = read("prometheus/prometheus.yml")["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["app:10000"]
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{compose['prometheus']['secrets'][0]}"
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read("grafana/provisioning/dashboards/outrigger.yaml")["providers"]
    assert any(volume.split(":")[1].startswith(provider["options"]["path"]) for volume in compose["grafana"]["volumes"])


# ── the worked example ─────────────────────────────────────────────────────────────────────


def test_the_worked_example_says_what_its_plan_asks_for():
    path = ROOT / "config" / "sprint.yaml"
    policy = load_policy(PolicySource("sprint", path, path.read_text()), {})
    openai = policy.upstreams["openai"]
    assert openai.timeout.total == openai.timeout.idle == 30
    assert policy.postgres.pool.max == 5
    assert openai.breaker is not None
    assert openai.fallback
    routes = {route.name: route for route in policy.routes}
    assert all(routes[name].rate_limit and routes[name].timeout == 30 for name in ("ask", "story"))
    assert policy.app.memory.recycle is not None
    assert policy.alerts.slack is None
