"""Requests to the admin listener of a gateway that runs on this machine, as `ctl`, `suggest` and `doctor` make them."""

from __future__ import annotations

import http.client

from proxy.policy.values import Address

# A listener that is bound to every address is reached at the loopback address of its family.
LOOPBACK_OF_WILDCARD = {"0.0.0.0": "127.0.0.1", "::": "::1"}


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


def describe_failure(error: OSError | http.client.HTTPException | ValueError) -> str:
    """Why a request did not succeed, in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
