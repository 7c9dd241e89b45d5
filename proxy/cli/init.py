"""`init [DIR]`: looks at an app, writes a policy for it, and says how to start it. Nothing that exists is touched."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from proxy import __repository__
from proxy.cli.arguments import parse
from proxy.cli.detect.app import App, begin, look
from proxy.cli.detect.policy_template import draft
from proxy.cli.detect.project_files import SKIPPED, Folder, part
from proxy.cli.detect.start_command import Start, render_starts
from proxy.cli.detect.users import shown, user_paths
from proxy.cli.output import complain, rows, styled, write
from proxy.errors import PolicyError, UsageError
from proxy.policy.loading import FILES, PolicySource, load

FILE = "outrigger.yaml"
# --clear: pip takes what is there of the same version, from a build before, for the newest
INSTALL = f"python3 -m venv --clear .outrigger && .outrigger/bin/pip install 'outrigger @ git+{__repository__}'"
IN_IMAGE = "/opt/outrigger/bin/outrigger"
OUT = "To take it out again: OUTRIGGER=off in the environment."
BESIDE = f"Health check path: /_outrigger/healthz. {OUT}"
REFUSED = 1
PLACES = ("backend", "server", "api", "app", "web", "src", "service")


def init(argv: Sequence[str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0; 1 where no app was found, or a policy is there already. Raises UsageError."""
    line = parse("init", argv)
    words = [*line.words, *(line.rest or ())]
    if len(words) > 1:
        raise UsageError("init: it takes one folder at most, as in `init backend`")
    root = Path(words[0] if words else ".")
    if not os.path.isdir(root):
        raise UsageError(f"init: {root} is no folder; name the app's, as in `init backend`")
    try:
        apps = candidates(root)
    except OSError as error:
        complain(stderr, f"init: {error.filename} cannot be read: {error.strerror}; make it readable")
        return REFUSED
    if not apps:
        complain(stderr, f"init: no app was found in {root}; name its folder, as in `init backend`")
        return REFUSED
    if len(apps) > 1:
        names = ", ".join(str(path) for path, _ in apps)
        complain(stderr, f"init: there are several apps ({names}); name one, as in `init {apps[0][0]}`")
        return REFUSED
    path, app = apps[0]
    there = next((path / name for name in FILES if os.path.lexists(path / name)), None)
    if there is None:
        text = draft(app, path.resolve().name)
        try:
            load(PolicySource(FILE, None, text), {})  # what is written can be taken
        except PolicyError as error:
            complain(stderr, f"init: what this app's files say makes no policy; please report this: {error}")
            return REFUSED
        try:
            with open(path / FILE, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            complain(stderr, f"init: {path / FILE} cannot be written: {error.strerror}; make {path} writable")
            return REFUSED
    rows(found(path, app), stdout)
    write(stdout, "\n")
    if there is None:
        styled(stdout, f"Wrote {path / FILE}: read it once, and `check` it after each change.", "green")
    for head, code in steps(app, path):
        styled(stdout, f"\n{head}:\n", "bold")
        for one in code:
            styled(stdout, f"    {one}", "cyan")
    styled(stdout, f"\n{OUT}" if app.worker else f"\n{BESIDE}")
    for note in app.notes:
        styled(stdout, f"\nNote: {note}.", "yellow")
    for trust in app.trusting:
        mend = f"{trust.mend[:1].upper()}{trust.mend[1:]}"
        styled(stdout, f"\nLook at {trust.where}: {trust.what}. {mend}.", "yellow")
    if there is not None:
        write(stdout, "\n")
        complain(stderr, f"init: {there} is there already and was left as it is; move it away to have one made")
        return REFUSED
    return 0


def candidates(root: Path) -> list[tuple[Path, App]]:
    """The folder itself where it is an app, else those that a Blueprint names, else those right below it (and below
    `packages` and the like). Raises OSError."""
    starts = [one for one in render_starts(Folder(root)) if (root / one.folder).is_dir()]
    if any(one.folder for one in starts):
        folders = {one.folder: one for one in reversed(starts)}
        return [(root / name, _started(root / name, folders[name])) for name in sorted(folders)]
    app = look(Folder(root))
    if app.start is None or not app.start.source.startswith("render"):
        above = _above(root)
        app = _started(root, above) if above else app
    if app.found and app.start is not None:
        return [(root, app)]
    found = []
    for place in sorted([*root.iterdir(), *root.glob("apps/*"), *root.glob("services/*"), *root.glob("packages/*")]):
        if os.path.isdir(place) and not place.name.startswith(".") and (place.name not in SKIPPED):
            below = look(Folder(place))
            if below.found and below.start is not None:
                found.append((place, below))
    servers = [(place, below) for place, below in found if below.language == "python" or below.framework != "node"]
    chosen = servers or found
    named = [pair for pair in chosen if pair[0].name in PLACES]
    if len(chosen) > 1 and len(named) == 1:
        return named
    return chosen or ([(root, app)] if app.found else [])


def _above(root: Path) -> Start | None:
    """What a Blueprint in a folder above says of this one."""
    whole = root.resolve()
    for above in list(whole.parents)[:3]:
        for start in render_starts(Folder(above)):
            if start.folder and above / start.folder == whole:
                return start
    return None


def _started(path: Path, start: Start) -> App:
    app = look(Folder(path))
    begin(app, start, Folder(path))
    app.health = start.health or app.health
    return app


def found(path: Path, app: App) -> list[tuple[str, str]]:
    pairs = [
        ("app", f"{path}: {app.language}" + (f", {app.framework}" if app.framework not in ("", app.language) else ""))
    ]
    if app.manager:
        pairs.append(("packages", app.manager))
    if app.start is not None:
        why = f"; {app.changed}" if app.changed else ""
        pairs.append(("start", f"{app.start.line}  (from {app.start.source}{why})"))
    else:
        pairs.append(("start", "nothing says how it is started: put its command in place of COMMAND below"))
    if app.port is not None:
        pairs.append(("port", f"{app.port}, which is in {app.port_where}"))
    pairs += [("port", "none to the outside: a worker")] if app.worker else _visited(app)
    if app.upstreams:
        pairs.append(("calls", ", ".join(one.name for one in app.upstreams)))
    if app.database is not None:
        pairs.append(("database", str(app.database)))
    return pairs


def _visited(app: App) -> Iterator[tuple[str, str]]:
    yield (
        "health",
        f"{app.health}  ({app.health_where})" if app.health else "no path found: ready once its port accepts",
    )
    models = [one for one in app.routes if one.model]
    if app.routes:
        yield "routes", f"{len(app.routes)} found" + (f", {len(models)} of them call a model" if models else "")
    for one in models[:10]:
        yield "", f"{'/'.join(one.methods)} {one.path}  ({one.where})"
    yield "users", ", ".join(shown(app.actors, user_paths(app.routes))) or "told apart by address"


def steps(app: App, path: Path) -> Iterator[tuple[str, list[str]]]:
    """What to set, and to what."""
    if app.start is not None and app.start.source == "Dockerfile":
        words = ", ".join(json.dumps(word, ensure_ascii=False) for word in (IN_IMAGE, "--", app.start.line))
        code = [f"RUN {INSTALL.replace('.outrigger', '/opt/outrigger')}", f"CMD [{words}]"]
        if app.public is not None and app.public != app.port:
            code.insert(1, f"ENV PORT={app.public}")
        yield "In the Dockerfile, before and instead of its CMD (and ENTRYPOINT, where it has one)", code
        return
    build = build_of(app, path)
    yield "Start command", [command(app.start.line) if app.start else ".outrigger/bin/outrigger -- COMMAND"]
    yield "Build command", [f"{build} && {INSTALL}" if build else INSTALL]


def command(line: str) -> str:
    """The start command, with the app's own behind it: as one word where a shell must read it later."""
    plain = re.fullmatch(r"[\w./:=,@%+ -]+", line) is not None
    return f".outrigger/bin/outrigger -- {line if plain else _quoted(line)}"


def _quoted(line: str) -> str:
    if "'" in line and not re.search(r'["$`\\!]', line):
        return f'"{line}"'
    return shlex.quote(line if re.search(r"\s", line) else f" {line} ")


def build_of(app: App, path: Path) -> str:
    """What installs the app's packages, and builds what it must build."""
    if app.start is not None and app.start.build:
        return re.sub(r"\s*&&\s*python3? -m venv \.outrigger.*", "", app.start.build, flags=re.DOTALL)
    folder = Folder(path)
    if app.language == "node":
        install = {"npm": "npm ci" if folder.has("package-lock.json") else "npm install"}
        words = install.get(app.manager, f"{app.manager} install")
        return (
            f"{words} && {app.manager} run build"
            if part(folder.json("package.json"), "scripts").get("build")
            else words
        )
    if app.manager == "poetry":
        return "poetry install --only main"
    if app.manager == "uv":
        return "uv sync"
    if app.manager == "pipenv":
        return "pipenv install --deploy" if folder.has("Pipfile.lock") else "pipenv install"
    if folder.has("requirements.txt"):
        return "pip install -r requirements.txt"
    return "pip install ." if part(folder.toml("pyproject.toml"), "project") else ""
