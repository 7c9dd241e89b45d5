"""How command lines are read, and the commands that only look at a policy."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.cli.arguments import parse_arguments
from proxy.cli.check import run_check
from proxy.cli.explain import run_explain
from proxy.cli.usage import COMMANDS, format_usage
from proxy.errors import UsageError

ROOT = Path(__file__).parents[3]

POLICY = """
identity:
  user: [{path: "/api/user/{user}/*"}]
  tiers: [{name: premium, users: "premium_*"}, {name: free}]
routes:
  - {name: made, match: {path: "/api/user/*/make", methods: [POST]}, rate_limit: {free: 3/h, premium: [5/h, 2/min]}, timeout: 60s}
"""


def said(command, *argv, text=POLICY):
    out, err = io.StringIO(), io.StringIO()
    status = command(argv, {"OUTRIGGER_POLICY_TEXT": text}, out, err)
    return status, out.getvalue(), err.getvalue()


def rows(text):
    return dict(line.split("  ", 1) for line in text.splitlines())


def test_explain_says_what_a_request_would_meet_and_why():
    status, out, _ = said(run_explain, "POST", "/api/user/premium_7/make?x=1")
    found = {name.strip(): value.strip() for name, value in rows(out).items()}
    assert status == 0
    assert found["route"] == "made: /api/user/*/make for POST fits"
    assert found["user"] == "premium_7, by path"
    assert found["tier"] == "premium: premium_* fits"
    assert found["rate limit"] == "5/h, 2/min"
    assert found["timeout"] == "1m to and between bytes"


def test_explain_says_what_a_route_keeps_codes_and_changes():
    policy = """routes: [{name: pages, match: {path: /*}, cache: {ttl: 5m, scope: public, max: 1MiB, stale_if_error: 1h},
      compress: auto, headers: {request: {X-Debug: null}, response: {X-Frame-Options: DENY}}}]"""
    found = {name.strip(): value.strip() for name, value in rows(said(run_explain, "GET", "/", text=policy)[1]).items()}
    assert "kept for everybody (public)" in found["cache"]
    assert "5m if they name no freshness" in found["cache"]
    assert "stale for 1h in place of an error, up to 1MiB in memory" in found["cache"]
    assert "Accept-Encoding" in found["compress"]
    assert found["fields"] == "request without X-Debug, answer with X-Frame-Options"
    found = {name.strip(): value.strip() for name, value in rows(said(run_explain, "GET", "/")[1]).items()}
    assert (found["cache"], found["fields"]) == ("no answer is kept", "none are changed")


def test_explain_says_whether_a_request_would_run_later():
    policy = "routes: [{name: report, match: {path: /r}, background: {mode: prefer, concurrency: 3}}, {name: a, background: {mode: always}}]"

    def later(*request: str) -> str:
        found = {
            name.strip(): value.strip() for name, value in rows(said(run_explain, *request, text=policy)[1]).items()
        }
        return found["later"]

    assert later("POST", "/r").startswith(
        "no, since the client does not send Prefer: respond-async; 3 at once over all"
    )
    assert later("POST", "/r", "-H", "Prefer: respond-async, wait=5").startswith("yes, with 202: the client asks")
    assert later("GET", "/other").startswith("yes, with 202: every request of this route; 2 at once")
    found = {name.strip(): value.strip() for name, value in rows(said(run_explain, "GET", "/")[1]).items()}
    assert found["later"] == "no: it is answered when the app has answered (background: off)"


def test_explain_says_what_may_be_spent_and_what_follows():
    text = POLICY.replace("timeout: 60s", "timeout: 60s, requires_budget: true, when_abandoned: cancel") + (
        "upstreams: {openai: {cap: {per_user: {free: [$1/d, $5/month]}, total: $9/d, per_call: $0.5}}}\n"
    )
    _, out, _ = said(run_explain, "POST", "/api/user/7/make", text=text)
    found = {name.strip(): value.strip() for name, value in rows(out).items()}
    assert found["caps"] == (
        "openai $1/d a user of tier free, openai $5/month a user of tier free, openai $0.5 a call, openai $9/d in all"
    )
    assert found["budget"].startswith("402 before the app works")
    assert found["abandoned"] == "a client that leaves ends the request, its calls out and its queries"
    _, out, _ = said(run_explain, "POST", "/api/user/premium_7/make", text=text)
    assert "no per_user cap fits this tier" in out


def test_explain_reads_headers_and_falls_back_to_the_default_route():
    _, out, _ = said(run_explain, "GET", "/", "-H", "X-Forwarded-For: 198.51.100.7")
    assert "default: /* fits" in out
    assert "ip:198.51.100.7, by ip" in out


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("GET",),
        ("GET", "x"),
        ("GET", "/", "-H", "x"),
        ("GET", "/", "--wat"),
        ("GET", "/", "-H"),
        ("GET", "/", "x"),
        ("GE T", "/"),
    ],
)
def test_explain_says_how_it_is_used(argv):
    with pytest.raises(UsageError, match="explain: "):
        said(run_explain, *argv)


def test_a_bad_policy_is_refused_with_every_fault_at_once():
    for command, argv in ((run_check, ()), (run_explain, ("GET", "/"))):
        status, _, err = said(command, *argv, text="routez: []\nlisten: {drian: 1s}\n")
        assert status == 2
        assert "$OUTRIGGER_POLICY_TEXT:1: routez" in err
        assert "$OUTRIGGER_POLICY_TEXT:2: listen.drian" in err
        assert "routes" in err
        assert "drain" in err


@pytest.mark.parametrize(
    ("argv", "option", "rest"),
    [
        (["--policy", "p", "--", "a", "b"], "p", ["a", "b"]),
        (["--policy=p", "--", "a b"], "p", ["a b"]),
        (["--", "a", "--policy", "x"], None, ["a", "--policy", "x"]),
        (["--policy", "o", "--policy", "p"], "p", None),
        (["--policy=a=b"], "a=b", None),
        ([], None, None),
    ],
)
def test_what_stands_after_the_dashes_is_the_apps(argv, option, rest):
    line = parse_arguments("run", argv, with_value=("--policy",))
    assert (line.last_value("--policy"), line.remainder) == (option, rest)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["uvicorn"], "`uvicorn` is not known here; an app's command goes after `--`"),
        (["doctr"], "`doctr` is not known here; did you mean doctor?"),
        (["--policy"], "--policy needs a value"),
        (["--policy="], "--policy needs a value"),
        (["--policy", "--", "a"], "--policy needs a value"),
        (["--"], "there is no command after `--`"),
        (["-x", "--", "a"], "`-x` is not known; there is --policy"),
        (["check", "--pront"], "check: `--pront` is not known; there is --policy, --print and --running"),
        (["doctor", "uvicorn"], "doctor: `uvicorn` is not known here; an app's command goes after `--`"),
        (["report", "--by", "tier"], "report: --by tier is not known; write user, model or route"),
        (["ctl"], "ctl: give one of block USER"),
        (["init", "--force"], "init: `--force` is not known; there is no option"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_status_2_a_sentence_and_the_commands_own_usage(argv, says, capsys):
    assert main(argv, {}) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"outrigger: {says}")
    assert err.endswith(f"\n\n{format_usage(*([argv[0]] if argv[0] in COMMANDS else COMMANDS))}")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_commands_own_and_nothing_is_done(command, capsys):
    assert main([command, "--help"], {}) == 0
    assert capsys.readouterr() == (format_usage(command), "")
    assert main(["--help"], {}) == 0
    assert format_usage(command) in capsys.readouterr().out


def test_help_after_the_dashes_is_the_apps():
    assert parse_arguments("run", ["--", "uvicorn", "--help"]).remainder == ["uvicorn", "--help"]


def test_a_reader_that_has_enough_gets_no_traceback(tmp_path):
    """As `outrigger check --print | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from proxy.cli import main; sys.exit(main(['check', '--print'], {}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, env=env, timeout=60
    )
    os.close(writer)
    assert done.returncode == 1
    assert b"Error" not in done.stderr
