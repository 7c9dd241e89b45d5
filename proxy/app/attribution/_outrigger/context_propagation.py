"""Context propagation: a request's token reaches the threads and greenlets that work for it. asyncio's tasks carry
their context by themselves.

A worker thread of an executor or a pool outlives the request that started it: it starts with no token, and has the
token of whoever submitted a piece of work only while it does that piece. A timer has none: what runs later, on a
clock of its own, has no owner.
"""

from __future__ import annotations

import sys
from contextvars import Context

from .patching import replace_function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from .shim import Shim


class BoundFunction:
    """A function bound to a token: it runs with the token of whoever submitted it."""

    __slots__ = ("__weakref__", "_current", "_function", "_token")

    def __init__(self, shim: Shim, token: str, function: Any) -> None:
        self._current = shim.current
        self._token = token
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = self._current.get()
        self._current.set(self._token)
        try:
            return self._function(*args, **kwargs)
        finally:
            self._current.set(before)


def _without_token(shim: Shim, original: Any) -> Any:
    """The same function, but it runs outside of any request."""

    def free(*args: Any, **kwargs: Any) -> Any:
        before = shim.current.get()
        shim.current.set(None)
        try:
            return original(*args, **kwargs)
        finally:
            shim.current.set(before)

    return free


def _bind_first_argument(shim: Shim) -> Callable[[Any], Any]:
    """For methods whose first argument is a function that a worker will run."""

    def make(original: Any) -> Any:
        # The original may start a worker thread, which must not inherit the token of this request.
        free = _without_token(shim, original)

        def submit(self: Any, *args: Any, **kwargs: Any) -> Any:
            token = shim.current.get()
            if token is None or not args:
                return original(self, *args, **kwargs)
            return free(self, BoundFunction(shim, token, args[0]), *args[1:], **kwargs)

        return submit

    return make


def hook_threads(shim: Shim, module: ModuleType) -> None:
    thread, timer = module.Thread, module.Timer
    bootstrap = thread.__dict__["_bootstrap_inner"]
    # Python 3.14: a thread runs in a context that it is given, or in a copy where that is switched on.
    inherits = getattr(sys.flags, "thread_inherit_context", False)

    def make_start(original: Any) -> Any:
        free = _without_token(shim, original)

        def start(self: Any, *args: Any, **kwargs: Any) -> Any:
            token = shim.current.get()
            if token is None:
                return original(self, *args, **kwargs)
            if isinstance(self, timer):
                return free(self, *args, **kwargs)
            # Before Python 3.14 a thread has no context of its own choice: the token is set when it begins to run.
            if not hasattr(self, "_context"):
                self._outrigger = token
            elif self._context is None and not inherits:
                self._context = _context_with_token(shim, token)
            return original(self, *args, **kwargs)

        return start

    def make_bootstrap(original: Any) -> Any:
        def _bootstrap_inner(self: Any, *args: Any, **kwargs: Any) -> Any:
            token = self.__dict__.pop("_outrigger", None)
            if token is not None:
                shim.current.set(token)
            return original(self, *args, **kwargs)

        return _bootstrap_inner

    replace_function(thread, "start", make_start)
    replace_function(thread, "_bootstrap_inner", make_bootstrap, bootstrap)


def hook_executors(shim: Shim, module: ModuleType) -> None:
    replace_function(module.ThreadPoolExecutor, "submit", _bind_first_argument(shim))


def hook_pools(shim: Shim, module: ModuleType) -> None:
    """Only ThreadPool: work for another process is pickled, and has no owner there."""
    pool, threads = module.Pool, module.ThreadPool
    methods = {name: pool.__dict__[name] for name in ("apply_async", "_map_async", "imap", "imap_unordered")}
    replace_function(threads, "__init__", lambda original: _without_token(shim, original))
    for name, method in methods.items():
        replace_function(threads, name, _bind_first_argument(shim), method)


# ── greenlets ────────────────────────────────────────────────────────────────────────────────


def _context_with_token(shim: Shim, token: str) -> Context:
    """The empty context that a greenlet starts with, plus the token."""
    context = Context()
    context.run(shim.current.set, token)
    return context


def _set_greenlet_token(shim: Shim, greenlet: Any) -> None:
    token = shim.current.get()
    try:
        if token is not None and greenlet.gr_context is None:
            greenlet.gr_context = _context_with_token(shim, token)
    except Exception:
        return


def hook_gevent(shim: Shim, module: ModuleType) -> None:
    module.Greenlet.add_spawn_callback(lambda greenlet: _set_greenlet_token(shim, greenlet))


def hook_eventlet(shim: Shim, module: ModuleType) -> None:
    def make_init(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            _set_greenlet_token(shim, self)

        return __init__

    def make_spawn(original: Any) -> Any:
        def _spawn_n(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            _set_greenlet_token(shim, result[1])
            return result

        return _spawn_n

    replace_function(module.GreenThread, "__init__", make_init)
    replace_function(module, "_spawn_n", make_spawn)
