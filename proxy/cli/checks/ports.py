"""The addresses to listen on: free, or held by a gateway that runs with this policy already."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Mapping

from proxy.cli.ctl import seen
from proxy.cli.output import Finding
from proxy.errors import BindError
from proxy.ingress.client_address import TrustedPeers
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.server import Address
from proxy.process.listen_sockets import bind_socket

PATIENCE = 3.0  # seconds


async def ports(policy: Policy, environ: Mapping[str, str]) -> list[Finding]:
    listen = policy.listen
    version = await asyncio.to_thread(_gateway, seen(listen.admin))
    wanted = [(listen.public, "listen.public"), (listen.admin, "listen.admin"), (listen.egress, "listen.egress")]
    if policy.postgres.url:
        wanted.append((policy.postgres.listen, "postgres.listen"))
    found = [_port(address, key, version) for address, key in wanted if address is not None]
    if listen.public is not None:
        believed = TrustedPeers(listen.trusted_proxies, on_render=bool(environ.get("RENDER"))).sentence
        found.append(Finding("ok", "listen.trusted_proxies", believed.rstrip(".")))
    return found


def _port(address: Address, key: str, version: str | None) -> Finding:
    try:
        bind_socket(address, key).close()
    except BindError as error:
        if version is not None:
            return Finding("ok", key, f"{address} is held; a gateway (Outrigger {version}) runs with this policy")
        text, _, mend = str(error).partition("; ")
        return Finding("error", key, text, mend.rstrip("."))
    return Finding("ok", key, f"{address} is free")


def _gateway(address: Address) -> str | None:
    """The version of the gateway whose admin listener is there, or None."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=PATIENCE)
    try:
        connection.request("GET", "/healthz")
        found = json.loads(connection.getresponse().read(1024 * 1024))
        return str(found.get("version", "?")) if "status" in found else None
    except (OSError, http.client.HTTPException, ValueError, AttributeError, TypeError):
        return None
    finally:
        connection.close()
