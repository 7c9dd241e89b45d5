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

# By module: the file here that knows it, the function there, and the name that it is reported by.
HOOKS = {
    "uvicorn.config": ("server_hooks", "hook_uvicorn", "uvicorn"),
    "hypercorn.app_wrappers": ("server_hooks", "hook_hypercorn", "hypercorn"),
    "gunicorn.workers.sync": ("server_hooks", "hook_gunicorn_sync", "gunicorn"),
    "gunicorn.workers.gthread": ("server_hooks", "hook_gunicorn_threads", "gunicorn"),
    "gunicorn.workers.base_async": ("server_hooks", "hook_gunicorn_greenlets", "gunicorn"),
    "gunicorn.workers.gasgi": ("server_hooks", "hook_gunicorn_asgi", "gunicorn"),
    "werkzeug.serving": ("server_hooks", "hook_werkzeug", "werkzeug"),
    "wsgiref.handlers": ("server_hooks", "hook_wsgiref", "wsgiref"),
    "waitress.task": ("server_hooks", "hook_waitress", "waitress"),
    "gevent.pywsgi": ("server_hooks", "hook_pywsgi", "gevent.pywsgi"),
    "eventlet.wsgi": ("server_hooks", "hook_pywsgi", "eventlet.wsgi"),
    "aiohttp.web_app": ("server_hooks", "hook_aiohttp", "aiohttp.web"),
    "threading": ("context_propagation", "hook_threads", "threads"),
    "concurrent.futures.thread": ("context_propagation", "hook_executors", "executors"),
    "multiprocessing.pool": ("context_propagation", "hook_pools", "thread pools"),
    "gevent.greenlet": ("context_propagation", "hook_gevent", "gevent"),
    "eventlet.greenthread": ("context_propagation", "hook_eventlet", "eventlet"),
    "http.client": ("client_hooks", "hook_stdlib", "http.client"),
    "eventlet.green.http.client": ("client_hooks", "hook_stdlib", "http.client"),
    "httpcore._sync.connection_pool": ("client_hooks", "hook_httpcore", "httpx"),
    "httpcore._async.connection_pool": ("client_hooks", "hook_httpcore", "httpx"),
    "httpcore2._sync.connection_pool": ("client_hooks", "hook_httpcore", "httpx2"),
    "httpcore2._async.connection_pool": ("client_hooks", "hook_httpcore", "httpx2"),
    "aiohttp.client_reqrep": ("client_hooks", "hook_aiohttp", "aiohttp"),
    "websockets.client": ("client_hooks", "hook_websockets", "websockets"),
    "asyncpg.connection": ("database_hooks", "hook_asyncpg", "asyncpg"),
    "asyncpg.prepared_stmt": ("database_hooks", "hook_asyncpg_prepared", "asyncpg"),
    "psycopg.cursor": ("database_hooks", "hook_psycopg", "psycopg"),
    "psycopg._cursor_base": ("database_hooks", "hook_psycopg", "psycopg"),
    "django.db.backends.utils": ("database_hooks", "hook_django", "django.db"),
    "sqlalchemy.engine.default": ("database_hooks", "hook_sqlalchemy", "sqlalchemy"),
}


def install_hooks(shim: Shim) -> None:
    """Hook the modules that are there already, and from now on those that are imported."""
    for name in HOOKS:
        module = sys.modules.get(name)
        if module is not None:
            hook_module(shim, name, module)
    sys.meta_path.insert(0, HookFinder(shim))


def hook_module(shim: Shim, name: str, module: ModuleType) -> None:
    """A module that lacks what a hook looks for is left alone, and reported as missed."""
    file, function, shown = HOOKS[name]
    if file == "database_hooks" and shim.database is None:
        return
    try:
        getattr(_hook_file(file), function)(shim, module)
    except Exception:
        shim.add_missed(shown, name)
    else:
        shim.add_hooked(shown)


def _hook_file(name: str) -> ModuleType:
    # Loaded only when a module of the app needs it: an app without a database never pays for its hooks.
    if name == "server_hooks":
        from . import server_hooks

        return server_hooks
    if name == "client_hooks":
        from . import client_hooks

        return client_hooks
    if name == "database_hooks":
        from . import database_hooks

        return database_hooks
    from . import context_propagation

    return context_propagation


class HookFinder:
    """A finder of `sys.meta_path` (PEP 302) that finds nothing itself: it asks the others, and hooks the module
    once that has been executed."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in HOOKS:
            return None
        for finder in list(sys.meta_path):
            find: Any = getattr(finder, "find_spec", None)
            if find is None or isinstance(finder, HookFinder):
                continue
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                self._hook_after_execution(name, spec)
                return spec
        return None

    def _hook_after_execution(self, name: str, spec: ModuleSpec) -> None:
        # The loader stays what it is, since tools look at its type; its exec_module is replaced for one execution.
        shim = self._shim
        loader: Any = spec.loader
        try:
            execute: Callable[[ModuleType], None] = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module
                execute(module)
                hook_module(shim, name, module)

            loader.exec_module = exec_module
        except Exception:
            shim.add_missed(HOOKS[name][2], name)
