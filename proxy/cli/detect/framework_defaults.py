"""The start command that a framework's own documentation proposes, for an app that has none written down."""

from __future__ import annotations

import re
from collections.abc import Collection

from proxy.cli.detect.known_apps import known_start_command
from proxy.cli.detect.project_files import Folder
from proxy.cli.detect.start_command import StartCommand

_RUN_PREFIXES = {"poetry": "poetry run ", "uv": "uv run ", "pipenv": "pipenv run "}
_APP_OBJECT = re.compile(r"^(\w+)\s*(?::[^=]+)?=\s*(FastAPI|Flask|Starlette|Quart|Litestar)\(", re.MULTILINE)
_WEB_FRAMEWORKS = ("fastapi", "flask", "django", "starlette", "quart", "litestar")
_HOST_AND_PORT = "--host 0.0.0.0 --port $PORT"


def guess_start_command(folder: Folder, framework: str, manager: str, packages: Collection[str]) -> StartCommand | None:
    """What would start a Python app of this framework; None if its code does not show what to serve."""
    run = _RUN_PREFIXES.get(manager, "")
    # An app written with a web framework is started by it, even with Gradio among its packages.
    if framework not in _WEB_FRAMEWORKS and (found := known_start_command(folder, run, packages)) is not None:
        return found
    if framework == "django":
        return _django_command(folder, run, packages)
    factory = None
    for name, text in folder.source_files(".py"):
        if hit := _APP_OBJECT.search(text):
            return _server_command(name, hit[1], hit[2] != "Flask", folder, run, packages)
        if factory is None and framework and re.search(r"^def create_app\(", text, re.MULTILINE):
            factory = name
    if factory is None:
        return None
    # The module that makes an app by its factory, for a server to import, is the better word on how.
    for name in ("wsgi.py", "asgi.py", "run.py", "app.py", "main.py"):
        if hit := re.search(r"^(\w+)\s*=\s*create_app\(", folder.read_text(name), re.MULTILINE):
            return _server_command(name, hit[1], framework != "flask", folder, run, packages)
    return _server_command(factory, "create_app", framework != "flask", folder, run, packages, factory=True)


def _server_command(
    name: str, made: str, asgi: bool, folder: Folder, run: str, packages: Collection[str], *, factory: bool = False
) -> StartCommand:
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    # A src layout: the folder is no package, so modules are named from inside it.
    inside = module.startswith("src.") and not folder.has_file("src/__init__.py")
    target = f"{module.removeprefix('src.') if inside else module}:{made}"
    # gunicorn alone serves no ASGI app, so uvicorn is taken if the app brings it.
    if asgi and ("gunicorn" not in packages or "uvicorn" in packages):
        options = f"{' --app-dir src' if inside else ''}{' --factory' if factory else ''}"
        return StartCommand(f"{run}uvicorn {target}{options} {_HOST_AND_PORT}", name)
    if "gunicorn" in packages:
        chdir = "--chdir src " if inside else ""
        return StartCommand(f"{run}gunicorn {chdir}" + (f"'{target}()'" if factory else target), name)
    if "waitress" in packages and not inside:
        return StartCommand(f"{run}waitress-serve --port $PORT {'--call ' if factory else ''}{target}", name)
    return StartCommand(f"{run}flask --app {'src/' if inside else ''}{target} run {_HOST_AND_PORT}", name)


def _django_command(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    """Modules are named from the folder that manage.py is in."""
    manage = next((name for name, _ in folder.source_files("manage.py")), "")
    base = manage.removesuffix("manage.py")
    for kind, server in (("wsgi", "gunicorn"), ("asgi", "uvicorn")):
        for name, _ in folder.source_files(f"{kind}.py"):
            if server in packages and name.startswith(base):
                module = name.removeprefix(base).removesuffix(".py").replace("/", ".")
                below = base.rstrip("/")
                if server == "gunicorn":
                    return StartCommand(
                        f"{run}gunicorn {f'--chdir {below} ' if below else ''}{module}:application", name
                    )
                aside = f" --app-dir {below}" if below else ""
                return StartCommand(f"{run}uvicorn {module}:application{aside} {_HOST_AND_PORT}", name)
    return StartCommand(f"{run}python {manage} runserver --noreload 0.0.0.0:$PORT", manage) if manage else None
