"""Hooks on import: a module is hooked as soon as it has been executed, however often that happens."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from .shim import Shim

# By module: the file here that knows it, the function there, and the name that it is known by.
HOOKS = {
    "uvicorn.config": ("inbound", "uvicorn", "uvicorn"),
    "hypercorn.app_wrappers": ("inbound", "hypercorn", "hypercorn"),
    "gunicorn.workers.sync": ("inbound", "gunicorn_sync", "gunicorn"),
    "gunicorn.workers.gthread": ("inbound", "gunicorn_threads", "gunicorn"),
    "gunicorn.workers.base_async": ("inbound", "gunicorn_greenlets", "gunicorn"),
    "gunicorn.workers.gasgi": ("inbound", "gunicorn_asgi", "gunicorn"),
    "werkzeug.serving": ("inbound", "werkzeug", "werkzeug"),
    "wsgiref.handlers": ("inbound", "wsgiref", "wsgiref"),
    "waitress.task": ("inbound", "waitress", "waitress"),
    "gevent.pywsgi": ("inbound", "pywsgi", "gevent.pywsgi"),
    "eventlet.wsgi": ("inbound", "pywsgi", "eventlet.wsgi"),
    "aiohttp.web_app": ("inbound", "aiohttp", "aiohttp.web"),
    "threading": ("carry", "threads", "threads"),
    "concurrent.futures.thread": ("carry", "executors", "executors"),
    "multiprocessing.pool": ("carry", "pools", "thread pools"),
    "gevent.greenlet": ("carry", "gevent", "gevent"),
    "eventlet.greenthread": ("carry", "eventlet", "eventlet"),
    "http.client": ("outbound", "stdlib", "http.client"),
    "eventlet.green.http.client": ("outbound", "stdlib", "http.client"),
    "httpcore._sync.connection_pool": ("outbound", "httpcore", "httpx"),
    "httpcore._async.connection_pool": ("outbound", "httpcore", "httpx"),
    "httpcore2._sync.connection_pool": ("outbound", "httpcore", "httpx2"),
    "httpcore2._async.connection_pool": ("outbound", "httpcore", "httpx2"),
    "aiohttp.client_reqrep": ("outbound", "aiohttp", "aiohttp"),
    "websockets.client": ("outbound", "websockets", "websockets"),
    "asyncpg.connection": ("database", "asyncpg", "asyncpg"),
    "asyncpg.prepared_stmt": ("database", "asyncpg_prepared", "asyncpg"),
    "psycopg.cursor": ("database", "psycopg", "psycopg"),
    "psycopg._cursor_base": ("database", "psycopg", "psycopg"),
    "django.db.backends.utils": ("database", "django", "django.db"),
    "sqlalchemy.engine.default": ("database", "sqlalchemy", "sqlalchemy"),
}


def install(shim: Shim) -> None:
    for name in HOOKS:
        module = sys.modules.get(name)
        if module is not None:
            hook(shim, name, module)
    sys.meta_path.insert(0, Finder(shim))


def hook(shim: Shim, name: str, module: ModuleType) -> None:
    """Leaves a module alone that lacks what is looked for."""
    part, function, shown = HOOKS[name]
    if part == "database" and shim.database is None:
        return
    try:
        getattr(_part(part), function)(shim, module)
    except Exception:
        shim.missed(shown, name)
    else:
        shim.hooked(shown)


def _part(name: str) -> ModuleType:
    if name == "inbound":
        from . import inbound

        return inbound
    if name == "outbound":
        from . import outbound

        return outbound
    if name == "database":
        from . import database

        return database
    from . import carry

    return carry


class Finder:
    """Finds nothing itself: asks the others, and has a say once the module has been executed."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in HOOKS:
            return None
        for finder in list(sys.meta_path):
            find: Any = getattr(finder, "find_spec", None)
            if find is None or isinstance(finder, Finder):
                continue
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                self._follow(name, spec)
                return spec
        return None

    def _follow(self, name: str, spec: ModuleSpec) -> None:
        """The loader stays what it is, since tools look at its type; its exec_module is another for once."""
        shim = self._shim
        loader: Any = spec.loader
        try:
            execute: Callable[[ModuleType], None] = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module
                execute(module)
                hook(shim, name, module)

            loader.exec_module = exec_module
        except Exception:
            shim.missed(HOOKS[name][2], name)


def replace(owner: Any, name: str, make: Callable[[Any], Any], original: Any = None) -> None:
    """Put what `make` makes of a function in its place, once. Raises KeyError where it is not there."""
    if original is None:
        original = owner.__dict__[name]
    if getattr(original, "_outrigger", False):
        return
    made = make(original)
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(made, attribute, getattr(original, attribute))
    made.__wrapped__ = original
    made._outrigger = True
    setattr(owner, name, made)
