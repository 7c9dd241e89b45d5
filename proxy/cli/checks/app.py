"""The app's command: whether its program and its module are there, how it stops, and what in its code does not fit a
place behind a proxy: a fixed port, a probe that costs money, trust in 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from proxy.app.command import Command, parse_command
from proxy.app.environment import build_environment
from proxy.app.shell_command import SHELL
from proxy.cli.checks.stop_signal import check_stop_signal
from proxy.cli.detect.app import DetectedApp, describe_probe_cost, detect_app
from proxy.cli.detect.loopback_trust import find_trust_in_code, find_trust_in_command
from proxy.cli.detect.project_files import Folder
from proxy.cli.detect.routes import find_routes
from proxy.cli.output import Finding
from proxy.policy.schema import Policy
from proxy.units import format_duration

CONNECT_TIMEOUT = 5.0  # seconds
_IMPORT_TARGET = re.compile(r"[A-Za-z_][\w.]*(:[\w.]+(\(.*\))?)?")
_PYTHON_SERVERS = {"uvicorn", "gunicorn", "hypercorn", "daphne", "waitress-serve", "granian"}
_SHELL_BUILTINS = {
    "cd", "export", "set", "unset", "ulimit", "umask", "trap", "wait", "eval", "command", ".", "source",
    "if", "then", "else", "fi", "for", "while", "do", "done", "[", "test", "{", "}", "(", ")",
}  # fmt: skip
_OPTION = re.compile(r"-\w|--[\w-]+")


async def check_app(policy: Policy, words: Sequence[str], environ: Mapping[str, str], cwd: Path) -> list[Finding]:
    """Findings on the app that `words` start, or that a file in `cwd` says how to start, or that runs already."""
    # An app that something else starts has no command to look at.
    if policy.app.url is not None or (not words and policy.app.port != "auto"):
        return [await _check_external_app(policy), *_check_probes(policy, cwd), *_check_loopback_trust(cwd, "")]
    origin, known = "", detect_app(Folder(cwd))
    if not words:
        start = known.start
        if start is None:
            fix = "give it after `--`, as to run: doctor -- COMMAND ARG…"
            text = "no start command is known, so it was not looked at"
            return [Finding("warning", "app", text, fix), *_check_loopback_trust(cwd, "")]
        origin, words = f" (from {start.source})", [start.line]
    command = parse_command(words, None, 1)
    env, _ = build_environment(environ, programs=command.programs, public=None, private=1, extra={})
    shown = command.display + origin
    found = [await _check_program(program, shown, env, cwd) for program in _list_programs(command)]
    # One line for the command: the first program that is not there, else the last one, which is the server.
    program = next((one for one in found if one.level == "error"), None) or (found[-1] if found else None)
    module = _check_module(command.display, cwd)
    fixed = _check_fixed_port(policy, known)
    return [
        *(one for one in (program, fixed, module) if one),
        *check_stop_signal(policy, command.display, env, cwd),
        *_check_probes(policy, cwd),
        *_check_loopback_trust(cwd, command.display),
    ]


def _check_fixed_port(policy: Policy, known: DetectedApp) -> Finding | None:
    """A port that the code listens on whatever the PORT that the gateway gives it says."""
    if known.fixed_port is None or policy.app.port == known.fixed_port:
        return None
    text = (
        f"{known.fixed_port_file} fixes port {known.fixed_port}, whatever PORT says, and app.port is {policy.app.port}"
    )
    return Finding("warning", "app port", text, f"write app.port: {known.fixed_port}, or let the code ask PORT")


async def _check_external_app(policy: Policy) -> Finding:
    url = policy.app.url or f"http://127.0.0.1:{policy.app.port}"
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    except (OSError, TimeoutError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no answer in time"
        return Finding("error", "app", f"nothing accepts at {url}: {why}", "start the app, or mend app.url or app.port")
    writer.close()
    return Finding("ok", "app", f"{url} accepts connections")


def _list_programs(command: Command) -> list[str]:
    """The programs that have to be on PATH: of a shell line the first word of each command, but for the shell's own."""
    if command.argv[0] != SHELL:
        return [command.argv[0]]
    # With punctuation: `a;b` and `a&&b` are three words each, as a shell sees them.
    reader = shlex.shlex(command.display, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    try:
        words = list(reader)
    except ValueError:  # a quote that nothing closes
        return [command.main_program]
    found, first = [], True
    for word in words:
        if first and (re.match(r"\w+=", word) or word == "exec"):
            continue
        if first and word not in _SHELL_BUILTINS and re.fullmatch(r"[\w./+-]+", word):
            # Past a `cd` what is relative is relative to another folder.
            if not ("cd" in words and "/" in word and not word.startswith("/")):
                found.append(word)
        first = re.fullmatch(r"[;&|]+", word) is not None or word in ("then", "else", "do")
    return found


async def _check_program(program: str, shown: str, env: Mapping[str, str], cwd: Path) -> Finding:
    # By the PATH that the app would get, not by ours.
    path = shutil.which(program, path=env.get("PATH"))
    # Two usual mistakes: the file is not executable, or it is named without ./ and a shell looks on PATH alone.
    if path is None and _is_file(cwd / program):
        if "/" in program:
            return Finding("error", "app", f"{program} cannot be executed: {shown}", f"chmod +x {program}")
        return Finding("error", "app", f"{program} is here, and not on PATH: {shown}", f"write ./{program}")
    if path is None:
        return Finding("error", "app", f"{program} is not found on PATH: {shown}", "install it, or give its path")
    python = _find_interpreter(Path(path))
    # Programs of a virtual environment outlive its Python: only starting it shows that it is gone.
    version = await _read_python_version(python, env) if python else ""
    if python and not version:
        return Finding("error", "app", f"{program} is run by {python}, which does not start", "install it anew")
    return Finding("ok", "app", f"{shown}: {path}" + (f", {version}" if version else ""))


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # pathlib's own raises if a name is too long


def _find_interpreter(path: Path) -> str | None:
    """The Python that runs this program, or None if it is not a Python program."""
    if re.fullmatch(r"python[\d.]*", path.name):
        return str(path)
    if not os.path.isfile(path):  # a FIFO would be waited for
        return None
    try:
        with open(path, "rb") as file:
            first, second = file.readline(512), file.readline(512)
    except OSError:
        return None
    # A path that is long or has spaces fits no #! line: pip writes a program for sh and Python at once then.
    behind = re.match(rb"'''exec' (?:\"([^\"]+)\"|(\S+)) ", second)
    if first.startswith(b"#!/bin/sh") and behind:
        return (behind[1] or behind[2]).decode(errors="replace")
    # The last word, as in `#!/usr/bin/env python3`.
    words = first.removeprefix(b"#!").decode(errors="replace").split() if first.startswith(b"#!") else []
    return words[-1] if words and re.search(r"python[\d.]*$", words[-1]) else None


async def _read_python_version(python: str, env: Mapping[str, str]) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-V", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=dict(env)
        )
        async with asyncio.timeout(CONNECT_TIMEOUT):
            out, _ = await process.communicate()
    except (OSError, TimeoutError):
        return ""
    return out.decode(errors="replace").strip() if process.returncode == 0 else ""


def _check_module(line: str, cwd: Path) -> Finding | None:
    """Whether the module that a server is to import is there. It is not imported: that may do anything."""
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    servers = [at for at, word in enumerate(words) if Path(word).name in _PYTHON_SERVERS]
    # These options lead to another folder, which is not followed.
    if not servers or any(word in ("--app-dir", "--chdir", "--factory-dir") for word in words):
        return None
    rest = words[servers[0] + 1 :]
    for at, word in enumerate(rest):
        after_option = at > 0 and _OPTION.fullmatch(rest[at - 1]) is not None
        if ":" not in word or not _IMPORT_TARGET.fullmatch(word) or after_option:
            continue
        module = word.partition(":")[0]
        parts = module.split(".")
        places = [cwd / "/".join(parts[:-1]) / f"{parts[-1]}.py", cwd / "/".join(parts) / "__init__.py"]
        if there := next((place for place in places if os.path.isfile(place)), None):
            return Finding("ok", "app module", f"{module} is {there}")
        text = f"{module} is not in {cwd}"
        return Finding("warning", "app module", text, "start from the folder that has it, or name it as it is imported")
    return None


def _check_probes(policy: Policy, cwd: Path) -> Iterator[Finding]:
    """Whether the code behind a probed path calls a model or another host; a running gateway says how long it takes."""
    ready, liveness = policy.app.ready.path, policy.app.liveness
    asked = {ready: "app.ready.path"} if ready is not None else {}
    often = "until it is ready"
    if liveness is not None and liveness.path is not None:
        asked[liveness.path] = "app.liveness.path"
        often = f"every {format_duration(liveness.interval)}"
    if not asked:
        return
    routes, _ = find_routes(Folder(cwd))
    for one in routes:
        if one.path in asked and (why := describe_probe_cost(one)) and "GET" in (one.methods or ("GET",)):
            text = f"{one.path} ({one.location}) {why}, and {asked[one.path]} asks it {often}"
            yield Finding("warning", "probes", text, "name a path that asks nobody else; without one the port is asked")


def _check_loopback_trust(cwd: Path, line: str) -> list[Finding]:
    found = [*find_trust_in_command(line), *find_trust_in_code(Folder(cwd))]
    if not found:
        return [Finding("ok", "loopback", "nothing was found that trusts 127.0.0.1, which is every request's peer now")]
    return [Finding("warning", "loopback", f"{one.location}: {one.problem}", one.fix) for one in found]
