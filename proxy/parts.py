"""What a running gateway is made of: the parts that operations look at and act on.

`build.py` makes it once; nobody receives the whole `Gateway`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.app import AppController
from proxy.egress.service import Egress
from proxy.ingress.service import IngressService
from proxy.ledger.ledger import Ledger
from proxy.ledger.user_marks import UserMarks
from proxy.observe.health import HealthCheckRegistry
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.process_sampler import ProcessSampler
from proxy.observe.recent_errors import RecentErrors
from proxy.observe.timeseries.history import MetricsHistory
from proxy.policy import schema
from proxy.store.memory import MemoryStore
from proxy.store.store import Store
from proxy.tasks.switch import TaskSwitch

if TYPE_CHECKING:
    from proxy.postgres.service import PostgresService  # it brings asyncpg, which only a database needs


@dataclass(slots=True)
class RunState:
    """What the whole gateway shares and what changes while it runs.

    `policy` is the one in force, `policy_since` when it came into force (Unix time). `stopping` is True from the first
    signal on.
    """

    policy: schema.Policy
    policy_since: float = field(default_factory=time.time)
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """One of each. `clock` is the event loop's (seconds, monotonic); `postgres` is None without `postgres.url`;
    `money_store` is `store` itself without `store.money`.
    """

    state: RunState
    clock: Callable[[], float]
    app: AppController
    ingress: IngressService
    egress: Egress
    postgres: PostgresService | None
    ledger: Ledger
    tasks: TaskSwitch
    user_marks: UserMarks
    store: MemoryStore | Store
    money_store: MemoryStore | Store
    log: EventLog
    metrics: Metrics
    recent_errors: RecentErrors
    health: HealthCheckRegistry
    process_sampler: ProcessSampler
    history: MetricsHistory

    @property
    def policy(self) -> schema.Policy:
        """The policy in force."""
        return self.state.policy
