"""What looks at the gateway for others: the alerts, and the endpoints with the dashboard."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy import __version__
from proxy.admin.command_endpoint import CommandEndpoint
from proxy.admin.endpoints import AdminEndpoints
from proxy.observe.alerts.manager import AlertManager
from proxy.observe.log import EventLog
from proxy.operations.alert_inputs import GatewayAlertInputs
from proxy.operations.commands import GatewayCommands
from proxy.operations.health import HealthReport
from proxy.operations.status import StatusReport
from proxy.policy.urls import is_loopback

if TYPE_CHECKING:
    from proxy.gateway import Gateway


def make_alerts(gateway: Gateway, log: EventLog, environ: Mapping[str, str]) -> AlertManager:
    facts = GatewayAlertInputs(gateway)
    gateway.runtime.on_sample(facts.sample_pool_holders)
    return AlertManager(
        gateway.policy.alerts,
        facts,
        clock=gateway.clock,
        emit=log.emit,
        metrics=gateway.metrics,
        app=environ.get("RENDER_SERVICE_NAME") or socket.gethostname(),
        version=__version__,
    )


def make_endpoints(gateway: Gateway, view: HealthReport, log: EventLog) -> AdminEndpoints:
    picture = StatusReport(gateway)
    gateway.runtime.on_sample(picture.sample_cpu)
    return AdminEndpoints(
        health=gateway.health,
        metrics=gateway.metrics,
        authenticator=gateway.gate,
        check_readiness=view.check_readiness,
        build_status=picture.build_status,
        build_history=picture.build_history,
        clock=gateway.clock,
        version=__version__,
        loopback=is_loopback(gateway.policy.listen.admin.host),
        commands=CommandEndpoint(GatewayCommands(gateway), log.emit),
    )
