"""What looks at the gateway for others: the alerts, and the endpoints with the dashboard."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy import __version__
from proxy.admin.command_endpoint import Ctl
from proxy.admin.endpoints import Endpoints
from proxy.admin.origin_check import is_loopback
from proxy.observe.alerts.manager import Alerts
from proxy.observe.log import Log
from proxy.operations.alert_inputs import HouseFacts
from proxy.operations.commands import Actions
from proxy.operations.health import Overview
from proxy.operations.status import Picture

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
