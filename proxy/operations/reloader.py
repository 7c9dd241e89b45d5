"""Reloads: a saved policy is read again and rolled out; one that cannot be is refused whole, with every reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxy.errors import PolicyError, PolicyFault
from proxy.observe.emit import EmitEvent
from proxy.observe.metrics import Metrics
from proxy.operations.pending_changes import PendingChange, WaitsFor
from proxy.operations.policy_rollout import PolicyRollout
from proxy.operations.policy_trial import RESTORE_HINT, describe_error
from proxy.policy import schema
from proxy.policy.loading import PolicySource, load_policy, read_file
from proxy.policy.watch import FileWatcher, find_fixed_changes, keep_fixed_keys


class Reloader:
    """Reads the policy again when its file is saved, on SIGHUP and by command, and rolls it out.

    `refused` is why the newest text is not in force, or None if it is. `pending` lists which keys of the policy are
    not in force yet, and until when. `starts_app` says that the app is started by this process, so that its
    environment can change at its next start.
    """

    def __init__(
        self,
        source: PolicySource,
        policy: schema.Policy,
        environ: Mapping[str, str],
        rollout: PolicyRollout,
        *,
        emit: EmitEvent,
        metrics: Metrics,
        starts_app: bool = True,
    ) -> None:
        self._source = source
        self._policy = policy
        self._environ = environ
        self._rollout = rollout
        self._emit = emit
        self._metrics = metrics
        self.starts_app = starts_app
        self.refused: str | None = None
        self.pending: tuple[PendingChange, ...] = ()

    @property
    def app_policy(self) -> schema.Policy:
        """The policy that the running app was started under."""
        return self._rollout.app_policy

    async def watch(self) -> None:
        """Reload whenever the policy's file was saved, for ever."""
        path = self._source.path
        if path is None or not path.is_file():  # a pipe can be read only once
            return
        async for _ in FileWatcher(path, self._source.stamp).changes():
            self.reload()

    def reload(self) -> None:
        """Read the policy again and roll it out. One that cannot be put in force is refused whole and the log says
        why; nothing of it is kept for the next reload."""
        try:
            self._reload()
        except PolicyError as error:
            self._refuse(error.faults)
        except Exception as error:  # the outermost seam: a fault of ours must not end the watching of the file
            problem = f"it cannot be taken ({describe_error(error)})"
            # The policy may be right and we wrong; to an operator it looks the same, and the old policy serves on.
            self._refuse([PolicyFault(self._source.name, 1, "policy", problem, RESTORE_HINT)])

    def handle_app_start(self) -> None:
        """The app is about to start: what waited for that comes into force with it."""
        if not self._rollout.apply_to_starting_app():
            return
        applied = [change.key for change in self.pending if change.until == "app restart"]
        self.pending = tuple(change for change in self.pending if change.until != "app restart")
        if applied:
            text = f"With the app's start {', '.join(applied)} of the policy {self._policy.source} is in force, too."
            self._emit("policy.reload", text, keys=applied)

    def describe(self) -> str:
        """What is in force, in a sentence."""
        pending = []
        for until in ("app restart", "gateway restart"):
            keys = [change.key for change in self.pending if change.until == until]
            pending += [f"{', '.join(keys)} (until the next {until})"] if keys else []
        but = f", but for {' and '.join(pending)}" if pending else ""
        return f"The policy {self._policy.source} is in force{but}."

    def _reload(self) -> None:
        source = self._source
        # A policy from $OUTRIGGER_POLICY_TEXT has no file, but the variables in it are looked up again.
        if source.path is not None:
            source = read_file(source.path, source.name)
        new = load_policy(source, self._environ)
        fixed = find_fixed_changes(self._policy, new)
        # From here on `new` is what can be in force; the keys that cannot change were noted before.
        new = keep_fixed_keys(self._policy, new)
        waiting = self._rollout.apply(new)
        # An app that something else started gets another environment only together with the gateway.
        until: WaitsFor = "app restart" if self.starts_app else "gateway restart"
        pending = [PendingChange(key, "gateway restart") for key in fixed]
        pending += [PendingChange(key, until) for key in waiting]
        for change in pending:
            self._emit("policy.kept", str(change), level="warning", key=change.key, until=change.until)
        # A warning of the policy that was in force before is in the log already.
        for warning in new.warnings:
            if warning not in self._policy.warnings:
                self._emit("policy.warning", warning, level="warning")
        self._policy = new
        self.pending = tuple(pending)
        # All of it succeeded: only now is the last refusal over.
        self.refused = None
        self._metrics.policy_reloads_total.labels("ok").inc()
        self._emit("policy.reload", self.describe())

    def _refuse(self, faults: Sequence[PolicyFault]) -> None:
        self.refused = "\n".join(map(str, faults))
        for fault in faults:
            self._emit("policy.refused", str(fault), level="error", line=fault.line, key=fault.key)
        self._metrics.policy_reloads_total.labels("refused").inc()
