"""The app's health path: whether asking it every few seconds is cheap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from proxy.cli.detect.app import dear
from proxy.cli.detect.project_files import Folder
from proxy.cli.detect.routes import find_routes
from proxy.cli.output import Finding
from proxy.policy.schema.policy import Policy
from proxy.units import format_duration


def probes(policy: Policy, cwd: Path) -> Iterator[Finding]:
    """What the code says of the paths that probes ask; what they take is told by the gateway after the first ones."""
    ready, liveness = policy.app.ready.path, policy.app.liveness
    asked = {ready: "app.ready.path"} if ready is not None else {}
    often = "until it is ready"
    if liveness is not None and liveness.path is not None:
        asked[liveness.path] = "app.liveness.path"
        often = f"every {format_duration(liveness.interval)}"
    if not asked:
        return
    routes, _ = find_routes(Folder(cwd))
    for one in routes:
        if one.path in asked and (why := dear(one)) and "GET" in (one.methods or ("GET",)):
            text = f"{one.path} ({one.where}) {why}, and {asked[one.path]} asks it {often}"
            yield Finding("warning", "probes", text, "name a path that asks nobody else; without one the port is asked")
