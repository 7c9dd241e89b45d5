"""Hooks of servers: a request's token is the current one from the first line of the app's code to its last.

Servers are hooked rather than frameworks, at the function that runs a whole request, so that responses which stream
are inside it. After it, the next request on the same thread or greenlet starts without a token.
"""

from __future__ import annotations

import sys

from .patching import replace_function
from .shim import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from .shim import Shim

HEADER_LOWER = HEADER.lower().encode()
HEADER_UPPER = HEADER.upper()
HEADER_ENVIRON = "HTTP_" + HEADER.upper().replace("-", "_")


def _enter_request(shim: Shim, find: Callable[..., Any]) -> Callable[[Any], Any]:
    """`find` gets what the function gets, and returns the request's token."""

    def make(original: Any) -> Any:
        def handle(*args: Any, **kwargs: Any) -> Any:
            before = shim.enter_request(find, *args)
            try:
                return original(*args, **kwargs)
            finally:
                shim.current.set(before)

        return handle

    return make


def _enter_request_async(shim: Shim, find: Callable[..., Any]) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        async def handle(*args: Any, **kwargs: Any) -> Any:
            before = shim.enter_request(find, *args)
            try:
                return await original(*args, **kwargs)
            finally:
                shim.current.set(before)

        return handle

    return make


# ── ASGI ─────────────────────────────────────────────────────────────────────────────────────


def _token_of_scope(scope: Any, *_: Any) -> Any:
    for name, value in scope.get("headers", ()):
        if name == HEADER_LOWER:
            return value
    return None


def _wrap_application(shim: Shim, inner: Any) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        before = shim.enter_request(_token_of_scope, scope)
        try:
            await inner(scope, receive, send)
        finally:
            shim.current.set(before)

    return application


def hook_uvicorn(shim: Shim, module: ModuleType) -> None:
    def make(original: Any) -> Any:
        def load(self: Any) -> Any:
            result = original(self)
            self.loaded_app = _wrap_application(shim, self.loaded_app)
            return result

        return load

    replace_function(module.Config, "load", make)


def hook_hypercorn(shim: Shim, module: ModuleType) -> None:
    make = _enter_request_async(shim, lambda self, scope, *_: _token_of_scope(scope))
    for wrapper in (module.ASGIWrapper, module.WSGIWrapper):
        replace_function(wrapper, "__call__", make)


def hook_gunicorn_asgi(shim: Shim, module: ModuleType) -> None:
    def make(original: Any) -> Any:
        def load_wsgi(self: Any) -> Any:
            result = original(self)
            self.asgi = _wrap_application(shim, self.asgi)
            return result

        return load_wsgi

    replace_function(module.ASGIWorker, "load_wsgi", make)


def hook_aiohttp(shim: Shim, module: ModuleType) -> None:
    replace_function(
        module.Application, "_handle", _enter_request_async(shim, lambda self, request: request.headers.get(HEADER))
    )


# ── WSGI ─────────────────────────────────────────────────────────────────────────────────────


def _token_of_gunicorn(request: Any) -> Any:
    for name, value in request.headers:
        if name == HEADER_UPPER:
            return value
    return None


def _unless_shared(token: Any) -> Any:
    """None if greenlets share one context (greenlet before 1.0): no owner is better than a wrong one."""
    greenlet = sys.modules.get("greenlet")
    return token if getattr(greenlet, "GREENLET_USE_CONTEXT_VARS", False) else None


def hook_gunicorn_sync(shim: Shim, module: ModuleType) -> None:
    make = _enter_request(shim, lambda self, listener, request, *_: _token_of_gunicorn(request))
    replace_function(module.SyncWorker, "handle_request", make)


def hook_gunicorn_threads(shim: Shim, module: ModuleType) -> None:
    replace_function(
        module.ThreadWorker,
        "handle_request",
        _enter_request(shim, lambda self, request, *_: _token_of_gunicorn(request)),
    )


def hook_gunicorn_greenlets(shim: Shim, module: ModuleType) -> None:
    make = _enter_request(shim, lambda self, listener, request, *_: _unless_shared(_token_of_gunicorn(request)))
    replace_function(module.AsyncWorker, "handle_request", make)


def hook_werkzeug(shim: Shim, module: ModuleType) -> None:
    replace_function(module.WSGIRequestHandler, "run_wsgi", _enter_request(shim, lambda self: self.headers.get(HEADER)))


def hook_wsgiref(shim: Shim, module: ModuleType) -> None:
    """Also Django's runserver, whose handler inherits from this one."""
    replace_function(module.BaseHandler, "run", _enter_request(shim, lambda self, _: self.base_env.get(HEADER_ENVIRON)))


def hook_waitress(shim: Shim, module: ModuleType) -> None:
    replace_function(
        module.WSGITask, "execute", _enter_request(shim, lambda self: self.request.headers.get(HEADER_ENVIRON[5:]))
    )


def hook_pywsgi(shim: Shim, module: ModuleType) -> None:
    """The servers of gevent and eventlet, which give the method the same name."""
    handler = getattr(module, "WSGIHandler", None) or module.HttpProtocol
    replace_function(
        handler,
        "handle_one_response",
        _enter_request(shim, lambda self: _unless_shared(self.environ.get(HEADER_ENVIRON))),
    )
