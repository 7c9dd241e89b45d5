"""Inside the app: carries a request's token from where the request comes in to where its calls go out.

Standard library alone, Python 3.8 and later. Nothing is imported early that an app may want to patch first
(gevent, eventlet: threading, socket, ssl): a module is hooked when the app itself imports it. Each hook stands
alone; a module that does not look as expected is left as it is, and named in the report to the gateway.
"""

from __future__ import annotations

import os

from .import_hooks import install_hooks
from .shim import Shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def start(environ: Mapping[str, str]) -> Shim | None:
    """Hook what is imported from now on, and what has been; None without a gateway to carry tokens to."""
    egress = environ.get("OUTRIGGER_EGRESS")
    if not egress:
        return None
    shim = Shim(egress, environ.get("OUTRIGGER_METERED"), environ.get("OUTRIGGER_POSTGRES"))
    install_hooks(shim)
    pipes = environ.get("OUTRIGGER_LINES")
    if pipes:
        from .output_marking import mark_output

        mark_output(shim, pipes)
    # A forked child is a worker as a rule, which serves everybody: it does not belong to the request during
    # which a pool happened to start it.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: shim.current.set(None))
    return shim
