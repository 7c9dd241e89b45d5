"""`outrigger` alone: what it sees in this folder, and the command to say next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from proxy.cli.detect.app import DetectedApp
from proxy.cli.init import describe_app, find_apps, wrap_start_command
from proxy.cli.output import print_line, print_pairs, write_text
from proxy.errors import PolicyError
from proxy.policy.loading import DEFAULT_FILES, find_source, load_policy

EXIT_NOTHING_STARTED = 2  # as for any command line that starts nothing: a platform must not take it for a success


def names_its_app(environ: Mapping[str, str]) -> bool:
    """Whether the policy that `run` would use here fronts an app by its address: then nothing is missing. A policy with
    a fault is for `run` to refuse."""
    try:
        policy = load_policy(find_source(None, environ, Path.cwd()), environ)
    except PolicyError:
        return True
    return policy.app.url is not None or policy.app.port != "auto"


def show_first_use(environ: Mapping[str, str], stdout: TextIO) -> int:
    """Exit status 2: nothing was started."""
    try:
        apps = find_apps(Path("."))
    except OSError as error:
        print_line(stdout, f"{error.filename} cannot be read: {error.strerror}.")
        apps = []
    named = environ.get("OUTRIGGER_POLICY") or (environ.get("OUTRIGGER_POLICY_TEXT") and "$OUTRIGGER_POLICY_TEXT")
    policy = named or next((name for name in DEFAULT_FILES if os.path.lexists(name)), None)
    if not apps:
        print_line(stdout, "No app was found in this folder.", "bold")
        next_steps = [
            ("outrigger init DIR", "looks at an app in another folder and writes a policy for it"),
            ("outrigger -- COMMAND", "starts any app behind Outrigger; the app gets its port as $PORT"),
        ]
    elif len(apps) > 1:
        print_line(stdout, f"There are several apps here: {', '.join(str(path) for path, _ in apps)}.", "bold")
        next_steps = [(f"outrigger init {apps[0][0]}", "looks at one of them and writes a policy for it")]
    else:
        print_pairs([*describe_app(*apps[0]), ("policy", policy or "none yet")], stdout)
        next_steps = _propose_steps(apps[0][1], policy)
    write_text(stdout, "\n")
    print_line(stdout, "Next:" if len(next_steps) == 1 else "Next, in this order:", "bold")
    width = max(len(command) for command, _ in next_steps)
    for command, does in next_steps:
        print_line(stdout, f"  {command.ljust(width)}  {does}", "cyan", first=width + 2)
    print_line(stdout, "\n`outrigger --help` lists every command.")
    return EXIT_NOTHING_STARTED


def _propose_steps(app: DetectedApp, policy: str | None) -> list[tuple[str, str]]:
    start = wrap_start_command(app.start.line) if app.start else "outrigger -- COMMAND"
    start = start.removeprefix(".outrigger/bin/")
    if policy is None:
        return [
            ("outrigger init", "writes a policy for it that refuses nothing but calls past a day's total"),
            ("outrigger doctor", "tries what the policy names"),
            (start, "starts it"),
        ]
    return [
        ("outrigger check", f"whether {policy} can be taken"),
        ("outrigger doctor", "tries what it names: ports, the app's command, database, upstreams"),
        (start, "starts the app behind Outrigger"),
    ]
