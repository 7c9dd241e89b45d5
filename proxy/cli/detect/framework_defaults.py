"""The start that a framework's own pages propose."""

from __future__ import annotations

import re
from collections.abc import Collection

from proxy.cli.detect.known_apps import product
from proxy.cli.detect.project_files import Folder
from proxy.cli.detect.start_command import Start

_RUN = {"poetry": "poetry run ", "uv": "uv run ", "pipenv": "pipenv run "}
_MADE = re.compile(r"^(\w+)\s*(?::[^=]+)?=\s*(FastAPI|Flask|Starlette|Quart|Litestar)\(", re.MULTILINE)
_MAKE_ROUTES = ("fastapi", "flask", "django", "starlette", "quart", "litestar")
_EVERYWHERE = "--host 0.0.0.0 --port $PORT"


def guess(folder: Folder, framework: str, manager: str, needs: Collection[str]) -> Start | None:
    """What would start a Python app of this framework; None where nothing in its code says it."""
    run = _RUN.get(manager, "")
    if framework not in _MAKE_ROUTES and (found := product(folder, run, needs)) is not None:
        return found
    if framework == "django":
        return _django(folder, run, needs)
    factory = None
    for name, text in folder.sources(".py"):
        if hit := _MADE.search(text):
            return _served(name, hit[1], hit[2] != "Flask", folder, run, needs)
        if factory is None and framework and re.search(r"^def create_app\(", text, re.MULTILINE):
            factory = name
    if factory is None:
        return None
    # The module that makes an app by its factory, for a server to import, is the better word on how.
    for name in ("wsgi.py", "asgi.py", "run.py", "app.py", "main.py"):
        if hit := re.search(r"^(\w+)\s*=\s*create_app\(", folder.text(name), re.MULTILINE):
            return _served(name, hit[1], framework != "flask", folder, run, needs)
    return _served(factory, "create_app", framework != "flask", folder, run, needs, factory=True)


def _served(
    name: str, made: str, asgi: bool, folder: Folder, run: str, needs: Collection[str], *, factory: bool = False
) -> Start:
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    inside = module.startswith("src.") and not folder.has("src/__init__.py")
    target = f"{module.removeprefix('src.') if inside else module}:{made}"
    if asgi and ("gunicorn" not in needs or "uvicorn" in needs):
        options = f"{' --app-dir src' if inside else ''}{' --factory' if factory else ''}"
        return Start(f"{run}uvicorn {target}{options} {_EVERYWHERE}", name)
    if "gunicorn" in needs:
        chdir = "--chdir src " if inside else ""
        return Start(f"{run}gunicorn {chdir}" + (f"'{target}()'" if factory else target), name)
    if "waitress" in needs and not inside:
        return Start(f"{run}waitress-serve --port $PORT {'--call ' if factory else ''}{target}", name)
    return Start(f"{run}flask --app {'src/' if inside else ''}{target} run {_EVERYWHERE}", name)


def _django(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    """Modules are named from the folder that manage.py is in."""
    manage = next((name for name, _ in folder.sources("manage.py")), "")
    base = manage.removesuffix("manage.py")
    for kind, server in (("wsgi", "gunicorn"), ("asgi", "uvicorn")):
        for name, _ in folder.sources(f"{kind}.py"):
            if server in needs and name.startswith(base):
                module = name.removeprefix(base).removesuffix(".py").replace("/", ".")
                below = base.rstrip("/")
                if server == "gunicorn":
                    return Start(f"{run}gunicorn {f'--chdir {below} ' if below else ''}{module}:application", name)
                aside = f" --app-dir {below}" if below else ""
                return Start(f"{run}uvicorn {module}:application{aside} {_EVERYWHERE}", name)
    return Start(f"{run}python {manage} runserver --noreload 0.0.0.0:$PORT", manage) if manage else None
