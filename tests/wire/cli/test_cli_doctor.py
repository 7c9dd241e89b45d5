"""`doctor` against things that are there, and things that are not."""

from __future__ import annotations

import asyncio
import io
import os
import shlex
import shutil
import socket
import sys
from pathlib import Path

import pytest
from egress_gateway import Vendor, errs, says
from free_ports import free_port
from gateway_process import APPS, ROOT, gateway
from postgres_cluster import Cluster

from proxy.cli.checks import ports
from proxy.cli.doctor import run_doctor
from proxy.errors import UsageError

LAYOUTS = ROOT / "tests" / "layouts"


class Practice:
    """A folder, a policy in it, and what the doctor says there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.chdir(folder)
        self.ports = [free_port() for _ in range(4)]
        self.environ = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def policy(self, more: str = "upstreams: {openai: off}\n") -> None:
        public, admin, egress, _ = self.ports
        listen = f"{{public: 127.0.0.1:{public}, admin: 127.0.0.1:{admin}, egress: 127.0.0.1:{egress}}}"
        (self.folder / "outrigger.yaml").write_text(f"listen: {listen}\n{more}")

    async def asks(self, *words: str) -> tuple[int, dict[str, tuple[str, str]], str]:
        """In a thread: it has a loop of its own."""
        out = io.StringIO()
        status = await asyncio.to_thread(run_doctor, list(words), self.environ, out, io.StringIO())
        found = {}
        for line in out.getvalue().splitlines():
            if line[:7].strip() in ("ok", "warning", "error"):
                what, _, text = line[9:].partition("  ")
                found.setdefault(what.strip(), (line[:7].strip(), text.strip()))
        return status, found, out.getvalue()


@pytest.fixture
def practice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Practice:
    return Practice(tmp_path, monkeypatch)


async def test_all_is_well_where_it_is(practice, cluster: Cluster, database: str):
    shutil.copytree(LAYOUTS / "flask_factory", practice.folder, dirs_exist_ok=True)
    vendor = Vendor(says({"data": []}))
    await vendor.start()
    url = cluster.url(database)
    practice.policy(
        f"upstreams: {{openai: {{base_url: http://127.0.0.1:{vendor.port}/v1, api_key: k}}}}\n"
        f"postgres: {{url: '{url}', listen: 127.0.0.1:{practice.ports[3]}}}\nledger: {{url: '{url}'}}\n"
        "routes: [{name: later, match: {path: /x}, background: {mode: prefer}}]\ntasks: {url: 'sqlite:////var/tmp/x.db'}\n"
    )
    status, found, said = await practice.asks("--", "gunicorn", "shop:create_app()")
    await vendor.stop()
    assert {level for level, _ in found.values()} <= {"ok", "warning"}, said
    assert status == 0
    assert "Python 3" in found["app"][1]
    assert "PostgreSQL" in found["database"][1]
    assert "ms away" in found["database"][1]
    assert "the ledger is made with the first start" in found["ledger"][1]
    assert found["tasks"] == ("ok", "/var/tmp/x.db is made with the first row")
    assert found["upstream openai"] == ("ok", "127.0.0.1 answers (200), the key is taken")
    assert [(method, path) for method, path, _, _ in vendor.requests] == [("GET", "/v1/models")]


async def test_what_is_not_there_is_an_error_with_a_mend(practice, monkeypatch):
    monkeypatch.setattr(ports, "REQUEST_TIMEOUT", 0.3)
    (practice.folder / "x.db").write_text("no database at all")
    vendor = Vendor(errs(401))
    await vendor.start()
    dead = free_port()
    practice.policy(
        f"upstreams:\n  openai: {{base_url: http://127.0.0.1:{vendor.port}/v1, api_key: wrong}}\n"
        f"  other: {{base_url: http://127.0.0.1:{dead}}}\n"
        f"postgres: {{url: 'postgresql://u:s3cret@127.0.0.1:{dead}/d', listen: 127.0.0.1:{practice.ports[3]}}}\n"
        "ledger: {url: 'sqlite:///x.db'}\n"
        f"tasks: {{url: 'postgresql://u:s3cret@127.0.0.1:{dead}/tasks'}}\n"
        "schedules: [{name: nightly, cron: '0 3 * * *', request: {method: GET, path: /}}]\n"
        f"alerts: {{slack: 'http://127.0.0.1:{dead}/services/x'}}\n"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", practice.ports[1]))
        taken.listen()
        taken.settimeout(0.1)
        status, found, said = await practice.asks("--", "no-such-program", "--port", "1")
    await vendor.stop()
    assert status == 1
    for what in (
        "listen.admin",
        "app",
        "database",
        "ledger",
        "tasks",
        "upstream openai",
        "upstream other",
        "alerts.slack",
    ):
        level, text = found[what]
        assert level == "error", (what, said)
        assert " → " in text
    assert "the key is refused" in found["upstream openai"][1]
    assert "s3cret" not in said
    assert "(listen.admin) is taken by another process" in said


async def test_what_trusts_loopback_is_found(practice):
    shutil.copytree(LAYOUTS / "django_gunicorn", practice.folder, dirs_exist_ok=True)
    practice.policy()
    status, found, said = await practice.asks()
    assert status == 0
    assert found["app"][1].startswith("gunicorn mysite.wsgi:application (from mysite/wsgi.py)")
    assert found["loopback"][0] == "warning"
    assert "mysite/settings.py:4: INTERNAL_IPS" in said


@pytest.mark.parametrize(
    ("words", "level", "says"),
    [
        (["cd . && FLAGS=1 exec python -m http.server"], "ok", "Python 3"),
        (["cd web && ./run; python -c 'import a; b c'"], "ok", "Python 3"),
        (["python migrate.py && gunicorm app:app"], "error", "gunicorm is not found on PATH"),
        (["./start.sh"], "error", "./start.sh cannot be executed: ./start.sh → chmod +x ./start.sh"),
        (["start.sh"], "error", "start.sh is here, and not on PATH: start.sh → write ./start.sh"),
    ],
)
async def test_a_program_that_would_not_start_is_an_error(practice, words, level, says):
    (practice.folder / "start.sh").write_text("#!/bin/sh\nexec true\n")
    practice.policy()
    _, found, said = await practice.asks("--", *words)
    assert found["app"][0] == level, said
    assert says in found["app"][1]


async def test_ports_that_this_policys_own_gateway_holds_are_no_fault(practice, tmp_path):
    app = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'plain.py'))} $PORT"
    async with gateway(tmp_path, app, policy="upstreams: {openai: off}\n") as g:
        await g.ready()
        status, found, said = await practice.asks("--policy", str(tmp_path / f"policy-{g.port}.yaml"))
        assert status == 0, said
        assert "runs with this policy" in found["listen.public"][1]
        assert await g.stop() == 0


async def test_slack_gets_a_message_only_when_it_is_asked_for(practice):
    slack = Vendor(says({"ok": True}))
    await slack.start()
    practice.policy(f"upstreams: {{openai: off}}\nalerts: {{slack: 'http://127.0.0.1:{slack.port}/services/T/B/x'}}\n")
    _, found, _ = await practice.asks()
    assert found["alerts.slack"][0] == "ok"
    assert slack.requests == []
    _, found, said = await practice.asks("--slack")
    assert found["alerts.slack"][0] == "ok"
    assert len(slack.requests) == 1
    assert "doctor" in slack.bodies[0]["text"]
    assert "/services/T/B/x" not in said
    await slack.stop()


async def test_a_bad_policy_is_a_table_of_its_faults(practice):
    (practice.folder / "outrigger.yaml").write_text("listn: {}\nroutes: 7\n")
    status, _, said = await practice.asks()
    assert status == 2
    assert said.count("error") == 2
    assert "outrigger.yaml:1: listn" in said


@pytest.mark.parametrize("words", [["x"], ["--"], ["--policy"], ["--wat"]])
def test_a_line_that_makes_no_sense_is_a_usage_error(words):
    with pytest.raises(UsageError):
        run_doctor(words, {}, io.StringIO(), io.StringIO())


async def test_a_health_path_that_asks_a_model_is_spoken_of(practice):
    (practice.folder / "main.py").write_text(
        "@app.get('/health')\ndef health():\n    return client.chat.completions.create()\n"
    )
    practice.policy("app: {liveness: {path: /health}}\nupstreams: {openai: off}\n")
    _, found, _ = await practice.asks("--", sys.executable, "main.py")
    level, text = found["probes"]
    assert level == "warning"
    assert "/health (main.py:2) calls a model, and app.liveness.path asks it every 10s" in text


async def test_a_port_that_the_code_fixes_is_spoken_of_unless_the_policy_names_it(practice):
    shutil.copytree(LAYOUTS / "hard_port", practice.folder, dirs_exist_ok=True)
    practice.policy()
    _, found, _ = await practice.asks()
    assert found["app port"][0] == "warning"
    assert "server.py fixes port 8123, whatever PORT says" in found["app port"][1]
    practice.policy("app: {port: 8123}\nupstreams: {openai: off}\n")
    _, found, _ = await practice.asks("--", "python", "server.py")
    assert "app port" not in found
