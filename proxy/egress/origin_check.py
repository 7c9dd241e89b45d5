"""Whose calls are served at all: the app's, never a page's that a browser shows.

A browser on the same machine can be sent to a loopback address by any page, or rebound to it by a name of the page's
own. What gives it away is the Host that it asks for, its Origin, and Fetch metadata (W3C), which no page can write.
A proxy's requests (CONNECT, absolute form) are asked none of this: no page can make any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import lru_cache

from aiohttp import web

from proxy.egress import error_response
from proxy.errors import CallRefused
from proxy.policy.urls import host_of, is_loopback

# Names that nobody can own in the public DNS, so that no page can rebind one: without a dot (RFC 7085; a container's,
# /etc/hosts), and below .internal (reserved by ICANN; host.docker.internal).
_PRIVATE = re.compile(r"[a-z0-9_-]+|[a-z0-9_.-]+\.internal")


class OriginCheck:
    """Checks the Host, Origin and Fetch metadata of a call.

    `upstream_hosts` gives the hosts of the upstreams: an app may state one as its Host, and no stranger can have that
    name lead here. `is_request_token` says whether a token belongs to a request that came in: a call with such a token
    is the app's, even if it carries along the fields that a page sent to the app.
    """

    def __init__(self, upstream_hosts: Callable[[], Collection[str]], is_request_token: Callable[[str], bool]) -> None:
        self._upstream_hosts = upstream_hosts
        self._is_request_token = is_request_token

    def check(self, request: web.BaseRequest) -> CallRefused | None:
        """Why this call is refused, if it is."""
        fields = request.headers
        host = fields.get("Host")
        if host is not None and not _is_local(host) and not self._is_expected_host(host, request):
            return error_response.misdirected_call()
        origin, site = fields.get("Origin"), fields.get("Sec-Fetch-Site")
        if origin is None and site is None:
            return None
        if site in ("same-origin", "same-site", "none"):
            return None  # of a page of the app's own, whose fields the app passed on
        if origin is None and site != "cross-site":
            return None
        if origin is not None and _is_local(origin.partition("://")[2]):
            return None
        token = fields.get("X-Outrigger-Request")
        return None if token is not None and self._is_request_token(token) else error_response.cross_site_call()

    def _is_expected_host(self, host: str, request: web.BaseRequest) -> bool:
        name = host_of(host)
        if _PRIVATE.fullmatch(name) or name in self._upstream_hosts():
            return True
        # If the policy opened another address than loopback, whoever comes in there may call it by any name.
        at = request.transport.get_extra_info("sockname") if request.transport is not None else None
        return at is not None and not is_loopback(str(at[0]))


@lru_cache(maxsize=64)
def _is_local(host: str) -> bool:
    return is_loopback(host_of(host))
