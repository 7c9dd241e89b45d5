"""All that can be known of an app by reading its folder: `detect_app` asks each of the files beside this one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import partial

from proxy.cli.detect.database import DetectedDatabase, find_database
from proxy.cli.detect.env_reads import EnvRead, find_env_reads
from proxy.cli.detect.framework_defaults import guess_start_command
from proxy.cli.detect.known_apps import known_health_path, set_gradio_port
from proxy.cli.detect.loopback_trust import LoopbackTrust, find_trust_in_code, find_trust_in_command
from proxy.cli.detect.packages import find_packages
from proxy.cli.detect.port import find_fixed_port, find_public_port, set_gunicorn_bind, set_port, shell_script_of
from proxy.cli.detect.project_files import Folder, get_table
from proxy.cli.detect.routes import AppRoute, find_routes
from proxy.cli.detect.start_command import (
    StartCommand,
    find_start_command,
    find_worker_command,
    node_package_manager,
    package_script_command,
    package_script_name,
    strip_nodemon,
)
from proxy.cli.detect.static_files import find_static_paths
from proxy.cli.detect.users import UserSources, find_user_sources
from proxy.cli.detect.vendors import Vendor, find_vendors

# Paths that are asked for health by convention, the most telling first.
HEALTH_PATHS = ("/health", "/healthz", "/api/health", "/_health", "/readyz", "/livez", "/up", "/ping", "/status")
# A package that an app is written with goes before one that is a program by itself.
FRAMEWORKS = ("fastapi", "flask", "django", "starlette", "aiohttp", "quart", "litestar", "streamlit")
PRODUCTS = ("streamlit", "chainlit", "gradio", "marimo", "open-webui", "jupyterlab", "datasette")
GATEWAY_PORTS = (10000, 9901, 9902)  # listen.public's default, listen.admin, listen.egress


@dataclass
class DetectedApp:
    """What was found.

    Attributes:
        packages: names, in lower case.
        start: the command, changed so that the app listens on PORT; None if none was found.
        start_change: what was changed of it, and why.
        public_port: the port in the start command as it was.
        fixed_port, fixed_port_file: the port that it has whatever PORT says, and the file that fixes it.
        health_path, health_source: the path to ask, and what names it.
        health_cost: why no probe should ask that path, empty if nothing speaks against it.
        static_paths: patterns of the paths of files, and where each was seen.
        start_notes, other_notes: what its files do not say of its start and of all else, a sentence each.
    """

    language: str = ""
    framework: str = ""
    package_manager: str = ""
    packages: frozenset[str] = frozenset()
    start: StartCommand | None = None
    start_change: str = ""
    public_port: int | None = None
    fixed_port: int | None = None
    fixed_port_file: str = ""
    health_path: str = ""
    health_source: str = ""
    routes: list[AppRoute] = field(default_factory=list)
    health_cost: str = ""
    upstreams: list[Vendor] = field(default_factory=list)
    database: DetectedDatabase | None = None
    user_sources: UserSources = UserSources()
    static_paths: list[tuple[str, str]] = field(default_factory=list)
    loopback_trust: list[LoopbackTrust] = field(default_factory=list)
    start_notes: list[str] = field(default_factory=list)
    other_notes: list[str] = field(default_factory=list)

    @property
    def is_app(self) -> bool:
        return bool(self.language)

    @property
    def notes(self) -> list[str]:
        return [*self.start_notes, *self.other_notes]

    @property
    def vendors(self) -> tuple[str, ...]:
        """The kinds of its upstreams."""
        return tuple(one.kind for one in self.upstreams)

    @property
    def is_worker(self) -> bool:
        """Whether nobody calls it."""
        return self.start is not None and self.start.is_worker


def detect_app(folder: Folder) -> DetectedApp:
    """All that the folder's files say of the app in it; an empty `language` if there is none."""
    app = DetectedApp()
    app.packages = find_packages(folder)
    _detect_language(app, folder)
    start = find_start_command(folder, node=app.language == "node")
    if start is None and app.language == "python":
        start = guess_start_command(folder, app.framework, app.package_manager, app.packages)
    # Last: a folder that has a process with a port is that one, whatever workers it has besides.
    start = start or find_worker_command(folder)
    if start is not None:
        apply_start_command(app, start, folder)
    app.routes, unread = find_routes(folder)
    app.other_notes += unread
    # After the start and the routes, both of which may name the path.
    app.health_path, app.health_source = _find_health_path(app)
    app.health_cost = next((describe_probe_cost(one) for one in app.routes if one.path == app.health_path), "")
    reads = find_env_reads(folder)
    app.upstreams, notes = find_vendors(folder, app.packages, reads)
    app.other_notes += notes
    _detect_database(app, folder, reads)
    app.user_sources = find_user_sources(folder, app.packages)
    app.static_paths = find_static_paths(folder, app.framework, app.packages)
    app.loopback_trust = [*find_trust_in_command(app.start.line if app.start else ""), *find_trust_in_code(folder)]
    return app


def _detect_language(app: DetectedApp, folder: Folder) -> None:
    """The language, the package manager and the framework. A folder with both languages is Python's: its package.json
    builds a page."""
    if _is_python(folder):
        app.language, app.package_manager = "python", _python_package_manager(folder)
        named = next((name for name in FRAMEWORKS if name in app.packages), "")
        app.framework = named or next((name for name in PRODUCTS if name in app.packages), "")
    elif folder.read_json("package.json"):
        app.language, app.package_manager = "node", node_package_manager(folder)
        app.framework = next((name for name in ("express", "fastify", "koa", "next") if name in app.packages), "node")
    if not app.framework and folder.has_file("manage.py"):
        app.framework = "django"


def _detect_database(app: DetectedApp, folder: Folder, reads: list[EnvRead]) -> None:
    # dj_database_url.config() and environ.Env().db() read DATABASE_URL without naming it.
    mentions_url = "dj-database-url" in app.packages or any(
        re.search(r"DATABASE_URL|\benv\.db\(", text)
        for _, text in folder.source_files(".py", ".js", ".ts", ".mjs", ".cjs")
    )
    app.database = find_database(app.packages, reads, mentions_url=mentions_url)
    if app.database is not None and app.database.missing_parts:
        fixed = ", ".join(app.database.missing_parts)
        by_parts = f"{app.database.location} reads the address of its database by parts"
        app.other_notes.append(f"{by_parts}, and its {fixed} by no variable: no pool")


def apply_start_command(app: DetectedApp, start: StartCommand, folder: Folder) -> None:
    """Set `app.start` to a command, changed so that the app listens on PORT and gets SIGTERM itself."""
    app.language = app.language or "other"
    # A Blueprint in a folder above may set another command later: what the first one left is taken back.
    app.start_notes.clear()
    app.fixed_port, app.fixed_port_file = None, ""
    app.start = start
    if start.release_command:
        by = f"{start.source}'s release (`{start.release_command}`) is run by platforms of Heroku's kind alone"
        app.start_notes.append(f"{by}; elsewhere start the app by `{start.release_command} && …`")
    if start.other_processes:
        names = ", ".join(start.other_processes[:5]) + (" and more" if len(start.other_processes) > 5 else "")
        app.start_notes.append(f"{start.source} also starts {names}: these stay as they are, and go round the gateway")
    # A worker listens on nothing: its command stays as it is.
    if start.is_worker:
        return
    line, whys = start.line, []
    if name := package_script_name(line):
        if own := package_script_command(folder, name):
            whys.append(f"in place of `{line}`, which passes no SIGTERM on")
            line = own
        else:
            app.start_notes.append(
                f"`{line}` passes no SIGTERM on, so a stop cuts what the app does: start its own command"
            )
    if re.match(r"(?:npx |\S*/)?nodemon\b", line) and (own := strip_nodemon(folder, line.removeprefix("npx ").split())):
        whys.append("without nodemon, which lives on where the app died")
        line = own
    elif "nodemon" in line:
        app.start_notes.append(
            "nodemon starts the app anew at each change of a file and outlives its death: start its script"
        )
    # Before the command is changed, for the number is gone afterwards.
    app.public_port = find_public_port(folder, line, image=start.source == "Dockerfile")
    # Gradio first: its line has PORT in it then, and set_port leaves it alone.
    for step in (partial(set_gradio_port, folder, app.packages), set_port, partial(set_gunicorn_bind, folder)):
        line, why = step(line)
        whys += [why] if why else []
    app.start_change = "; ".join(whys)
    app.start = replace(start, line=line)
    if fixed := find_fixed_port(folder, line):
        port, app.fixed_port_file = fixed
        if port in GATEWAY_PORTS:
            app.start_notes.append(
                f"{app.fixed_port_file} fixes port {port}, which the gateway takes: write $PORT there"
            )
        else:
            app.fixed_port = port
            if start.source == "Dockerfile":
                app.start_notes.append(
                    f"{app.fixed_port_file} fixes port {port}, so the gateway has another (PORT, else 10000): publish"
                    " that one, or write $PORT there and take `port` out of the policy"
                )
    # A shell that stays in front of its server gets the signal in the server's place.
    script = shell_script_of(line)
    text = folder.read_text(script) if script else ""
    if text and not re.search(r"^\s*exec\s", text, re.MULTILINE):
        app.start_notes.append(
            f"{script} has no `exec` before its server, so a stop reaches the shell alone: write it there"
        )


def _is_python(folder: Folder) -> bool:
    names = ("requirements.txt", "pyproject.toml", "Pipfile", "manage.py", "setup.py", "main.py", "app.py", "wsgi.py")
    return any(folder.has_file(name) for name in names)


def _python_package_manager(folder: Folder) -> str:
    # A lock file or a table of its own names the manager; without either pip can install everything.
    project = folder.read_toml("pyproject.toml")
    if folder.has_file("uv.lock") or get_table(project, "tool", "uv"):
        return "uv"
    if (
        folder.has_file("poetry.lock")
        or get_table(project, "tool", "poetry")
        or "poetry" in str(get_table(project, "build-system"))
    ):
        return "poetry"
    return "pipenv" if folder.has_file("Pipfile") else "pip"


def describe_probe_cost(one: AppRoute) -> str:
    """Why a route costs more than the app's own work; empty if nothing of it is seen."""
    return "calls a model" if one.calls_model else "calls another host" if one.calls_outside else ""


def _find_health_path(app: DetectedApp) -> tuple[str, str]:
    if app.start is not None and app.start.health_path:
        return app.start.health_path, app.start.source
    looks = {
        one.path.rstrip("/"): one for one in app.routes if "GET" in (one.methods or ("GET",)) and not one.has_parameters
    }
    # By convention, then by its ending, then by what the program's own pages say.
    for path in HEALTH_PATHS:
        if path in looks:
            return looks[path].path, looks[path].location
    for path, one in looks.items():
        if re.search(r"/(health|healthz|healthcheck|health-check|ping)$", path):
            return one.path, one.location
    known = known_health_path(app.start.line) if app.start is not None else ""
    return known, "its own pages say so" if known else ""
