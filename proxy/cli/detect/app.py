"""All that can be known of an app by reading its folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import partial

from proxy.cli.detect.database import Database, find_database
from proxy.cli.detect.env_reads import find_settings
from proxy.cli.detect.framework_defaults import guess
from proxy.cli.detect.known_apps import gradio_port, health_of
from proxy.cli.detect.loopback_trust import Trust, in_code, in_command
from proxy.cli.detect.packages import find_needs
from proxy.cli.detect.port import fixed_port, public_port, script_of, unbound, with_port
from proxy.cli.detect.project_files import Folder, part
from proxy.cli.detect.routes import Seen, find_routes
from proxy.cli.detect.start_command import (
    Start,
    find_start,
    find_worker,
    manager_of_node,
    of_package,
    own_of_package,
    watched,
)
from proxy.cli.detect.static_files import find_statics
from proxy.cli.detect.users import Actors, find_actors
from proxy.cli.detect.vendors import Vendor, find_vendors

HEALTHY = ("/health", "/healthz", "/api/health", "/_health", "/readyz", "/livez", "/up", "/ping", "/status")
FRAMEWORKS = ("fastapi", "flask", "django", "starlette", "aiohttp", "quart", "litestar", "streamlit")
PRODUCTS = ("streamlit", "chainlit", "gradio", "marimo", "open-webui", "jupyterlab", "datasette")
OURS = (10000, 9901, 9902)  # listen.public's default, listen.admin, listen.egress


@dataclass
class App:
    """`needs` are the names of its packages, in lower case."""

    language: str = ""
    framework: str = ""
    manager: str = ""
    needs: frozenset[str] = frozenset()
    start: Start | None = None
    changed: str = ""  # what was changed of the start command
    public: int | None = None  # the port in the start command as it was
    port: int | None = None  # that it has whatever PORT says
    port_where: str = ""  # the file that fixes it
    health: str = ""
    health_where: str = ""
    routes: list[Seen] = field(default_factory=list)
    health_dear: str = ""  # why no probe should ask it, empty where nothing is seen
    upstreams: list[Vendor] = field(default_factory=list)
    database: Database | None = None
    actors: Actors = Actors()
    statics: list[tuple[str, str]] = field(default_factory=list)  # patterns of files, and where each was seen
    trusting: list[Trust] = field(default_factory=list)
    of_start: list[str] = field(default_factory=list)  # what its files do not say of its start, a sentence each
    unseen: list[str] = field(default_factory=list)  # and of all else

    @property
    def found(self) -> bool:
        return bool(self.language)

    @property
    def notes(self) -> list[str]:
        return [*self.of_start, *self.unseen]

    @property
    def vendors(self) -> tuple[str, ...]:
        """The kinds of its upstreams."""
        return tuple(one.kind for one in self.upstreams)

    @property
    def worker(self) -> bool:
        """Whether nobody calls it."""
        return self.start is not None and self.start.worker


def look(folder: Folder) -> App:
    app = App()
    app.needs = find_needs(folder)
    if folder.json("package.json") and not _is_python(folder):
        app.language, app.manager = "node", manager_of_node(folder)
        app.framework = next((name for name in ("express", "fastify", "koa", "next") if name in app.needs), "node")
    elif _is_python(folder):
        app.language, app.manager = "python", _manager(folder)
        named = next((name for name in FRAMEWORKS if name in app.needs), "")
        app.framework = named or next((name for name in PRODUCTS if name in app.needs), "")
    if not app.framework and folder.has("manage.py"):
        app.framework = "django"
    start = find_start(folder, node=app.language == "node")
    if start is None and app.language == "python":
        start = guess(folder, app.framework, app.manager, app.needs)
    start = start or find_worker(folder)
    if start is not None:
        begin(app, start, folder)
    app.routes, unread = find_routes(folder)
    app.unseen += unread
    app.health, app.health_where = _health(app)
    app.health_dear = next((dear(one) for one in app.routes if one.path == app.health), "")
    settings = find_settings(folder)
    app.upstreams, notes = find_vendors(folder, app.needs, settings)
    app.unseen += notes
    # dj_database_url.config() and environ.Env().db() read DATABASE_URL where nothing else is said.
    spoken_of = "dj-database-url" in app.needs or any(
        re.search(r"DATABASE_URL|\benv\.db\(", text) for _, text in folder.sources(".py", ".js", ".ts", ".mjs", ".cjs")
    )
    app.database = find_database(app.needs, settings, spoken_of=spoken_of)
    if app.database is not None and app.database.missing:
        fixed = ", ".join(app.database.missing)
        by_parts = f"{app.database.where} reads the address of its database by parts"
        app.unseen.append(f"{by_parts}, and its {fixed} by no variable: no pool")
    app.actors = find_actors(folder, app.needs)
    app.statics = find_statics(folder, app.framework, app.needs)
    app.trusting = [*in_command(app.start.line if app.start else ""), *in_code(folder)]
    return app


def begin(app: App, start: Start, folder: Folder) -> None:
    """Takes a start command, as it must be for the app to listen where PORT says."""
    app.language = app.language or "other"
    app.of_start.clear()
    app.port, app.port_where = None, ""
    app.start = start
    if start.release:
        by = f"{start.source}'s release (`{start.release}`) is run by platforms of Heroku's kind alone"
        app.of_start.append(f"{by}; elsewhere start the app by `{start.release} && …`")
    if start.others:
        names = ", ".join(start.others[:5]) + (" and more" if len(start.others) > 5 else "")
        app.of_start.append(f"{start.source} also starts {names}: these stay as they are, and go round the gateway")
    if start.worker:
        return
    line, whys = start.line, []
    if name := of_package(line):
        if own := own_of_package(folder, name):
            whys.append(f"in place of `{line}`, which passes no SIGTERM on")
            line = own
        else:
            app.of_start.append(
                f"`{line}` passes no SIGTERM on, so a stop cuts what the app does: start its own command"
            )
    if re.match(r"(?:npx |\S*/)?nodemon\b", line) and (own := watched(folder, line.removeprefix("npx ").split())):
        whys.append("without nodemon, which lives on where the app died")
        line = own
    elif "nodemon" in line:
        app.of_start.append(
            "nodemon starts the app anew at each change of a file and outlives its death: start its script"
        )
    app.public = public_port(folder, line, image=start.source == "Dockerfile")
    for step in (partial(gradio_port, folder, app.needs), with_port, partial(unbound, folder)):
        line, why = step(line)
        whys += [why] if why else []
    app.changed = "; ".join(whys)
    app.start = replace(start, line=line)
    if fixed := fixed_port(folder, line):
        port, app.port_where = fixed
        if port in OURS:
            app.of_start.append(f"{app.port_where} fixes port {port}, which the gateway takes: write $PORT there")
        else:
            app.port = port
            if start.source == "Dockerfile":
                app.of_start.append(
                    f"{app.port_where} fixes port {port}, so the gateway has another (PORT, else 10000): publish that"
                    " one, or write $PORT there and take `port` out of the policy"
                )
    script = script_of(line)
    text = folder.text(script) if script else ""
    if text and not re.search(r"^\s*exec\s", text, re.MULTILINE):
        app.of_start.append(
            f"{script} has no `exec` before its server, so a stop reaches the shell alone: write it there"
        )


def _is_python(folder: Folder) -> bool:
    names = ("requirements.txt", "pyproject.toml", "Pipfile", "manage.py", "setup.py", "main.py", "app.py", "wsgi.py")
    return any(folder.has(name) for name in names)


def _manager(folder: Folder) -> str:
    project = folder.toml("pyproject.toml")
    if folder.has("uv.lock") or part(project, "tool", "uv"):
        return "uv"
    if folder.has("poetry.lock") or part(project, "tool", "poetry") or "poetry" in str(part(project, "build-system")):
        return "poetry"
    return "pipenv" if folder.has("Pipfile") else "pip"


def dear(one: Seen) -> str:
    """Why a route costs more than the app's own work; empty where nothing of it is seen."""
    return "calls a model" if one.model else "calls another host" if one.outside else ""


def _health(app: App) -> tuple[str, str]:
    if app.start is not None and app.start.health:
        return app.start.health, app.start.source
    looks = {one.path.rstrip("/"): one for one in app.routes if "GET" in (one.methods or ("GET",)) and not one.varies}
    for path in HEALTHY:
        if path in looks:
            return looks[path].path, looks[path].where
    for path, one in looks.items():
        if re.search(r"/(health|healthz|healthcheck|health-check|ping)$", path):
            return one.path, one.where
    known = health_of(app.start.line) if app.start is not None else ""
    return known, "its own pages say so" if known else ""
