"""The whole policy, with every default in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from proxy.errors import PolicyFault
from proxy.policy import value_types
from proxy.policy.schema.alerting import Alerts, InjectedFault, Sentry
from proxy.policy.schema.identity import Identity
from proxy.policy.schema.route import DEFAULT_ROUTE, Route
from proxy.policy.schema.schedule import Schedule
from proxy.policy.schema.server import Admin, App, Listen, Log, Metrics, Overload
from proxy.policy.schema.stores import Ledger, Postgres, Store, Tasks
from proxy.policy.schema.upstream import Egress, Upstream, default_upstreams
from proxy.policy.values import Label, empty_mapping, enclosing_keys


@dataclass(frozen=True, slots=True)
class Policy:
    """Two policies are equal if they say the same, wherever they came from.

    `source` is what faults call the text, `warnings` what an operator should know, `lines` the line of each key that is
    written.
    """

    version: Annotated[int, value_types.VERSION] = 1
    app: App = App()
    listen: Listen = Listen()
    admin: Admin = Admin()
    identity: Identity = Identity()
    routes: Annotated[tuple[Route, ...], "routes"] = (DEFAULT_ROUTE,)  # the last is always `default`
    overload: Overload = Overload()
    upstreams: Annotated[Mapping[Label, Upstream], "upstreams"] = field(default_factory=default_upstreams)
    egress: Egress = Egress()
    postgres: Postgres = Postgres()
    store: Store = Store()
    tasks: Tasks = Tasks()
    ledger: Ledger = Ledger()
    schedules: tuple[Schedule, ...] = ()
    alerts: Alerts = Alerts()
    log: Log = Log()
    metrics: Metrics = Metrics()
    sentry: Sentry = Sentry()
    faults: tuple[InjectedFault, ...] = ()
    source: str = field(default="(defaults)", compare=False, metadata={"key": False})
    warnings: tuple[str, ...] = field(default=(), compare=False, metadata={"key": False})
    lines: Mapping[str, int] = field(default_factory=empty_mapping, compare=False, repr=False, metadata={"key": False})

    def fault_at(self, key: str, problem: str, fix: str) -> PolicyFault:
        """A fault at the line of a key, or of the nearest key that encloses it."""
        line = next((self.lines[name] for name in enclosing_keys(key) if name in self.lines), 1)
        return PolicyFault(self.source, line, key, problem, fix)
