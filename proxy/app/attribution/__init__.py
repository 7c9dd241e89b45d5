"""Whether the app's calls are to say whose they are, and how the app comes by what says it.

The folder has nothing that an app could import by mistake: `sitecustomize`, which Python runs by itself, and
the package `_outrigger`. What is in them runs inside the app, under its Python; this file does not.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from proxy.policy.schema.identity import Identity
from proxy.policy.schema.policy import Policy

FOLDER = Path(__file__).parent
# Programs that are surely no Python: there the app has to pass on one header by itself.
OTHERS = {"node", "nodejs", "npm", "npx", "pnpm", "yarn", "bun", "deno", "ruby", "bundle", "rails", "rackup", "puma"}
OTHERS |= {"java", "php", "php-fpm", "dotnet", "go", "perl"}


def wanted(policy: Policy) -> bool:
    """`auto` is on where somebody needs to know whose a call is: a user is more than an address, a user's
    spending is capped, or a request's calls end with it."""
    if policy.app.attribution != "auto":
        return policy.app.attribution == "on"
    return (
        policy.identity != Identity()
        or any(upstream.cap.per_user for upstream in policy.upstreams.values())
        or any(route.when_abandoned == "cancel" for route in policy.routes)
    )


def is_python(program: str) -> bool:
    """False where the program is known to be something else; a shell's may be anything."""
    return PurePath(program).name not in OTHERS


def search_path(before: str | None) -> str:
    """The app's PYTHONPATH, with our folder before it. An empty one counts as none, as for Python itself."""
    return f"{FOLDER}{os.pathsep}{before}" if before else str(FOLDER)
