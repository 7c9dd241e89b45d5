"""The whole policy: what an operator says, with every default in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from proxy.policy import kinds
from proxy.policy.identity import Identity
from proxy.policy.model import Admin, App, Listen, Log, Metrics, Overload
from proxy.policy.operators import Alerts, InjectedFault, Sentry
from proxy.policy.outgoing import Egress, Upstream, default_upstreams
from proxy.policy.route import DEFAULT_ROUTE, Route
from proxy.policy.services import Ledger, Postgres, Store
from proxy.policy.values import Label


@dataclass(frozen=True, slots=True)
class Policy:
    """Two policies are equal when they say the same, wherever they came from."""

    version: Annotated[int, kinds.VERSION] = 1
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
    ledger: Ledger = Ledger()
    alerts: Alerts = Alerts()
    log: Log = Log()
    metrics: Metrics = Metrics()
    sentry: Sentry = Sentry()
    faults: tuple[InjectedFault, ...] = ()
    source: str = field(default="(defaults)", compare=False, metadata={"key": False})
    warnings: tuple[str, ...] = field(default=(), compare=False, metadata={"key": False})
