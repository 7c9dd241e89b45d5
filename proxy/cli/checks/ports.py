"""The addresses to listen on: free, or held by a gateway that runs with this policy already."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Mapping

from proxy.cli.admin_client import reachable_address, request
from proxy.cli.output import Finding
from proxy.errors import BindError
from proxy.ingress.client_address import TrustedPeers
from proxy.policy.schema import Policy
from proxy.policy.values import Address
from proxy.process.listen_sockets import bind_socket

REQUEST_TIMEOUT = 3.0  # seconds
MAX_ANSWER_BYTES = 1024 * 1024


async def check_ports(policy: Policy, environ: Mapping[str, str]) -> list[Finding]:
    listen = policy.listen
    # Asked first: an address that this policy's own gateway holds is no fault.
    version = await asyncio.to_thread(_find_gateway_version, reachable_address(listen.admin))
    wanted = [(listen.public, "listen.public"), (listen.admin, "listen.admin"), (listen.egress, "listen.egress")]
    if policy.postgres.url:
        wanted.append((policy.postgres.listen, "postgres.listen"))
    found = [_check_port(address, key, version) for address, key in wanted if address is not None]
    if listen.public is not None:
        believed = TrustedPeers(listen.trusted_proxies, on_render=bool(environ.get("RENDER"))).description
        found.append(Finding("ok", "listen.trusted_proxies", believed.rstrip(".")))
    return found


def _check_port(address: Address, key: str, version: str | None) -> Finding:
    try:
        # Binding is the only test that sees what the start will see: permissions, families, sockets in use.
        bind_socket(address, key).close()
    except BindError as error:
        if version is not None:
            return Finding("ok", key, f"{address} is held; a gateway (Outrigger {version}) runs with this policy")
        text, _, fix = str(error).partition("; ")
        return Finding("error", key, text, fix.rstrip("."))
    return Finding("ok", key, f"{address} is free")


def _find_gateway_version(address: Address) -> str | None:
    """The version of the gateway whose admin listener is there, or None."""
    try:
        _, body = request(address, "GET", "/healthz", timeout=REQUEST_TIMEOUT, limit=MAX_ANSWER_BYTES)
        found = json.loads(body)
        return str(found.get("version", "?")) if "status" in found else None
    # Anything may listen there, and answer with anything.
    except (OSError, http.client.HTTPException, ValueError, AttributeError, TypeError):
        return None
