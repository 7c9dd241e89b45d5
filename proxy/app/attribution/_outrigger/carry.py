"""From a request to the threads and greenlets that work for it; tasks of asyncio carry contexts by themselves.

A worker that outlives the work it was started for (an executor's, a pool's) starts with no token, and gets the
one of whoever handed in a piece of work while it does that piece. A timer has none: what comes later than its
request, on a clock of its own, has no owner.
"""

from __future__ import annotations

import sys
from contextvars import Context

from .finder import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from .shim import Shim


class Work:
    """A function that runs with the token of whoever handed it in."""

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


def _without(shim: Shim, original: Any) -> Any:
    """The same function, run as if no request were there."""

    def free(*args: Any, **kwargs: Any) -> Any:
        before = shim.current.get()
        shim.current.set(None)
        try:
            return original(*args, **kwargs)
        finally:
            shim.current.set(before)

    return free


def _handing(shim: Shim) -> Callable[[Any], Any]:
    """For methods whose first argument is a function that a worker is to run."""

    def make(original: Any) -> Any:
        free = _without(shim, original)

        def hand(self: Any, *args: Any, **kwargs: Any) -> Any:
            token = shim.current.get()
            if token is None or not args:
                return original(self, *args, **kwargs)
            return free(self, Work(shim, token, args[0]), *args[1:], **kwargs)

        return hand

    return make


def threads(shim: Shim, module: ModuleType) -> None:
    thread, timer = module.Thread, module.Timer
    bootstrap = thread.__dict__["_bootstrap_inner"]
    # Python 3.14: a thread runs in a context that it is given, or in a copy where that is switched on.
    inherits = getattr(sys.flags, "thread_inherit_context", False)

    def make_start(original: Any) -> Any:
        free = _without(shim, original)

        def start(self: Any, *args: Any, **kwargs: Any) -> Any:
            token = shim.current.get()
            if token is None:
                return original(self, *args, **kwargs)
            if isinstance(self, timer):
                return free(self, *args, **kwargs)
            if not hasattr(self, "_context"):
                self._outrigger = token
            elif self._context is None and not inherits:
                self._context = _only(shim, token)
            return original(self, *args, **kwargs)

        return start

    def make_bootstrap(original: Any) -> Any:
        def _bootstrap_inner(self: Any, *args: Any, **kwargs: Any) -> Any:
            token = self.__dict__.pop("_outrigger", None)
            if token is not None:
                shim.current.set(token)
            return original(self, *args, **kwargs)

        return _bootstrap_inner

    replace(thread, "start", make_start)
    replace(thread, "_bootstrap_inner", make_bootstrap, bootstrap)


def executors(shim: Shim, module: ModuleType) -> None:
    replace(module.ThreadPoolExecutor, "submit", _handing(shim))


def pools(shim: Shim, module: ModuleType) -> None:
    """ThreadPool alone: what goes to another process is pickled, and has no owner there."""
    pool, threads = module.Pool, module.ThreadPool
    methods = {name: pool.__dict__[name] for name in ("apply_async", "_map_async", "imap", "imap_unordered")}
    replace(threads, "__init__", lambda original: _without(shim, original))
    for name, method in methods.items():
        replace(threads, name, _handing(shim), method)


# ── greenlets ────────────────────────────────────────────────────────────────────────────────


def _only(shim: Shim, token: str) -> Context:
    """An empty context, which is what a greenlet starts with, but for the token."""
    context = Context()
    context.run(shim.current.set, token)
    return context


def _give(shim: Shim, greenlet: Any) -> None:
    token = shim.current.get()
    try:
        if token is not None and greenlet.gr_context is None:
            greenlet.gr_context = _only(shim, token)
    except Exception:
        return


def gevent(shim: Shim, module: ModuleType) -> None:
    module.Greenlet.add_spawn_callback(lambda greenlet: _give(shim, greenlet))


def eventlet(shim: Shim, module: ModuleType) -> None:
    def make_init(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            _give(shim, self)

        return __init__

    def make_spawn(original: Any) -> Any:
        def _spawn_n(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            _give(shim, result[1])
            return result

        return _spawn_n

    replace(module.GreenThread, "__init__", make_init)
    replace(module, "_spawn_n", make_spawn)
