"""`init [DIR]`: looks at an app, writes a policy for it, and says how to start it. Nothing that exists is touched."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from proxy.cli.arguments import parse_arguments
from proxy.cli.detect.app import DetectedApp, apply_start_command, detect_app
from proxy.cli.detect.policy_template import render_policy
from proxy.cli.detect.project_files import SKIPPED_FOLDERS, Folder, get_table
from proxy.cli.detect.start_command import StartCommand, find_blueprint_commands
from proxy.cli.detect.users import describe_user_sources, find_user_paths
from proxy.cli.output import print_error, print_line, print_pairs, write_text
from proxy.errors import PolicyError, UsageError
from proxy.policy.loading import DEFAULT_FILES, PolicySource, load_policy

POLICY_FILE = "outrigger.yaml"
LOCK_FILE = "outrigger.lock"
# --clear: pip would keep what an earlier build installed of the same version, since it takes that for the newest.
INSTALL_COMMAND = f"python3 -m venv --clear .outrigger && .outrigger/bin/pip install --require-hashes -r {LOCK_FILE}"
LOCK_HINT = (
    f"{LOCK_FILE} is not here yet: a release has it, and `make dist` makes it, with the wheel that goes beside it."
    " Commit it: it names every package with the hash of its files."
)
IMAGE_PROGRAM = "/opt/outrigger/bin/outrigger"
REMOVAL_HINT = "To take it out again: OUTRIGGER=off in the environment."
HEALTH_CHECK_HINT = f"Health check path: /_outrigger/healthz. {REMOVAL_HINT}"
EXIT_REFUSED = 1
APP_FOLDERS = ("backend", "server", "api", "app", "web", "src", "service")


def run_init(argv: Sequence[str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0; 1 if no app was found or a policy is there already. Raises UsageError."""
    arguments = parse_arguments("init", argv)
    words = [*arguments.positionals, *(arguments.remainder or ())]
    if len(words) > 1:
        raise UsageError("init: it takes one folder at most, as in `init backend`")
    root = Path(words[0] if words else ".")
    if not os.path.isdir(root):
        raise UsageError(f"init: {root} is no folder; name the app's, as in `init backend`")
    try:
        apps = find_apps(root)
    except OSError as error:
        print_error(stderr, f"init: {error.filename} cannot be read: {error.strerror}; make it readable")
        return EXIT_REFUSED
    if not apps:
        print_error(stderr, f"init: no app was found in {root}; name its folder, as in `init backend`")
        return EXIT_REFUSED
    if len(apps) > 1:
        names = ", ".join(str(path) for path, _ in apps)
        print_error(stderr, f"init: there are several apps ({names}); name one, as in `init {apps[0][0]}`")
        return EXIT_REFUSED
    path, app = apps[0]
    # lexists: a dangling link is somebody's policy too, and a write would go through it.
    existing = next((path / name for name in DEFAULT_FILES if os.path.lexists(path / name)), None)
    if existing is None and (fault := _write_policy(path, app)):
        print_error(stderr, f"init: {fault}")
        return EXIT_REFUSED
    print_pairs(describe_app(path, app), stdout)
    write_text(stdout, "\n")
    if existing is None:
        print_line(stdout, f"Wrote {path / POLICY_FILE}: read it once, and `check` it after each change.", "green")
    _print_advice(path, app, stdout)
    if existing is not None:
        write_text(stdout, "\n")
        print_error(stderr, f"init: {existing} is there already and was left as it is; move it away to have one made")
        return EXIT_REFUSED
    return 0


def _write_policy(path: Path, app: DetectedApp) -> str:
    """Write the app's policy into a file that is not there yet; what went wrong, empty if nothing did."""
    text = render_policy(app, path.resolve().name)
    try:
        load_policy(PolicySource(POLICY_FILE, None, text), {})  # nothing is written that `run` would refuse
    except PolicyError as error:
        return f"what this app's files say makes no policy; please report this: {error}"
    try:
        # "x": somebody may have made one since the look above.
        with open(path / POLICY_FILE, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        return f"{path / POLICY_FILE} cannot be written: {error.strerror}; make {path} writable"
    return ""


def _print_advice(path: Path, app: DetectedApp, stdout: TextIO) -> None:
    """How the app is started from now on, and what in its files wants a look."""
    for head, code in setup_steps(app, path):
        print_line(stdout, f"\n{head}:\n", "bold")
        for one in code:
            print_line(stdout, f"    {one}", "cyan")
    if not (path / LOCK_FILE).exists():
        print_line(stdout, f"\n{LOCK_HINT}")
    print_line(stdout, f"\n{REMOVAL_HINT}" if app.is_worker else f"\n{HEALTH_CHECK_HINT}")
    for note in app.notes:
        print_line(stdout, f"\nNote: {note}.", "yellow")
    for trust in app.loopback_trust:
        fix = f"{trust.fix[:1].upper()}{trust.fix[1:]}"
        print_line(stdout, f"\nLook at {trust.location}: {trust.problem}. {fix}.", "yellow")


def find_apps(root: Path) -> list[tuple[Path, DetectedApp]]:
    """The folders that a Blueprint names, else the folder itself if it is an app, else the apps right below it (and
    below `packages` and the like). Raises OSError."""
    # A Blueprint knows best which folders are services.
    starts = [one for one in find_blueprint_commands(Folder(root)) if (root / one.folder).is_dir()]
    if any(one.folder for one in starts):
        # Reversed, so that the first service of a folder is the one that counts.
        folders = {one.folder: one for one in reversed(starts)}
        return [(root / name, _detect_with_start(root / name, folders[name])) for name in sorted(folders)]
    app = detect_app(Folder(root))
    if app.start is None or not app.start.source.startswith("render"):
        above = _find_start_above(root)
        app = _detect_with_start(root, above) if above else app
    if app.is_app and app.start is not None:
        return [(root, app)]
    return _find_apps_below(root) or ([(root, app)] if app.is_app else [])


def _find_apps_below(root: Path) -> list[tuple[Path, DetectedApp]]:
    """The apps in the folders of a repository that has several: those that serve something if there are any, of those
    the one whose folder has a usual name. Raises OSError."""
    found = []
    for place in sorted([*root.iterdir(), *root.glob("apps/*"), *root.glob("services/*"), *root.glob("packages/*")]):
        if os.path.isdir(place) and not place.name.startswith(".") and (place.name not in SKIPPED_FOLDERS):
            app = detect_app(Folder(place))
            if app.is_app and app.start is not None:
                found.append((place, app))
    # A folder of Node without a server's framework is a page that is built, or a tool.
    servers = [(place, app) for place, app in found if app.language == "python" or app.framework != "node"]
    chosen = servers or found
    # A usual name decides only if one folder alone has it; otherwise the person has to say which.
    usual = [pair for pair in chosen if pair[0].name in APP_FOLDERS]
    return usual if len(chosen) > 1 and len(usual) == 1 else chosen


def _find_start_above(root: Path) -> StartCommand | None:
    """What a Blueprint in a folder above says of this one."""
    whole = root.resolve()
    # Three folders up and no further: above that are other projects, or somebody's home.
    for above in list(whole.parents)[:3]:
        for start in find_blueprint_commands(Folder(above)):
            if start.folder and above / start.folder == whole:
                return start
    return None


def _detect_with_start(path: Path, start: StartCommand) -> DetectedApp:
    app = detect_app(Folder(path))
    apply_start_command(app, start, Folder(path))
    app.health_path = start.health_path or app.health_path
    return app


def describe_app(path: Path, app: DetectedApp) -> list[tuple[str, str]]:
    """What was found, for who reads it: a name and a text each."""
    pairs = [
        ("app", f"{path}: {app.language}" + (f", {app.framework}" if app.framework not in ("", app.language) else ""))
    ]
    if app.package_manager:
        pairs.append(("packages", app.package_manager))
    if app.start is not None:
        why = f"; {app.start_change}" if app.start_change else ""
        pairs.append(("start", f"{app.start.line}  (from {app.start.source}{why})"))
    else:
        pairs.append(("start", "nothing says how it is started: put its command in place of COMMAND below"))
    if app.fixed_port is not None:
        pairs.append(("port", f"{app.fixed_port}, which is in {app.fixed_port_file}"))
    pairs += [("port", "none to the outside: a worker")] if app.is_worker else _describe_public_app(app)
    if app.upstreams:
        pairs.append(("calls", ", ".join(one.name for one in app.upstreams)))
    if app.database is not None:
        pairs.append(("database", str(app.database)))
    return pairs


def _describe_public_app(app: DetectedApp) -> Iterator[tuple[str, str]]:
    yield (
        "health",
        f"{app.health_path}  ({app.health_source})"
        if app.health_path
        else "no path found: ready once its port accepts",
    )
    models = [one for one in app.routes if one.calls_model]
    if app.routes:
        yield "routes", f"{len(app.routes)} found" + (f", {len(models)} of them call a model" if models else "")
    for one in models[:10]:
        yield "", f"{'/'.join(one.methods)} {one.path}  ({one.location})"
    yield (
        "users",
        ", ".join(describe_user_sources(app.user_sources, find_user_paths(app.routes))) or "told apart by address",
    )


def setup_steps(app: DetectedApp, path: Path) -> Iterator[tuple[str, list[str]]]:
    """The fields to fill in on the platform, or the lines of a Dockerfile, each with what to write."""
    if app.start is not None and app.start.source == "Dockerfile":
        words = ", ".join(json.dumps(word, ensure_ascii=False) for word in (IMAGE_PROGRAM, "--", app.start.line))
        code = [
            "COPY outrigger* ./",  # the lock, the policy, and the wheel if the lock names it as a file
            f"RUN {INSTALL_COMMAND.replace('.outrigger', '/opt/outrigger')}",
            f"CMD [{words}]",
        ]
        if app.public_port is not None and app.public_port != app.fixed_port:
            # What the image exposed so far stays its public port.
            code.insert(2, f"ENV PORT={app.public_port}")
        yield "In the Dockerfile, before and instead of its CMD (and ENTRYPOINT, where it has one)", code
        return
    build = build_command_of(app, path)
    yield "Start command", [wrap_start_command(app.start.line) if app.start else ".outrigger/bin/outrigger -- COMMAND"]
    yield "Build command", [f"{build} && {INSTALL_COMMAND}" if build else INSTALL_COMMAND]


def wrap_start_command(line: str) -> str:
    """Our start command around the app's own, which is one word if only a shell can read it."""
    # Words that a shell would leave as they are go without quotes, as people write them.
    plain = re.fullmatch(r"[\w./:=,@%+ -]+", line) is not None
    return f".outrigger/bin/outrigger -- {line if plain else _quote_line(line)}"


def _quote_line(line: str) -> str:
    # Double quotes if the line has single ones in it and nothing that double quotes would expand.
    if "'" in line and not re.search(r'["$`\\!]', line):
        return f'"{line}"'
    # One word with a space in it is a shell line; without any it would be the name of a program.
    return shlex.quote(line if re.search(r"\s", line) else f" {line} ")


def build_command_of(app: DetectedApp, path: Path) -> str:
    """What installs the app's packages, and builds what it must build."""
    if app.start is not None and app.start.build_command:
        # An earlier `init` may have added our own installation, which the caller adds again.
        return re.sub(
            r"\s*&&\s*python3? -m venv (--clear )?\.outrigger.*", "", app.start.build_command, flags=re.DOTALL
        )
    folder = Folder(path)
    if app.language == "node":
        install = {"npm": "npm ci" if folder.has_file("package-lock.json") else "npm install"}
        words = install.get(app.package_manager, f"{app.package_manager} install")
        return (
            f"{words} && {app.package_manager} run build"
            if get_table(folder.read_json("package.json"), "scripts").get("build")
            else words
        )
    if app.package_manager == "poetry":
        return "poetry install --only main"
    if app.package_manager == "uv":
        return "uv sync"
    if app.package_manager == "pipenv":
        return "pipenv install --deploy" if folder.has_file("Pipfile.lock") else "pipenv install"
    if folder.has_file("requirements.txt"):
        return "pip install -r requirements.txt"
    return "pip install ." if get_table(folder.read_toml("pyproject.toml"), "project") else ""
