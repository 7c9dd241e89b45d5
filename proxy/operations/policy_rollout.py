"""Putting a newer policy in force in every part, or in none.

A rollout has two phases. First each part prepares: it makes everything that may fail and returns what puts it in
force. Only if all of them could prepare, all are put in force, one after the other and without waiting in between, so
that no request sees half of a policy.

    prepare ──every part succeeded──▶ commit ──▶ in force
       │                                │
       └─one raised─▶ nothing changed   └─one raised (a fault of ours)─▶ the old policy is committed again
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from proxy.operations.pending_changes import hold_back_changes
from proxy.operations.policy_trial import try_policy
from proxy.parts import RunState
from proxy.policy import schema

Commit = Callable[[], None]
Prepare = Callable[[schema.Policy], Commit]  # makes everything that may fail, and returns what puts it in force


class PolicyRollout:
    """Applies newer policies to the running parts.

    `preparations` has each part's Prepare by the part's name. Three policies are told apart: the one in force
    (`state.policy`); the newest, of which the running app cannot follow everything until its next start; and
    `app_policy`, under which the running app was started.
    """

    def __init__(self, state: RunState, environ: Mapping[str, str], preparations: Mapping[str, Prepare]) -> None:
        self._state = state
        self._environ = environ
        self._newest = state.policy
        self.app_policy = state.policy
        self.preparations = dict(preparations)

    def apply(self, policy: schema.Policy) -> Sequence[str]:
        """Put a newer policy in force whole, or nothing of it: counts, queues and connections go on. Returns the keys
        that wait for the app's next start. Raises PolicyError, and whatever a part raises that cannot be made of it.
        """
        # The trial names every fault with its line; a part's own preparation would stop at the first.
        try_policy(policy, self._environ)
        # The running app may not be able to follow: what it is served by can differ from the newest policy.
        served, waiting = hold_back_changes(self.app_policy, self._state.policy, policy, self._environ)
        self._commit(served)
        # Only after the commit: a policy that was refused must not come into force with the next start of the app.
        self._newest = policy
        return waiting

    def apply_to_starting_app(self) -> bool:
        """The app is about to start: put in force what waited for that. Whether there was anything."""
        # If nothing was held back, the policy in force is the newest one itself.
        has_waited = self._newest is not self._state.policy
        if has_waited:
            self._commit(self._newest)
        self.app_policy = self._state.policy
        return has_waited

    def _commit(self, policy: schema.Policy) -> None:
        commits = [prepare(policy) for prepare in self.preparations.values()]
        # The way back is prepared before anything changes: afterwards it might fail as well.
        rollbacks = [prepare(self._state.policy) for prepare in self.preparations.values()]
        try:
            for commit in commits:
                commit()
        # BaseException: not even an interrupt may leave half of a policy in force.
        except BaseException:
            for rollback in rollbacks:
                rollback()
            raise
        self._state.policy, self._state.policy_since = policy, time.time()
