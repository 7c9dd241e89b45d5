"""Runs in every Python process of the app, before the app: hooks are set up, then the app's own sitecustomize runs.

Kept to what any Python can read, since old ones come by as well: a tool of the system's that the app starts.
The folder leaves sys.path at once, so that the app's own is as it was; PYTHONPATH has it for Python children.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
_this = sys.modules.pop(__name__)

try:
    if sys.version_info >= (3, 8):
        import _outrigger  # type: ignore[import-not-found]

        _outrigger.start(os.environ)
except Exception:  # whatever it is, the app starts
    sys.modules.pop("_outrigger", None)

sys.path[:] = [entry for entry in sys.path if not entry or os.path.abspath(entry) != _here]
try:
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
except ImportError as error:
    if getattr(error, "name", "sitecustomize") != "sitecustomize":
        raise
finally:
    sys.modules.setdefault(__name__, _this)
