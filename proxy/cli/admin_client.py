"""Requests to the admin listener of a gateway that runs on this machine, as `ctl`, `suggest` and `doctor` make them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

from proxy.errors import OutriggerError
from proxy.policy.schema import Policy
from proxy.policy.values import Address

STATUS_TIMEOUT = 10.0  # seconds

# A listener that is bound to every address is reached at the loopback address of its family.
LOOPBACK_OF_WILDCARD = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class GatewaySilent(OutriggerError):
    """No gateway answers, or none that would tell."""


def reachable_address(address: Address) -> Address:
    """Where one of the gateway's listeners is reached from this machine."""
    host = address.host.strip("[]")
    return Address(LOOPBACK_OF_WILDCARD.get(host, host), address.port)


def request(
    address: Address, method: str, path: str, *, token: str = "", timeout: float, limit: int | None = None
) -> tuple[int, bytes]:
    """The status and the body, of which `limit` bytes are read at most.

    Raises OSError if nobody answers within `timeout` seconds, and http.client.HTTPException if the answer is not HTTP.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout)
    try:
        # As bytes: http.client encodes a text as Latin-1, which not every token fits.
        connection.request(method, path, headers={"Authorization": f"Bearer {token}".encode()} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read(limit)
    finally:
        connection.close()


def fetch_status(policy: Policy, query: str = "") -> Mapping[str, Any]:
    """What the running gateway shows at /status, by the policy that it runs with.

    Raises GatewaySilent, whose text is a sentence that says what to do, if nobody answers or only to another token.
    """
    address = reachable_address(policy.listen.admin)
    try:
        status, body = request(address, "GET", f"/status{query}", token=policy.admin.token, timeout=STATUS_TIMEOUT)
        # Anything may listen on that port, and answer with anything.
        found = json.loads(body) if status == 200 else None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise GatewaySilent(
            f"no gateway answers on {address} ({describe_failure(error)}); start it, or show the policy it runs with by"
            " --policy (the address is listen.admin)"
        ) from None
    if status in (401, 403):
        raise GatewaySilent(
            f"the gateway on {address} shows nothing without its admin token; set OUTRIGGER_ADMIN_TOKEN to the"
            " gateway's own, or show its policy by --policy (admin.token)"
        )
    if not isinstance(found, dict) or (not query and "health" not in found):
        raise GatewaySilent(f"{address} answered {status}, and not as a gateway does; see listen.admin")
    return found


def describe_failure(error: OSError | http.client.HTTPException | ValueError) -> str:
    """Why a request did not succeed, in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
