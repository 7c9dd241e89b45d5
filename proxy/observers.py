"""What looks at the gateway for others: the alerts, and the endpoints with the dashboard."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy import __version__
from proxy.admin.command_endpoint import CommandEndpoint
from proxy.admin.endpoints import AdminEndpoints
from proxy.observe.alerts.manager import Alerts
from proxy.observe.log import Log
from proxy.operations.alert_inputs import HouseFacts
from proxy.operations.commands import GatewayCommands
from proxy.operations.health import Overview
from proxy.operations.status import Picture
from proxy.policy.urls import is_loopback

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


def make_endpoints(gateway: Gateway, view: Overview, log: Log) -> AdminEndpoints:
    picture = Picture(gateway)
    gateway.runtime.on_sample(picture.sample)
    return AdminEndpoints(
        health=gateway.health,
        metrics=gateway.metrics,
        authenticator=gateway.gate,
        check_readiness=view.readiness,
        build_status=picture.status,
        build_history=picture.history,
        clock=gateway.clock,
        version=__version__,
        loopback=is_loopback(gateway.policy.listen.admin.host),
        commands=CommandEndpoint(GatewayCommands(gateway), log.emit),
    )
