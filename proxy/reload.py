"""Taking a newer policy while running: whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from proxy.errors import PolicyError
from proxy.observe.events import Emit
from proxy.observe.metrics import Metrics
from proxy.policy.load import PolicySource, load, read_file
from proxy.policy.policy import Policy
from proxy.policy.watch import Watcher, fixed_differences, keep_fixed

Take = Callable[[Policy], None]


class Reloader:
    """`refused` is why the newest text is not in force, or None where it is."""

    def __init__(
        self, source: PolicySource, policy: Policy, environ: Mapping[str, str], *, emit: Emit, metrics: Metrics
    ) -> None:
        self._source = source
        self._policy = policy
        self._environ = environ
        self._emit = emit
        self._metrics = metrics
        self.refused: str | None = None
