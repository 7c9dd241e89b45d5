"""Shell lines: where the last command takes the shell's place, and that the line does the same."""

import os
import subprocess

import pytest

from proxy.app.shell_command import SHELL, exec_last_command, is_shell, main_program


@pytest.mark.parametrize(
    ("line", "becomes", "runs"),
    [
        ("a b", "exec a b", "a"),
        ("migrate && gunicorn x", "migrate && exec gunicorn x", "gunicorn"),
        ("a; b\nc", "a; b\nexec c", "c"),
        ("x || y", "x || exec y", "y"),
        ("cd x && a", "cd x && exec a", "a"),
        ("FOO=1 BAR='x y' a b", "FOO=1 BAR='x y' exec a b", "a"),
        ('a && FOO="1 2" b c', 'a && FOO="1 2" exec b c', "b"),
        ("a > f 2>&1", "exec a > f 2>&1", "a"),
        ("python -c 'print(1); print(2)'", "exec python -c 'print(1); print(2)'", "python"),
        ("'my app' x", "exec 'my app' x", "my app"),
        ("bash start.sh", "exec bash start.sh", "bash"),
    ],
)
def test_the_last_simple_command_of_a_list_takes_the_shells_place(line: str, becomes: str, runs: str) -> None:
    assert exec_last_command(line) == becomes
    assert main_program(becomes) == main_program(line) == runs


@pytest.mark.parametrize(
    "line",
    [
        "a | b", "a & b", "a; b &", "a &> f", "(a)", "{ a; }", "if a; then b; fi", "for x in 1; do a; done", "! a",
        "a && true", "a; cd x", "a || echo no", "exec a", "a && exec b", "trap 'a' EXIT; b", "a # b", "a $(b)",
        'a "$(b)"', "a `b`", "a 'b", "a << EOF", "FOO=1", "$CMD x", "f() { a; }; f", "", "time a",
    ],
)  # fmt: skip
def test_every_other_line_is_left_to_the_shell(line: str) -> None:
    assert exec_last_command(line) == line


@pytest.mark.parametrize(
    "line",
    [
        "printf '%s' one && env printf '%s' two",
        "false || env printf '%s' \"$X\"",
        "X=2 env sh -c 'echo $X'",
        "A='x y' B=\"z\" sh -c 'echo $A $B'; env printf end",
        "env echo a \\; b > out.txt; cat out.txt",
        "false && env echo never; sh -c 'exit 7'",
    ],
)
def test_it_does_what_it_did(line: str, tmp_path) -> None:
    ways = [
        subprocess.run([SHELL, "-c", one], cwd=tmp_path, env={**os.environ, "X": "1"}, capture_output=True, check=False)
        for one in (line, exec_last_command(line))
    ]
    assert exec_last_command(line) != line
    assert ways[0].stdout == ways[1].stdout
    assert ways[0].returncode == ways[1].returncode


def test_a_shell_is_known_by_what_runs_not_by_its_name(tmp_path) -> None:
    script = tmp_path / "start"
    script.write_text("#!/bin/sh\nread -r line\n")
    script.chmod(0o755)
    for argv, expected in (([str(script)], True), ([SHELL, "-c", "exec cat"], False), (["cat"], False)):
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            if "exec" in argv[-1]:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(b"here\n")
                process.stdin.flush()
                process.stdout.readline()  # from here on it is what it became
            assert is_shell(process.pid, argv[0]) == expected
        finally:
            process.communicate()
    assert is_shell(0, "/usr/bin/zsh")
