"""What looks at the house for others: the alerts, and the endpoints with the dashboard."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy import __version__
from proxy.actions import Actions
from proxy.admin.ctl import Ctl
from proxy.admin.endpoints import Endpoints
from proxy.admin.guard import is_loopback
from proxy.facts import HouseFacts
from proxy.observe.alerts.board import Alerts
from proxy.observe.log import Log
from proxy.overview import Overview
from proxy.picture import Picture

if TYPE_CHECKING:
    from proxy.gateway import Gateway


def make_alerts(gateway: Gateway, log: Log, environ: Mapping[str, str]) -> Alerts:
    facts = HouseFacts(gateway)
    gateway.runtime.on_sample(facts.tick)
    return Alerts(
        gateway.policy.alerts,
        facts,
        clock=gateway.clock,
        emit=log.emit,
        metrics=gateway.metrics,
        app=environ.get("RENDER_SERVICE_NAME") or socket.gethostname(),
        version=__version__,
    )


def make_endpoints(gateway: Gateway, view: Overview, log: Log) -> Endpoints:
    picture = Picture(gateway)
    gateway.runtime.on_sample(picture.sample)
    return Endpoints(
        health=gateway.health,
        metrics=gateway.metrics,
        gate=gateway.gate,
        ready=view.readiness,
        status=picture.status,
        history=picture.history,
        clock=gateway.clock,
        version=__version__,
        loopback=is_loopback(gateway.policy.listen.admin.host),
        ctl=Ctl(Actions(gateway), log.emit),
    )
