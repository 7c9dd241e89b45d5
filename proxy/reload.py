"""Taking a newer policy while running: whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.errors import PolicyError
from proxy.observe.events import Emit
from proxy.observe.metrics import Metrics
from proxy.policy.load import PolicySource, load, read_file
from proxy.policy.policy import Policy
from proxy.policy.watch import Watcher, fixed_differences, keep_fixed


class Reloader:
    """`refused` is why the newest text is not in force, or None where it is."""

    def __init__(
        self,
        source: PolicySource,
        policy: Policy,
        environ: Mapping[str, str],
        *,
        emit: Emit,
        metrics: Metrics,
    ) -> None:
        self._source = source
        self._policy = policy
        self._environ = environ
        self._emit = emit
        self._metrics = metrics
        self.refused: str | None = None

    async def watch(self, take: Callable[[Policy], None]) -> None:
        """Reload whenever the policy's file was saved, for ever."""
        path = self._source.path
        if path is None or not path.is_file():  # a pipe is read once
            return
        async for _ in Watcher(path, self._source.stamp).changes():
            self.now(take)

    def now(self, take: Callable[[Policy], None]) -> None:
        """Read the policy again and hand it to `take`; a bad one is refused whole and said why."""
        try:
            source = self._source
            if source.path is not None:
                source = read_file(source.path, source.name)
            new = load(source, self._environ)
        except PolicyError as error:
            self.refused = str(error)
            for fault in error.faults:
                self._emit("policy.refused", str(fault), level="error", line=fault.line, key=fault.key)
            self._metrics.policy_reloads_total.child("refused").inc()
            return
        for key in fixed_differences(self._policy, new):
            text = f"{key} cannot change while running; the old value stays until a restart."
            self._emit("policy.kept", text, level="warning", key=key)
        new = keep_fixed(self._policy, new)
        for warning in new.warnings:
            if warning not in self._policy.warnings:
                self._emit("policy.warning", warning, level="warning")
        take(new)
        self._policy = new
        self.refused = None
        self._metrics.policy_reloads_total.child("ok").inc()
        self._emit("policy.reload", f"The policy {new.source} is in force.")
