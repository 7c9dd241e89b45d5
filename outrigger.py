"""The console script `outrigger`: makes sure that the package `proxy` is this project's, and runs it.

Another package of that name (PyPI's proxy.py, an app's own folder on PYTHONPATH) could answer in its place. Ours stands
beside this file, and is looked for there first; if it was overwritten, one sentence says so.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Exit status 2 if another package answers as `proxy`, else what the command says."""
    here = str(Path(__file__).resolve().parent)
    # For this one import: its modules are found by the package itself, and the app's own order stays as it is.
    sys.path.insert(0, here)
    try:
        package = importlib.import_module("proxy")
    finally:
        sys.path.remove(here)
    # The name of an attribute that no other package has.
    if not hasattr(package, "__repository__"):
        found = getattr(package, "__file__", None) or "one without a file"
        sys.stderr.write(
            f"outrigger: another package `proxy` is installed here ({found}); install Outrigger into an environment of"
            " its own: python3 -m venv --clear .outrigger\n"
        )
        sys.exit(2)
    importlib.import_module("proxy.__main__").main()
