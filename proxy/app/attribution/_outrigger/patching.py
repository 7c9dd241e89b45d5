"""Puts functions of ours in the place of functions of other people's modules; every hook is made with these.

Nothing here may hurt the app: what a hook does of its own is silent when it fails, and the original runs in any case.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def replace_function(owner: Any, name: str, make: Callable[[Any], Any], original: Any = None) -> None:
    """Put what `make` makes of a function in its place, once.

    `original` is given if `owner` only inherits the function. Raises KeyError if it is not there.
    """
    if original is None:
        original = owner.__dict__[name]
    # A module may be executed twice (reloaded, or imported under two names): its functions are wrapped once.
    if getattr(original, "_outrigger", False):
        return
    made = make(original)
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(made, attribute, getattr(original, attribute))
    made.__wrapped__ = original
    made._outrigger = True
    setattr(owner, name, made)


def run_before(mark: Any) -> Any:
    """For `replace_function`: `mark` gets the arguments, self first, and then the original runs."""

    def make(original: Any) -> Any:
        def send(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                mark(self, *args)
            except Exception:  # the call goes as it is
                pass
            return original(self, *args, **kwargs)

        return send

    return make


def run_before_async(mark: Any) -> Any:
    """As `run_before`, for a coroutine function; `mark` is a plain one."""

    def make(original: Any) -> Any:
        async def send(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                mark(self, *args)
            except Exception:
                pass
            return await original(self, *args, **kwargs)

        return send

    return make
