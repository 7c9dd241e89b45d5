"""`init [DIR]`: looks at an app, writes a policy for it, and says how to start it. Nothing that exists is touched."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from proxy.cli.looks.app import App, look
from proxy.cli.looks.draft import draft, user_paths
from proxy.cli.looks.folder import SKIPPED, Folder
from proxy.cli.looks.start import find_start
from proxy.cli.screen import rows, write
from proxy.errors import UsageError
from proxy.policy.load import load
from proxy.policy.source import FILES, PolicySource

FILE = "outrigger.yaml"
INSTALL = (
    "python3 -m venv .outrigger && .outrigger/bin/pip install 'outrigger @ git+https://github.com/OWNER/outrigger'"
)
PLACES = ("backend", "server", "api", "app", "web", "src", "service")


def init(argv: Sequence[str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0; 1 where no app was found, or a policy is there already. Raises UsageError."""
    if any(word.startswith("-") for word in argv) or len(argv) > 1:
        raise UsageError("init: it takes one folder at most, as in `init backend`")
    root = Path(argv[0] if argv else ".")
    if not root.is_dir():
        raise UsageError(f"init: {root} is no folder")
    apps = candidates(root)
    if not apps:
        print(f"init: no app was found in {root}; name its folder, as in `init backend`", file=stderr)
        return 1
    if len(apps) > 1:
        names = ", ".join(str(path) for path, _ in apps)
        print(f"init: there are several apps ({names}); name one, as in `init {apps[0][0]}`", file=stderr)
        return 1
    path, app = apps[0]
    there = next((path / name for name in FILES if os.path.lexists(path / name)), None)
    if there is None:
        text = draft(app, path.resolve().name)
        load(PolicySource(FILE, None, text), {})  # what is written can be taken
        try:
            with open(path / FILE, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            print(f"init: {path / FILE} cannot be written: {error.strerror}; make {path} writable", file=stderr)
            return 1
    rows(_found(path, app), stdout)
    write(stdout, "\n")
    if there is None:
        write(stdout, f"Wrote {path / FILE}: read it once, and `check` it after each change.\n")
    _steps(app, path, stdout)
    for one in app.trusting:
        write(stdout, f"\nLook at {one.where}: {one.what}. {one.mend[:1].upper()}{one.mend[1:]}.\n")
    if there is not None:
        print(f"\ninit: {there} is there already and was left as it is; move it away to have one made", file=stderr)
        return 1
    return 0


def candidates(root: Path) -> list[tuple[Path, App]]:
    """The folder itself where it is an app, else those right below it (and below `packages` and the like)."""
    start = find_start(Folder(root))
    if start is not None and start.folder and (root / start.folder).is_dir():
        app = look(Folder(root / start.folder))
        app.start = start if app.start is None or start.source.startswith("render") else app.start
        return [(root / start.folder, app)]
    app = look(Folder(root))
    if app.found and app.start is not None:
        return [(root, app)]
    found = []
    for place in sorted([*root.iterdir(), *root.glob("apps/*"), *root.glob("services/*"), *root.glob("packages/*")]):
        if place.is_dir() and not place.name.startswith(".") and (place.name not in SKIPPED):
            below = look(Folder(place))
            if below.found and below.start is not None:
                found.append((place, below))
    servers = [(place, below) for place, below in found if below.language == "python" or below.framework != "node"]
    chosen = servers or found
    named = [pair for pair in chosen if pair[0].name in PLACES]
    if len(chosen) > 1 and len(named) == 1:
        return named
    return chosen or ([(root, app)] if app.found else [])


def _found(path: Path, app: App) -> list[tuple[str, str]]:
    pairs = [
        ("app", f"{path}: {app.language}" + (f", {app.framework}" if app.framework not in ("", app.language) else ""))
    ]
    if app.manager:
        pairs.append(("packages", app.manager))
    if app.start is not None:
        why = f", {app.changed}" if app.changed else ""
        pairs.append(("start", f"{app.start.line}  (from {app.start.source}{why})"))
    else:
        pairs.append(("start", "nothing says how it is started"))
    if app.port is not None:
        pairs.append(("port", f"{app.port}, which is in its code"))
    health = f"{app.health}  ({app.health_where})" if app.health else "no path found: ready once its port accepts"
    pairs.append(("health", health))
    models = [one for one in app.routes if one.model]
    count = f"{len(app.routes)} found" + (f", {len(models)} of them call a model" if models else "")
    if app.routes:
        pairs.append(("routes", count))
    pairs += [("", f"{'/'.join(one.methods)} {one.path}  ({one.where})") for one in models[:10]]
    users = [path for path, _ in user_paths(app.routes)] + ([f"header {app.header}"] if app.header else [])
    pairs.append(("users", ", ".join(users) or "told apart by address"))
    if app.vendors:
        pairs.append(("calls", ", ".join(app.vendors)))
    if app.database:
        pairs.append(("database", "PostgreSQL, by DATABASE_URL"))
    return pairs


def _steps(app: App, path: Path, out: TextIO) -> None:
    if app.start is None:
        write(out, "\nStart it by:\n\n    .outrigger/bin/outrigger -- COMMAND\n\nBuild with:\n\n")
        write(out, f"    {INSTALL}\n")
        return
    if app.start.source == "Dockerfile":
        words = ", ".join(f'"{word}"' for word in ("/opt/outrigger/bin/outrigger", "--"))
        line = app.start.line.replace("\\", "\\\\").replace('"', '\\"')
        write(out, "\nIn the Dockerfile, before and instead of its CMD (and ENTRYPOINT, where it has one):\n\n")
        write(out, f"    RUN {INSTALL.replace('.outrigger', '/opt/outrigger')}\n")
        if app.public is not None:
            write(out, f"    ENV PORT={app.public}\n")
        write(out, f'    CMD [{words}, "{line}"]\n')
        return
    write(out, f"\nStart command:\n\n    {command(app.start.line)}\n")
    build = f"{_build(app, path)} && " if _build(app, path) else ""
    write(out, f"\nBuild command:\n\n    {build}{INSTALL}\n")
    write(out, "\nHealth check path: /_outrigger/healthz. To take it out again: OUTRIGGER=off in the environment.\n")


def command(line: str) -> str:
    """The start command, with the app's own behind it: as one word where a shell must read it later."""
    plain = re.fullmatch(r"[\w./:=,@%+ -]+", line) is not None
    return f".outrigger/bin/outrigger -- {line if plain else _quoted(line)}"


def _quoted(line: str) -> str:
    if "'" in line and not re.search(r'["$`\\!]', line):
        return f'"{line}"'
    return shlex.quote(line if re.search(r"\s", line) else f" {line} ")


def _build(app: App, path: Path) -> str:
    if app.start is not None and app.start.build:
        return re.sub(r"\s*&&\s*python3? -m venv \.outrigger.*", "", app.start.build, flags=re.DOTALL)
    if app.language == "node":
        install = {"npm": "npm ci" if (path / "package-lock.json").is_file() else "npm install"}
        return install.get(app.manager, f"{app.manager} install")
    if app.manager == "poetry":
        return "poetry install --only main"
    if app.manager == "uv":
        return "uv sync"
    if app.manager == "pipenv":
        return "pipenv install --deploy"
    return "pip install -r requirements.txt" if (path / "requirements.txt").is_file() else ""
