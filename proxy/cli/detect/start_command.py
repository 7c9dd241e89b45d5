"""The command that starts an app, from where platforms look for it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.cli.detect.path_templates import is_path
from proxy.cli.detect.project_files import Folder, part

_BROUGHT = {"tsc": "typescript", "prisma": "prisma", "nest": "@nestjs/cli", "sequelize": "sequelize-cli"}
SCRIPTS = ("start.sh", "run.sh", "entrypoint.sh", "scripts/start.sh", "bin/start.sh")
_SERVES = re.compile(r"\b(uvicorn|gunicorn|hypercorn|daphne|granian|waitress-serve|flask|fastapi|python[\d.]*|node)\b")


@dataclass(frozen=True, slots=True)
class Start:
    """`line` is for a shell. `build` is the platform's own build command where it is known."""

    line: str
    source: str
    build: str = ""
    health: str = ""  # the path that the platform asks, where it is known
    folder: str = ""  # where it is run, from the folder that was looked at
    worker: bool = False  # nobody calls it
    release: str = ""  # what is run before each deploy
    others: tuple[str, ...] = ()  # what else its source starts, by name


def find_start(folder: Folder, *, node: bool) -> Start | None:
    """What a platform would run; None where nothing says it."""
    rendered = next(iter(render_starts(folder)), None)
    return rendered or _procfile(folder) or _dockerfile(folder) or (_package(folder) if node else _script(folder))


def find_worker(folder: Folder) -> Start | None:
    """What has no public port, where a platform's file names nothing that has one."""
    processes = _processes(folder)
    for name in (*(one for one in processes if "worker" in one), *processes):
        if name != "release":
            others = tuple(other for other in processes if other != name)
            return Start(processes[name], "Procfile", worker=True, others=others)
    return next(iter(render_starts(folder, "worker")), None)


def render_starts(folder: Folder, kind: str = "web") -> list[Start]:
    """The services of a Blueprint (render.com/docs/blueprint-spec) that have a start command."""
    found = []
    for name in ("render.yaml", "render.yml"):
        listed = folder.yaml(name).get("services")
        services = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        names = [_plain(one, "name") or _plain(one, "type") or "?" for one in services]
        for at, service in enumerate(services):
            line = _plain(service, "startCommand")
            if service.get("type") != kind or not line:
                continue
            if "outrigger" in line and " -- " in line:
                line = line.partition(" -- ")[2].strip("'\"")
            found.append(
                Start(
                    line,
                    name,
                    build=_plain(service, "buildCommand"),
                    health=_own(_plain(service, "healthCheckPath")),
                    folder=_plain(service, "rootDir").removeprefix("./").strip("/"),
                    worker=kind == "worker",
                    others=tuple(names[:at] + names[at + 1 :]),
                )
            )
    return found


def _plain(service: Mapping[str, object], key: str) -> str:
    """A text; empty where it is none: what aliases may have made of it is too large to be shown."""
    found = service.get(key)
    return found.strip() if isinstance(found, str) else ""


def _own(path: str) -> str:
    return "" if path.startswith("/_outrigger") or not is_path(path) else path


def _processes(folder: Folder) -> dict[str, str]:
    """The process types of a Procfile (devcenter.heroku.com/articles/procfile)."""
    lines = (line.strip() for line in folder.text("Procfile").splitlines())
    found = (re.fullmatch(r"([A-Za-z0-9_-]+)\s*:\s*(\S.*)", line) for line in lines)
    return {one[1]: one[2] for one in found if one}


def _procfile(folder: Folder) -> Start | None:
    processes = _processes(folder)
    if "web" not in processes:
        return None
    others = tuple(name for name in processes if name not in ("web", "release"))
    return Start(processes["web"], "Procfile", release=processes.get("release", ""), others=others)


def _dockerfile(folder: Folder) -> Start | None:
    text = re.sub(r"\\\s*\n", " ", folder.text("Dockerfile"))
    entry, command, alone = "", "", False
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word.upper() == "FROM":
            entry = command = ""
        elif word.upper() == "ENTRYPOINT":
            entry, alone = _joined(rest.strip()), not rest.strip().startswith("[")
        elif word.upper() == "CMD":
            command = _joined(rest.strip())
    both = entry if entry and alone else f"{entry} {command}".strip()  # a shell's ENTRYPOINT passes no CMD on
    return Start(both, "Dockerfile") if both else None


def _joined(text: str) -> str:
    """A shell line out of either form of CMD (docs.docker.com/reference/dockerfile)."""
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(words, list):
        return text
    if [str(word) for word in words[:2]] in (["sh", "-c"], ["/bin/sh", "-c"], ["bash", "-c"]) and len(words) == 3:
        return str(words[2])
    return " ".join(word if re.fullmatch(r"\$\{?\w+.*", word) else shlex.quote(word) for word in map(str, words))


def _package(folder: Folder) -> Start | None:
    package = folder.json("package.json")
    if not package:
        return None
    if part(package, "scripts").get("start"):
        return Start(f"{manager_of_node(folder)} start", "package.json")
    main = package.get("main")
    names = (str(main) if main else "", "server.js", "index.js", "app.js")
    for name in names:
        if name and folder.has(name):
            return Start(f"node {name}", "package.json")
    return None


def of_package(line: str) -> str:
    """The script of package.json that a line runs, empty where it is none."""
    found = re.fullmatch(r"(?:npm|yarn|pnpm|bun)(?: run)? ([\w:-]+)", line.strip())
    return found[1] if found and (found[1] == "start" or " run " in line or line.startswith(("yarn", "pnpm"))) else ""


def own_of_package(folder: Folder, name: str = "start") -> str:
    """What a script runs, without npm before it, which takes memory and passes SIGTERM on to nobody, and what is to
    run before it; empty where only a shell, or npm's own PATH, can run it."""
    scripts = part(folder.json("package.json"), "scripts")
    own = _own_program(folder, str(scripts.get(name) or "").strip())
    if f"pre{name}" not in scripts or not own:
        return own
    before = _own_program(folder, str(scripts[f"pre{name}"]).strip())
    return f"{before} && {own}" if before else ""


def _own_program(folder: Folder, script: str) -> str:
    if re.fullmatch(r"[\w@./:=, -]+", script) is None:
        return ""
    words = script.split()
    if words[0] == "npx" and len(words) > 1:
        words = words[1:]
    if words[0] == "nodemon":
        return watched(folder, words)
    if words[0] == "node":
        return " ".join(words)
    package = folder.json("package.json")
    bins = {**part(package, "dependencies"), **part(package, "devDependencies")}
    known = words[0] in bins or _BROUGHT.get(words[0]) in bins
    return f"node_modules/.bin/{' '.join(words)}" if known and not folder.has(".pnp.cjs") else ""


def watched(folder: Folder, words: Sequence[str]) -> str:
    """What nodemon runs, without it: it restarts at each change of a file, and lives on where its app died. Empty
    where its words do not say."""
    left, program = list(words[1:]), ""
    while left and left[0].startswith("-"):
        option = left.pop(0)
        if option in ("-x", "--exec", "-w", "--watch", "-e", "--ext", "-i", "--ignore", "-d", "--delay", "--signal"):
            value = left.pop(0) if left else ""
            program = value if option in ("-x", "--exec") else program
    if not left and not program:
        left = [str(folder.json("package.json").get("main") or "")]
    if not left or not left[0]:
        return ""
    if not program:
        program = "ts-node" if left[0].endswith((".ts", ".tsx")) else "node"
    line = " ".join((program, *left))
    return line if program == "node" else f"node_modules/.bin/{line}"


def _script(folder: Folder) -> Start | None:
    """A shell script by one of the usual names that starts a server."""
    for name in SCRIPTS:
        text = folder.text(name)
        if _SERVES.search(text):
            shell = "bash" if re.match(r"#!.*\bbash\b", text) else "sh"
            runs = os.access(folder.path / name, os.X_OK) and text.startswith("#!")
            return Start(f"./{name}" if runs else f"{shell} {name}", name)
    return None


def manager_of_node(folder: Folder) -> str:
    if folder.has("pnpm-lock.yaml"):
        return "pnpm"
    return "yarn" if folder.has("yarn.lock") else "npm"
