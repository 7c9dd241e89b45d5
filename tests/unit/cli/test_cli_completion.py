"""Completions and the manual page are made of the usage text, and shells and `man` take them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.cli.completion import SHELLS, read_forms
from proxy.cli.manual import format_manual
from proxy.cli.usage import COMMANDS

ROOT = Path(__file__).parents[3]
SHELL_FILES = ROOT / "deploy" / "shell"
NAMES = {"bash": "outrigger", "zsh": "_outrigger", "fish": "outrigger.fish"}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_file_that_is_installed_is_what_the_command_prints(shell, capsys):
    assert main(["completion", shell], {}) == 0
    assert capsys.readouterr().out == (SHELL_FILES / NAMES[shell]).read_text(), (
        "the commands have changed: run make schema"
    )


def test_the_manual_that_is_installed_is_what_the_command_prints(capsys):
    assert main(["man"], {}) == 0
    assert capsys.readouterr().out == (SHELL_FILES / "outrigger.1").read_text(), (
        "the commands have changed: run make schema"
    )


def test_the_words_of_a_command_are_read_out_of_its_forms():
    check, report, ctl = (read_forms(name) for name in ("check", "report", "ctl"))
    assert (check.options, check.positional) == ({"--print": "", "--running": "", "--policy": "FILE"}, "FILE")
    assert report.options == {"--since": "24h", "--by": "user|model|route", "--csv": "", "--policy": "FILE"}
    assert {"block", "unblock", "breaker", "reload", "restart-app"} <= set(ctl.choices)
    assert read_forms("run").positional == ""  # what follows -- is the app's


def bash(*words: str, cwd: Path = ROOT) -> list[str]:
    """What bash proposes for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    script = f"source {shlex.quote(str(SHELL_FILES / 'outrigger'))}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _outrigger"
    done = subprocess.run(
        ["bash", "-c", f'{script}; printf "%s\\n" "${{COMPREPLY[@]}}"'], capture_output=True, text=True, cwd=cwd
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_values_and_files_and_leaves_the_apps_command_alone(tmp_path):
    assert set(bash("outrigger", "")) == {*COMMANDS, "--help", "--version"}
    assert bash("outrigger", "sch") == ["schema"]
    assert bash("outrigger", "report", "--by", "") == ["user", "model", "route"]
    assert bash("outrigger", "ctl", "un") == ["unblock"]
    (tmp_path / "mine.yaml").write_text("")
    assert bash("outrigger", "check", "mi", cwd=tmp_path) == ["mine.yaml"]
    assert bash("outrigger", "run", "--policy", "mi", cwd=tmp_path) == ["mine.yaml"]
    assert "bash" in bash("outrigger", "--", "bas")


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_them_too():
    def complete(line: str) -> list[str]:
        text = f"source {shlex.quote(str(SHELL_FILES / 'outrigger.fish'))}; complete -C '{line}'"
        done = subprocess.run(["fish", "-c", text], capture_output=True, text=True)
        return [one.split("\t")[0] for one in done.stdout.splitlines()]

    assert complete("outrigger sch") == ["schema"]
    assert set(complete("outrigger report --by ")) == {"user", "model", "route"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_finds_no_fault_in_its_file(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", SHELL_FILES / NAMES[shell]], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_manual_has_every_form_and_what_it_does():
    plain = format_manual().replace("\\-", "-").replace("...", "…")
    for forms in COMMANDS.values():
        for form, does in forms:
            assert f".B {form}\n{does}\n" in plain


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_sets_the_manual_without_a_warning():
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", SHELL_FILES / "outrigger.1"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
