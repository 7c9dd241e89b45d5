"""The command that starts an app, from where platforms look for it, or as its framework wants it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from proxy.cli.looks.folder import Folder, part

PORT = "$PORT"


@dataclass(frozen=True, slots=True)
class Start:
    """`line` is for a shell. `build` is the platform's own build command where it is known."""

    line: str
    source: str
    build: str = ""
    health: str = ""  # the path that the platform asks, where it is known
    folder: str = ""  # where it is run, from the folder that was looked at


def find_start(folder: Folder) -> Start | None:
    """What a platform would run; None where nothing says it."""
    for look in (_render, _procfile, _dockerfile, _package):
        found = look(folder)
        if found is not None:
            return found
    return None


def with_port(line: str) -> tuple[str, str]:
    """The line so that the app listens where PORT says, and what was changed, empty where nothing was."""
    hard = re.sub(r"(--port[= ]|-p[= ]?|(?:--bind|-b)[= ]?(?:[\w.\[\]*-]+)?:)(\d{2,5})\b", rf"\1{PORT}", line)
    if hard != line:
        return hard, "its port was a number in the command; it is PORT now"
    if "PORT" in line:
        return line, ""
    words = _words(line)
    names = [word.rpartition("/")[2] for word in words]
    if {"uvicorn", "hypercorn", "daphne", "granian"} & set(names) and not _is_gunicorn(names):
        option = "--bind 0.0.0.0:" if "hypercorn" in names else "--port "
        return f"{line} {option}{PORT}", "its server was told no port"
    if "fastapi" in names or ("flask" in names and "run" in names):
        return f"{line} --port {PORT}", "its server was told no port"
    if "runserver" in names:
        if re.fullmatch(r"(.*:)?\d+", words[-1]):
            words = words[:-1]
        return f"{shlex.join(words)} 0.0.0.0:{PORT}", "runserver was told no port of the platform's"
    return line, ""


def _is_gunicorn(names: list[str]) -> bool:
    return "gunicorn" in names  # it listens on PORT by itself


def _render(folder: Folder) -> Start | None:
    for name in ("render.yaml", "render.yml"):
        services = folder.yaml(name).get("services")
        for service in services if isinstance(services, list) else []:
            if isinstance(service, dict) and service.get("type") == "web" and service.get("startCommand"):
                line = str(service["startCommand"]).strip()
                if "outrigger" in line and " -- " in line:
                    line = line.partition(" -- ")[2].strip("'\"")
                return Start(
                    line,
                    name,
                    build=str(service.get("buildCommand") or "").strip(),
                    health=_own(str(service.get("healthCheckPath") or "")),
                    folder=str(service.get("rootDir") or "").strip("./"),
                )
    return None


def _own(path: str) -> str:
    return "" if path.startswith("/_outrigger") or not path.startswith("/") else path


def _procfile(folder: Folder) -> Start | None:
    for line in folder.text("Procfile").splitlines():
        found = re.match(r"web\s*:\s*(\S.*)", line.strip())
        if found:
            return Start(found[1], "Procfile")
    return None


def _dockerfile(folder: Folder) -> Start | None:
    text = re.sub(r"\\\s*\n", " ", folder.text("Dockerfile"))
    entry, command = "", ""
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word.upper() == "FROM":
            entry = command = ""
        elif word.upper() == "ENTRYPOINT":
            entry = _joined(rest.strip())
        elif word.upper() == "CMD":
            command = _joined(rest.strip())
    both = f"{entry} {command}".strip()
    return Start(both, "Dockerfile") if both else None


def _joined(text: str) -> str:
    """A shell line out of either form of CMD (docs.docker.com/reference/dockerfile)."""
    try:
        words = json.loads(text)
    except ValueError:
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


def manager_of_node(folder: Folder) -> str:
    if folder.has("pnpm-lock.yaml"):
        return "pnpm"
    return "yarn" if folder.has("yarn.lock") else "npm"


def script_of(folder: Folder, line: str) -> str:
    """What `npm start` comes to, where the line is that."""
    if re.fullmatch(r"(npm|yarn|pnpm)( run)? start", line):
        scripts: Mapping[str, object] = part(folder.json("package.json"), "scripts")
        return str(scripts.get("start") or line)
    return line


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
