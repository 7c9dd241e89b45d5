"""Keeps a library from loading what it would take along only because that is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hide_modules(*names: str) -> Iterator[None]:
    """For the import of a library that tries these modules and does without them: in here none of them is to be found,
    unless it is loaded already. Afterwards all can be imported as ever.

    None in sys.modules is the documented way to say that there is no such module.
    """
    hidden = [name for name in names if name not in sys.modules]
    modules: dict[str, object] = sys.modules  # type: ignore[assignment]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
