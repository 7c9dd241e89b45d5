"""The command that starts an app, found in the files in which platforms look for it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.cli.detect.path_templates import is_policy_path
from proxy.cli.detect.project_files import Folder, get_table

# Programs of node_modules/.bin whose package has another name.
_PACKAGE_OF_PROGRAM = {"tsc": "typescript", "prisma": "prisma", "nest": "@nestjs/cli", "sequelize": "sequelize-cli"}
# The usual names of a script that starts a server, the likeliest first.
START_SCRIPTS = ("start.sh", "run.sh", "entrypoint.sh", "scripts/start.sh", "bin/start.sh")
# A script that runs none of these starts no server.
_SERVER_PROGRAM = re.compile(
    r"\b(uvicorn|gunicorn|hypercorn|daphne|granian|waitress-serve|flask|fastapi|python[\d.]*|node)\b"
)


@dataclass(frozen=True, slots=True)
class StartCommand:
    """How an app is started.

    Attributes:
        line: for a shell.
        source: the file that says so.
        build_command: the platform's own, empty if it is not known.
        health_path: the path that the platform asks, empty if it is not known.
        folder: where it is run, from the folder that was looked at.
        is_worker: whether it has no public port.
        release_command: what is run before each deploy.
        other_processes: what else its source starts, by name.
    """

    line: str
    source: str
    build_command: str = ""
    health_path: str = ""
    folder: str = ""
    is_worker: bool = False
    release_command: str = ""
    other_processes: tuple[str, ...] = ()


def find_start_command(folder: Folder, *, node: bool) -> StartCommand | None:
    """What a platform would run; None if no file says it."""
    # What a platform was told goes before what a person might type.
    rendered = next(iter(find_blueprint_commands(folder)), None)
    return (
        rendered
        or _from_procfile(folder)
        or _from_dockerfile(folder)
        or (_from_package_json(folder) if node else _from_shell_script(folder))
    )


def find_worker_command(folder: Folder) -> StartCommand | None:
    """A process without a public port, for a folder whose files start none that has one."""
    processes = _read_procfile(folder)
    for name in (*(one for one in processes if "worker" in one), *processes):
        if name != "release":
            others = tuple(other for other in processes if other != name)
            return StartCommand(processes[name], "Procfile", is_worker=True, other_processes=others)
    return next(iter(find_blueprint_commands(folder, "worker")), None)


def find_blueprint_commands(folder: Folder, kind: str = "web") -> list[StartCommand]:
    """The services of a Blueprint (render.com/docs/blueprint-spec) that have a start command."""
    found = []
    for name in ("render.yaml", "render.yml"):
        listed = folder.read_yaml(name).get("services")
        # A file that somebody is still writing may have anything in the list.
        services = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        names = [_text_value(one, "name") or _text_value(one, "type") or "?" for one in services]
        for at, service in enumerate(services):
            line = _text_value(service, "startCommand")
            if service.get("type") != kind or not line:
                continue
            # A Blueprint that starts the app by Outrigger already: the app's own command is behind `--`.
            if "outrigger" in line and " -- " in line:
                line = line.partition(" -- ")[2].strip("'\"")
            found.append(
                StartCommand(
                    line,
                    name,
                    build_command=_text_value(service, "buildCommand"),
                    health_path=_app_health_path(_text_value(service, "healthCheckPath")),
                    folder=_text_value(service, "rootDir").removeprefix("./").strip("/"),
                    is_worker=kind == "worker",
                    other_processes=tuple(names[:at] + names[at + 1 :]),
                )
            )
    return found


def _text_value(service: Mapping[str, object], key: str) -> str:
    """A text; empty if it is anything else, since aliases may have made it too large to be shown."""
    found = service.get(key)
    return found.strip() if isinstance(found, str) else ""


def _app_health_path(path: str) -> str:
    return "" if path.startswith("/_outrigger") or not is_policy_path(path) else path


def _read_procfile(folder: Folder) -> dict[str, str]:
    """The process types of a Procfile (devcenter.heroku.com/articles/procfile)."""
    lines = (line.strip() for line in folder.read_text("Procfile").splitlines())
    found = (re.fullmatch(r"([A-Za-z0-9_-]+)\s*:\s*(\S.*)", line) for line in lines)
    return {one[1]: one[2] for one in found if one}


def _from_procfile(folder: Folder) -> StartCommand | None:
    processes = _read_procfile(folder)
    if "web" not in processes:
        return None
    others = tuple(name for name in processes if name not in ("web", "release"))
    return StartCommand(
        processes["web"], "Procfile", release_command=processes.get("release", ""), other_processes=others
    )


def _from_dockerfile(folder: Folder) -> StartCommand | None:
    text = re.sub(r"\\\s*\n", " ", folder.read_text("Dockerfile"))
    entry, command, alone = "", "", False
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        # Each stage of a build begins anew, and the last one is what runs.
        if word.upper() == "FROM":
            entry = command = ""
        elif word.upper() == "ENTRYPOINT":
            entry, alone = _shell_line(rest.strip()), not rest.strip().startswith("[")
        elif word.upper() == "CMD":
            command = _shell_line(rest.strip())
    both = entry if entry and alone else f"{entry} {command}".strip()  # a shell's ENTRYPOINT passes no CMD on
    return StartCommand(both, "Dockerfile") if both else None


def _shell_line(text: str) -> str:
    """A shell line out of either form of CMD (docs.docker.com/reference/dockerfile)."""
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(words, list):
        return text
    if [str(word) for word in words[:2]] in (["sh", "-c"], ["/bin/sh", "-c"], ["bash", "-c"]) and len(words) == 3:
        return str(words[2])
    # Variables stay without quotes, or the shell would not expand them.
    return " ".join(word if re.fullmatch(r"\$\{?\w+.*", word) else shlex.quote(word) for word in map(str, words))


def _from_package_json(folder: Folder) -> StartCommand | None:
    package = folder.read_json("package.json")
    if not package:
        return None
    if get_table(package, "scripts").get("start"):
        return StartCommand(f"{node_package_manager(folder)} start", "package.json")
    main = package.get("main")
    names = (str(main) if main else "", "server.js", "index.js", "app.js")
    for name in names:
        if name and folder.has_file(name):
            return StartCommand(f"node {name}", "package.json")
    return None


def package_script_name(line: str) -> str:
    """The script of package.json that a line runs, empty if it runs none."""
    # yarn and pnpm run a script by its name, npm all but `start` only after `run`.
    found = re.fullmatch(r"(?:npm|yarn|pnpm|bun)(?: run)? ([\w:-]+)", line.strip())
    return found[1] if found and (found[1] == "start" or " run " in line or line.startswith(("yarn", "pnpm"))) else ""


def package_script_command(folder: Folder, name: str = "start") -> str:
    """What a script of package.json and the script before it (`pre…`) run, without npm, which takes memory and passes
    no SIGTERM on; empty if only a shell, or npm's own PATH, can run them."""
    scripts = get_table(folder.read_json("package.json"), "scripts")
    # npm runs `prestart` before `start`; without npm that would be left out.
    own = _script_program(folder, str(scripts.get(name) or "").strip())
    if f"pre{name}" not in scripts or not own:
        return own
    before = _script_program(folder, str(scripts[f"pre{name}"]).strip())
    return f"{before} && {own}" if before else ""


def _script_program(folder: Folder, script: str) -> str:
    # Quotes, variables and && are for a shell, and left to npm.
    if re.fullmatch(r"[\w@./:=, -]+", script) is None:
        return ""
    words = script.split()
    if words[0] == "npx" and len(words) > 1:
        words = words[1:]
    if words[0] == "nodemon":
        return strip_nodemon(folder, words)
    if words[0] == "node":
        return " ".join(words)
    package = folder.read_json("package.json")
    bins = {**get_table(package, "dependencies"), **get_table(package, "devDependencies")}
    # Only programs of listed packages, and not with Yarn's Plug'n'Play, which has no node_modules.
    known = words[0] in bins or _PACKAGE_OF_PROGRAM.get(words[0]) in bins
    return f"node_modules/.bin/{' '.join(words)}" if known and not folder.has_file(".pnp.cjs") else ""


def strip_nodemon(folder: Folder, words: Sequence[str]) -> str:
    """What nodemon runs, without nodemon, which restarts at each change of a file and lives on when its app has died.
    Empty if its words do not say."""
    left, program = list(words[1:]), ""
    while left and left[0].startswith("-"):
        option = left.pop(0)
        # These take a value, which is not the script.
        if option in ("-x", "--exec", "-w", "--watch", "-e", "--ext", "-i", "--ignore", "-d", "--delay", "--signal"):
            value = left.pop(0) if left else ""
            program = value if option in ("-x", "--exec") else program
    if not left and not program:
        left = [str(folder.read_json("package.json").get("main") or "")]
    if not left or not left[0]:
        return ""
    if not program:
        program = "ts-node" if left[0].endswith((".ts", ".tsx")) else "node"
    line = " ".join((program, *left))
    return line if program == "node" else f"node_modules/.bin/{line}"


def _from_shell_script(folder: Folder) -> StartCommand | None:
    """A shell script by one of the usual names that starts a server."""
    for name in START_SCRIPTS:
        text = folder.read_text(name)
        if _SERVER_PROGRAM.search(text):
            shell = "bash" if re.match(r"#!.*\bbash\b", text) else "sh"
            # An archive or a checkout may lose the executable bit; then the shell is named.
            runs = os.access(folder.path / name, os.X_OK) and text.startswith("#!")
            return StartCommand(f"./{name}" if runs else f"{shell} {name}", name)
    return None


def node_package_manager(folder: Folder) -> str:
    if folder.has_file("pnpm-lock.yaml"):
        return "pnpm"
    return "yarn" if folder.has_file("yarn.lock") else "npm"
