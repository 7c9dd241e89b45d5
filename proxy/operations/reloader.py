"""Taking a newer policy while running: whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from proxy.errors import Fault, PolicyError
from proxy.observe.emit import EmitEvent
from proxy.observe.metrics import Metrics
from proxy.operations.pending_changes import PendingChange
from proxy.operations.policy_trial import RESTORE_HINT, describe_error
from proxy.policy.loading import PolicySource, load, read_file
from proxy.policy.schema.policy import Policy
from proxy.policy.watch import Watcher, fixed_differences, keep_fixed

Take = Callable[[Policy], Sequence[str]]  # the keys that wait for the app's next start


class Reloader:
    """`refused` is why the newest text is not in force, or None where it is; `waiting` is what of the policy is not,
    and until when."""

    def __init__(
        self,
        source: PolicySource,
        policy: Policy,
        environ: Mapping[str, str],
        *,
        emit: EmitEvent,
        metrics: Metrics,
        ours: bool = True,
    ) -> None:
        """`ours`: the app is started here, so its environment can be another at its next start."""
        self._source = source
        self._policy = policy
        self._environ = environ
        self._emit = emit
        self._metrics = metrics
        self._starts_app = ours
        self.refused: str | None = None
        self.pending: tuple[PendingChange, ...] = ()

    async def watch(self, take: Take) -> None:
        """Reload whenever the policy's file was saved, for ever."""
        path = self._source.path
        if path is None or not path.is_file():  # a pipe is read once
            return
        async for _ in Watcher(path, self._source.stamp).changes():
            self.reload(take)

    def reload(self, take: Take) -> None:
        """Read the policy again and hand it to `take`. One that cannot be taken, for whatever reason, is refused whole
        and said why; the next is looked at as if nothing had been."""
        try:
            self._reload(take)
        except PolicyError as error:
            self._refuse(error.faults)
        except Exception as error:  # the outermost seam: a fault of ours must not end who watches the file
            problem = f"it cannot be taken ({describe_error(error)})"
            self._refuse([Fault(self._source.name, 1, "policy", problem, RESTORE_HINT)])

    def app_started(self) -> None:
        """What waited for the app is in force."""
        over = [one.key for one in self.pending if one.until == "app restart"]
        self.pending = tuple(one for one in self.pending if one.until != "app restart")
        if over:
            text = f"With the app's start {', '.join(over)} of the policy {self._policy.source} is in force, too."
            self._emit("policy.reload", text, keys=over)

    def _reload(self, take: Take) -> None:
        source = self._source
        if source.path is not None:
            source = read_file(source.path, source.name)
        new = load(source, self._environ)
        kept = fixed_differences(self._policy, new)
        new = keep_fixed(self._policy, new)
        late = take(new)
        waiting = [PendingChange(key, "gateway restart") for key in kept]
        waiting += [PendingChange(key, "app restart" if self._starts_app else "gateway restart") for key in late]
        for one in waiting:
            self._emit("policy.kept", str(one), level="warning", key=one.key, until=one.until)
        for warning in new.warnings:
            if warning not in self._policy.warnings:
                self._emit("policy.warning", warning, level="warning")
        self._policy = new
        self.pending = tuple(waiting)
        self.refused = None
        self._metrics.policy_reloads_total.labels("ok").inc()
        self._emit("policy.reload", self.describe())

    def describe(self) -> str:
        """What is in force, in a sentence."""
        parts = []
        for until in ("app restart", "gateway restart"):
            keys = [one.key for one in self.pending if one.until == until]
            parts += [f"{', '.join(keys)} (until the next {until})"] if keys else []
        but = f", but for {' and '.join(parts)}" if parts else ""
        return f"The policy {self._policy.source} is in force{but}."

    def _refuse(self, faults: Sequence[Fault]) -> None:
        self.refused = "\n".join(map(str, faults))
        for fault in faults:
            self._emit("policy.refused", str(fault), level="error", line=fault.line, key=fault.key)
        self._metrics.policy_reloads_total.labels("refused").inc()
