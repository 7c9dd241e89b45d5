"""The app's command: whether its program is there, what runs it, and what it trusts."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from proxy.app.command import Command, parse
from proxy.app.environment import build
from proxy.app.shell_command import SHELL
from proxy.cli.checks.probes import probes
from proxy.cli.checks.stopping import stopping
from proxy.cli.detect.app import App, look
from proxy.cli.detect.loopback_trust import in_code, in_command
from proxy.cli.detect.project_files import Folder
from proxy.cli.output import Finding
from proxy.policy.schema.policy import Policy

PATIENCE = 5.0  # seconds
_TARGET = re.compile(r"[A-Za-z_][\w.]*(:[\w.]+(\(.*\))?)?")
_SERVERS = {"uvicorn", "gunicorn", "hypercorn", "daphne", "waitress-serve", "granian"}
_BUILTIN = {
    "cd", "export", "set", "unset", "ulimit", "umask", "trap", "wait", "eval", "command", ".", "source",
    "if", "then", "else", "fi", "for", "while", "do", "done", "[", "test", "{", "}", "(", ")",
}  # fmt: skip
_VALUED = re.compile(r"-\w|--[\w-]+")


async def app(policy: Policy, words: Sequence[str], environ: Mapping[str, str], cwd: Path) -> list[Finding]:
    if policy.app.url is not None or (not words and policy.app.port != "auto"):
        return [await _external(policy), *probes(policy, cwd), *_trusting(cwd, "")]
    line, known = "", look(Folder(cwd))
    if not words:
        start = known.start
        if start is None:
            mend = "give it after `--`, as to run: doctor -- COMMAND ARG…"
            text = "no start command is known, so it was not looked at"
            return [Finding("warning", "app", text, mend), *_trusting(cwd, "")]
        line, words = f" (from {start.source})", [start.line]
    command = parse(words, None, 1)
    env, _ = build(environ, programs=command.programs, public=None, private=1, extra={})
    shown = command.shown + line
    found = [await _program(program, shown, env, cwd) for program in _programs(command)]
    told = next((one for one in found if one.level == "error"), None) or (found[-1] if found else None)
    module = _module(command.shown, cwd)
    ends = stopping(policy, command.shown, env, cwd)
    fixed = _fixed(policy, known)
    return [*(one for one in (told, fixed, module) if one), *ends, *probes(policy, cwd), *_trusting(cwd, command.shown)]


def _fixed(policy: Policy, known: App) -> Finding | None:
    """A port that the code has whatever PORT says, which the gateway gives it."""
    if known.port is None or policy.app.port == known.port:
        return None
    text = f"{known.port_where} fixes port {known.port}, whatever PORT says, and app.port is {policy.app.port}"
    return Finding("warning", "app port", text, f"write app.port: {known.port}, or let the code ask PORT")


async def _external(policy: Policy) -> Finding:
    url = policy.app.url or f"http://127.0.0.1:{policy.app.port}"
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    except (OSError, TimeoutError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no answer in time"
        return Finding("error", "app", f"nothing accepts at {url}: {why}", "start the app, or mend app.url or app.port")
    writer.close()
    return Finding("ok", "app", f"{url} accepts connections")


def _programs(command: Command) -> list[str]:
    """What is to be found on PATH: of a shell line each command's first word, but for the shell's own."""
    if command.argv[0] != SHELL:
        return [command.argv[0]]
    reader = shlex.shlex(command.shown, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    try:
        words = list(reader)
    except ValueError:  # a quote that nothing closes
        return [command.program]
    found, first = [], True
    for word in words:
        if first and (re.match(r"\w+=", word) or word == "exec"):
            continue
        if first and word not in _BUILTIN and re.fullmatch(r"[\w./+-]+", word):
            # Past a `cd` what is relative is relative to another folder.
            if not ("cd" in words and "/" in word and not word.startswith("/")):
                found.append(word)
        first = re.fullmatch(r"[;&|]+", word) is not None or word in ("then", "else", "do")
    return found


async def _program(program: str, shown: str, env: Mapping[str, str], cwd: Path) -> Finding:
    path = shutil.which(program, path=env.get("PATH"))
    if path is None and _is_file(cwd / program):
        if "/" in program:
            return Finding("error", "app", f"{program} cannot be executed: {shown}", f"chmod +x {program}")
        return Finding("error", "app", f"{program} is here, and not on PATH: {shown}", f"write ./{program}")
    if path is None:
        return Finding("error", "app", f"{program} is not found on PATH: {shown}", "install it, or give its path")
    python = _interpreter(Path(path))
    version = await _version(python, env) if python else ""
    if python and not version:
        return Finding("error", "app", f"{program} is run by {python}, which does not start", "install it anew")
    return Finding("ok", "app", f"{shown}: {path}" + (f", {version}" if version else ""))


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # pathlib's own raises where a name is too long


def _interpreter(path: Path) -> str | None:
    """The Python that runs this program, or None where it is none."""
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
    words = first.removeprefix(b"#!").decode(errors="replace").split() if first.startswith(b"#!") else []
    return words[-1] if words and re.search(r"python[\d.]*$", words[-1]) else None


async def _version(python: str, env: Mapping[str, str]) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-V", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=dict(env)
        )
        async with asyncio.timeout(PATIENCE):
            out, _ = await process.communicate()
    except (OSError, TimeoutError):
        return ""
    return out.decode(errors="replace").strip() if process.returncode == 0 else ""


def _module(line: str, cwd: Path) -> Finding | None:
    """Whether the module that a server is to import is there. It is not imported: that may do anything."""
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    servers = [at for at, word in enumerate(words) if Path(word).name in _SERVERS]
    if not servers or any(word in ("--app-dir", "--chdir", "--factory-dir") for word in words):
        return None
    rest = words[servers[0] + 1 :]
    for at, word in enumerate(rest):
        after_option = at > 0 and _VALUED.fullmatch(rest[at - 1]) is not None
        if ":" not in word or not _TARGET.fullmatch(word) or after_option:
            continue
        module = word.partition(":")[0]
        parts = module.split(".")
        places = [cwd / "/".join(parts[:-1]) / f"{parts[-1]}.py", cwd / "/".join(parts) / "__init__.py"]
        if there := next((place for place in places if os.path.isfile(place)), None):
            return Finding("ok", "app module", f"{module} is {there}")
        text = f"{module} is not in {cwd}"
        return Finding("warning", "app module", text, "start from the folder that has it, or name it as it is imported")
    return None


def _trusting(cwd: Path, line: str) -> list[Finding]:
    found = [*in_command(line), *in_code(Folder(cwd))]
    if not found:
        return [Finding("ok", "loopback", "nothing was found that trusts 127.0.0.1, which is every request's peer now")]
    return [Finding("warning", "loopback", f"{one.where}: {one.what}", one.mend) for one in found]
