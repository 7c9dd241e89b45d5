"""`check`: what it prints and how it ends."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from proxy.cli.check import run_check
from proxy.errors import UsageError
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import Policy


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, **environ: str) -> tuple[int, str, str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        return run_check(argv, environ, stdout, stderr), stdout.getvalue(), stderr.getvalue()

    return run


def test_a_good_policy_is_one_line_and_status_0(run) -> None:  # type: ignore[no-untyped-def]
    Path("p.yaml").write_text("routes: [{name: a, match: {path: /a}}]")
    assert run("p.yaml") == (0, "p.yaml: ok, 2 routes\n", "")


def test_a_bad_policy_is_every_fault_and_status_2(run) -> None:  # type: ignore[no-untyped-def]
    Path("p.yaml").write_text("aap: {}\nlog: {level: x}\n")
    status, stdout, stderr = run("p.yaml", "--print")
    assert (status, stdout) == (2, "")
    assert stderr.splitlines() == [
        "p.yaml:1: aap: there is no such key; did you mean app?",
        "p.yaml:2: log.level: x is none of its words; write debug | info | warning | error",
    ]


def test_warnings_go_to_stderr_and_do_not_fail(run) -> None:  # type: ignore[no-untyped-def]
    Path("p.yaml").write_text("faults: [{route: default, status: 503, share: 1%}]")
    status, stdout, stderr = run("p.yaml")
    assert (status, stdout) == (0, "p.yaml: ok, 1 route\n")
    assert stderr == "warning: p.yaml:1: faults: they break requests and calls on purpose: for staging only\n"


def test_print_shows_the_effective_policy_and_nothing_else(run) -> None:  # type: ignore[no-untyped-def]
    Path("p.yaml").write_text("app: {hold: 3s}")
    status, stdout, stderr = run("--print", "p.yaml")
    assert (status, stderr) == (0, "")
    assert load_policy(PolicySource("printed", None, stdout), {}).app.hold == 3.0


def test_without_a_file_the_policy_is_found_as_run_would_find_it(run) -> None:  # type: ignore[no-untyped-def]
    status, stdout, stderr = run("--print")
    assert status == 0
    assert load_policy(PolicySource("printed", None, stdout), {}) == Policy()
    assert "no policy found" in stderr
    assert run(OUTRIGGER_POLICY_TEXT="version: 1")[1] == "$OUTRIGGER_POLICY_TEXT: ok, 1 route\n"


@pytest.mark.parametrize("argv", [("--pront",), ("a.yaml", "b.yaml"), ("a.yaml", "--policy", "b.yaml"), ("--policy=",)])
def test_a_line_that_makes_no_sense_is_a_usage_error(run, argv: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="check: "):
        run(*argv)


def test_what_is_no_file_to_read_is_status_2_and_says_why_and_who_named_it(run) -> None:  # type: ignore[no-untyped-def]
    assert run("none.yaml")[::2] == (
        2,
        "none.yaml:1: policy: it cannot be read: there is no such file; name one that is there\n",
    )
    Path("folder").mkdir()
    assert run("folder")[::2] == (2, "folder:1: policy: it cannot be read: it is a folder; name the policy's file\n")
    named = run(OUTRIGGER_POLICY="none.yaml")
    assert named[::2] == (
        2,
        "none.yaml:1: policy: it cannot be read: there is no such file; mend $OUTRIGGER_POLICY, which names it\n",
    )
    Path("outrigger.yaml").symlink_to("gone")  # it would have been taken: no other is in its place
    assert run()[::2] == (
        2,
        "outrigger.yaml:1: policy: it cannot be read: there is no such file; name one that is there\n",
    )


def test_a_terminal_that_is_not_utf_8_gets_escapes_that_yaml_understands() -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    environ = {"OUTRIGGER_POLICY_TEXT": 'identity: {tiers: [{name: a, users: "ü😀"}, {name: b}]}'}
    assert run_check(["--print"], environ, stdout, io.StringIO()) == 0
    printed = stdout.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert load_policy(PolicySource("printed", None, printed), {}).identity.tiers[0].users == "ü😀"
