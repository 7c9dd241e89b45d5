"""Where a request comes in: its token is the current one from its first line of the app's code to its last.

Servers are hooked rather than frameworks, at the function that brackets a whole response, so that answers
which stream are inside; after it the next request on the same thread or greenlet starts with nothing.
"""

from __future__ import annotations

import sys

from .finder import replace
from .shim import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from .shim import Shim

LOWER = HEADER.lower().encode()
UPPER = HEADER.upper()
ENVIRON = "HTTP_" + HEADER.upper().replace("-", "_")


def _bracket(shim: Shim, find: Callable[..., Any]) -> Callable[[Any], Any]:
    """`find` gets what the function gets, and returns the request's token."""

    def make(original: Any) -> Any:
        def handle(*args: Any, **kwargs: Any) -> Any:
            before = shim.enter(find, *args)
            try:
                return original(*args, **kwargs)
            finally:
                shim.current.set(before)

        return handle

    return make


def _bracket_async(shim: Shim, find: Callable[..., Any]) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        async def handle(*args: Any, **kwargs: Any) -> Any:
            before = shim.enter(find, *args)
            try:
                return await original(*args, **kwargs)
            finally:
                shim.current.set(before)

        return handle

    return make


# ── ASGI ─────────────────────────────────────────────────────────────────────────────────────


def _of_scope(scope: Any, *_: Any) -> Any:
    for name, value in scope.get("headers", ()):
        if name == LOWER:
            return value
    return None


def _application(shim: Shim, inner: Any) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        before = shim.enter(_of_scope, scope)
        try:
            await inner(scope, receive, send)
        finally:
            shim.current.set(before)

    return application


def uvicorn(shim: Shim, module: ModuleType) -> None:
    def make(original: Any) -> Any:
        def load(self: Any) -> Any:
            result = original(self)
            self.loaded_app = _application(shim, self.loaded_app)
            return result

        return load

    replace(module.Config, "load", make)


def hypercorn(shim: Shim, module: ModuleType) -> None:
    make = _bracket_async(shim, lambda self, scope, *_: _of_scope(scope))
    for wrapper in (module.ASGIWrapper, module.WSGIWrapper):
        replace(wrapper, "__call__", make)


def gunicorn_asgi(shim: Shim, module: ModuleType) -> None:
    def make(original: Any) -> Any:
        def load_wsgi(self: Any) -> Any:
            result = original(self)
            self.asgi = _application(shim, self.asgi)
            return result

        return load_wsgi

    replace(module.ASGIWorker, "load_wsgi", make)


def aiohttp(shim: Shim, module: ModuleType) -> None:
    replace(module.Application, "_handle", _bracket_async(shim, lambda self, request: request.headers.get(HEADER)))


# ── WSGI ─────────────────────────────────────────────────────────────────────────────────────


def _of_gunicorn(request: Any) -> Any:
    for name, value in request.headers:
        if name == UPPER:
            return value
    return None


def _apart(token: Any) -> Any:
    """None where greenlets share one context (greenlet before 1.0): no owner is better than a wrong one."""
    greenlet = sys.modules.get("greenlet")
    return token if getattr(greenlet, "GREENLET_USE_CONTEXT_VARS", False) else None


def gunicorn_sync(shim: Shim, module: ModuleType) -> None:
    make = _bracket(shim, lambda self, listener, request, *_: _of_gunicorn(request))
    replace(module.SyncWorker, "handle_request", make)


def gunicorn_threads(shim: Shim, module: ModuleType) -> None:
    replace(module.ThreadWorker, "handle_request", _bracket(shim, lambda self, request, *_: _of_gunicorn(request)))


def gunicorn_greenlets(shim: Shim, module: ModuleType) -> None:
    make = _bracket(shim, lambda self, listener, request, *_: _apart(_of_gunicorn(request)))
    replace(module.AsyncWorker, "handle_request", make)


def werkzeug(shim: Shim, module: ModuleType) -> None:
    replace(module.WSGIRequestHandler, "run_wsgi", _bracket(shim, lambda self: self.headers.get(HEADER)))


def wsgiref(shim: Shim, module: ModuleType) -> None:
    """Django's runserver as well, whose handler inherits it."""
    replace(module.BaseHandler, "run", _bracket(shim, lambda self, _: self.base_env.get(ENVIRON)))


def waitress(shim: Shim, module: ModuleType) -> None:
    replace(module.WSGITask, "execute", _bracket(shim, lambda self: self.request.headers.get(ENVIRON[5:])))


def pywsgi(shim: Shim, module: ModuleType) -> None:
    """gevent's own server and eventlet's, which name it alike."""
    handler = getattr(module, "WSGIHandler", None) or module.HttpProtocol
    replace(handler, "handle_one_response", _bracket(shim, lambda self: _apart(self.environ.get(ENVIRON))))
