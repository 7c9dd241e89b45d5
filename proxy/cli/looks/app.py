"""All that can be known of an app by reading its folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from proxy.cli.looks.folder import Folder, part
from proxy.cli.looks.routes import Seen, find_routes
from proxy.cli.looks.start import Start, find_start, manager_of_node, script_of, with_port
from proxy.cli.looks.trust import Trust, in_code, in_command

HEALTHY = ("/health", "/healthz", "/api/health", "/_health", "/readyz", "/livez", "/up", "/ping", "/status")
USERS = ("user", "user_id", "userid", "username", "uid", "account", "account_id", "customer_id", "member_id")
FRAMEWORKS = ("fastapi", "flask", "django", "starlette", "aiohttp", "quart", "litestar")
SERVERS = ("uvicorn", "gunicorn", "hypercorn", "waitress")
DRIVERS = ("asyncpg", "psycopg", "psycopg2", "psycopg2-binary", "pg8000", "pg", "postgres", "@prisma/client")
VENDORS = ("openai", "anthropic")
BEYOND = ("langchain-openai", "litellm", "llama-index", "pydantic-ai", "instructor")  # they bring the openai package
_HEADER = re.compile(r"['\"](X-(?:User|Account|Customer)(?:-Id|-Name)?)['\"]|\bx_user_id\b\s*:", re.IGNORECASE)
_PORT = re.compile(r"(?:uvicorn\.run|app\.run|\.listen|run_app)\([^)\n]*?(?:port\s*=\s*|\(\s*)?\b(\d{4,5})\b")


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
    port: int | None = None  # in its code, not to be told otherwise
    health: str = ""
    health_where: str = ""
    routes: list[Seen] = field(default_factory=list)
    vendors: tuple[str, ...] = ()
    database: bool = False
    header: str = ""  # that names its users
    trusting: list[Trust] = field(default_factory=list)

    @property
    def found(self) -> bool:
        return bool(self.language)


def look(folder: Folder) -> App:
    app = App()
    app.needs = _needs(folder)
    if folder.json("package.json") and not _is_python(folder):
        app.language, app.manager = "node", manager_of_node(folder)
        app.framework = next((name for name in ("express", "fastify", "koa", "next") if name in app.needs), "node")
    elif _is_python(folder):
        app.language, app.manager = "python", _manager(folder)
        app.framework = next((name for name in FRAMEWORKS if name in app.needs), "")
    if not app.framework and folder.has("manage.py"):
        app.framework = "django"
    start = find_start(folder) or (_guess(folder, app) if app.language == "python" else None)
    if start is not None:
        app.language = app.language or "other"
        line, app.changed = with_port(start.line)
        app.start = Start(line, start.source, start.build, start.health, start.folder)
        told = re.search(r"(?:--port[= ]|-p[= ]?|:)(\d{2,5})\b", start.line)
        app.public = int(told[1]) if told else None
        app.port = _hard_port(folder, script_of(folder, line))
    app.routes = find_routes(folder)
    app.health, app.health_where = _health(app, start)
    app.vendors = tuple(name for name in VENDORS if name in app.needs or f"@{name}-ai/sdk" in app.needs)
    if "openai" not in app.vendors and app.needs & set(BEYOND):
        app.vendors = ("openai", *app.vendors)
    sources = "\n".join(text for _, text in folder.sources(".py", ".js", ".ts", ".mjs", ".cjs"))
    app.database = bool(app.needs & set(DRIVERS)) and ("DATABASE_URL" in sources or "prisma" in str(app.needs))
    if found := _HEADER.search(sources):
        app.header = found[1] or "X-User-Id"
    app.trusting = [*in_command(app.start.line if app.start else ""), *in_code(folder)]
    return app


def _is_python(folder: Folder) -> bool:
    names = ("requirements.txt", "pyproject.toml", "Pipfile", "manage.py", "setup.py", "main.py", "app.py", "wsgi.py")
    return any(folder.has(name) for name in names)


def _manager(folder: Folder) -> str:
    project = folder.toml("pyproject.toml")
    if folder.has("uv.lock") or part(project, "tool", "uv"):
        return "uv"
    if folder.has("poetry.lock") or part(project, "tool", "poetry"):
        return "poetry"
    return "pipenv" if folder.has("Pipfile") else "pip"


def _needs(folder: Folder) -> frozenset[str]:
    found: set[str] = set()
    project = folder.toml("pyproject.toml")
    listed = part(project, "project").get("dependencies")
    lines = [str(one) for one in listed] if isinstance(listed, list) else []
    lines += list(part(project, "tool", "poetry", "dependencies"))
    lines += list(part(folder.toml("Pipfile"), "packages"))
    for name in ("requirements.txt", "requirements/base.txt", "requirements/prod.txt", "requirements.in"):
        lines += folder.text(name).splitlines()
    for line in lines:
        if match := re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line):
            found.add(re.sub(r"[._]", "-", match[1].lower()))
    package = folder.json("package.json")
    found |= {name.lower() for name in part(package, "dependencies")}
    return frozenset(found)


def _guess(folder: Folder, app: App) -> Start | None:
    """The start that a framework's own pages propose."""
    run = {"poetry": "poetry run ", "uv": "uv run ", "pipenv": "pipenv run "}.get(app.manager, "")
    made = re.compile(r"^(\w+)\s*(?::[^=]+)?=\s*(FastAPI|Flask|Starlette|Quart|Litestar)\(", re.MULTILINE)
    for name, text in folder.sources(".py"):
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".").removeprefix("src.")
        if hit := made.search(text):
            asgi = hit[2] not in ("Flask",)
            if asgi and not ("gunicorn" in app.needs and "uvicorn" not in app.needs):
                aside = " --app-dir src" if name.startswith("src/") else ""
                return Start(f"{run}uvicorn {module}:{hit[1]}{aside} --host 0.0.0.0 --port $PORT", name)
            if "gunicorn" in app.needs:
                return Start(f"{run}gunicorn {module}:{hit[1]}", name)
            return Start(f"{run}flask --app {module}:{hit[1]} run --host 0.0.0.0 --port $PORT", name)
        if re.search(r"^def create_app\(", text, re.MULTILINE) and app.framework == "flask":
            if "gunicorn" in app.needs:
                return Start(f"{run}gunicorn '{module}:create_app()'", name)
            return Start(f"{run}flask --app {module}:create_app run --host 0.0.0.0 --port $PORT", name)
    if app.framework == "django":
        return _django(folder, app, run)
    return None


def _django(folder: Folder, app: App, run: str) -> Start | None:
    for kind, server in (("asgi", "uvicorn"), ("wsgi", "gunicorn")):
        for name, _ in folder.sources(f"{kind}.py"):
            module = name.removesuffix(".py").replace("/", ".")
            if server in app.needs and server == "uvicorn" and "gunicorn" not in app.needs:
                return Start(f"{run}uvicorn {module}:application --host 0.0.0.0 --port $PORT", name)
            if server in app.needs and server == "gunicorn":
                return Start(f"{run}gunicorn {module}:application", name)
    if folder.has("manage.py"):
        return Start(f"{run}python manage.py runserver --noreload 0.0.0.0:$PORT", "manage.py")
    return None


def _hard_port(folder: Folder, line: str) -> int | None:
    """The port in the code of the script that the line runs, where nothing there asks for PORT."""
    if "PORT" in line:
        return None
    hit = re.search(r"\b(?:python[\d.]*|node|ts-node|tsx)\s+(?:-\S+\s+)*([\w./-]+\.(?:py|js|ts|mjs|cjs))\b", line)
    text = folder.text(hit[1]) if hit else ""
    if not text or re.search(r"\bPORT\b['\"\])]|env\.PORT\b", text):
        return None
    found = _PORT.search(text)
    return int(found[1]) if found and 1024 <= int(found[1]) <= 65535 else None


def _health(app: App, start: Start | None) -> tuple[str, str]:
    if start is not None and start.health:
        return start.health, start.source
    looks = {one.path.rstrip("/"): one for one in app.routes if "GET" in one.methods and not one.varies}
    for path in HEALTHY:
        if path in looks:
            return looks[path].path, looks[path].where
    for path, one in looks.items():
        if re.search(r"/(health|healthz|healthcheck|health-check|ping)$", path):
            return one.path, one.where
    return "", ""
