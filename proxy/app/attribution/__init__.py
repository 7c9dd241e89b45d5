"""Attribution: whether the app's calls say which request they belong to, and how the code for it gets into the app.

The folder is put on the app's PYTHONPATH. It has nothing that an app could import by mistake: `sitecustomize`, which
Python runs by itself, and the package `_outrigger`. These two run inside the app, under its Python; this file does not.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from proxy.policy.schema import Identity, Policy

FOLDER = Path(__file__).parent
# Programs that are surely not Python: there the app has to pass on the header itself.
NON_PYTHON_PROGRAMS = frozenset(
    (
        "node", "nodejs", "npm", "npx", "pnpm", "yarn", "bun", "deno", "ruby", "bundle", "rails", "rackup", "puma",
        "java", "php", "php-fpm", "dotnet", "go", "perl",
    )
)  # fmt: skip


def is_enabled(policy: Policy) -> bool:
    """Whether attribution is on. `auto` is on if something depends on whose a call is: users are identified by more
    than their address, a user's spending is capped, or the calls of an abandoned request are cancelled."""
    if policy.app.attribution != "auto":
        return policy.app.attribution == "on"
    return (
        policy.identity != Identity()
        or any(upstream.cap.per_user for upstream in policy.upstreams.values())
        or any(route.when_abandoned == "cancel" for route in policy.routes)
    )


def is_python(program: str) -> bool:
    """False if the program is known to be something else; what a shell runs may be anything."""
    return PurePath(program).name not in NON_PYTHON_PROGRAMS


def search_path(before: str | None) -> str:
    """The app's PYTHONPATH with our folder in front. An empty one counts as none, as it does for Python itself."""
    return f"{FOLDER}{os.pathsep}{before}" if before else str(FOLDER)
