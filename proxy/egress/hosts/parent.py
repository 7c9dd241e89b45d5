"""A proxy that the gateway itself has to use: HTTPS_PROXY, HTTP_PROXY and NO_PROXY of its own environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib import request

from yarl import URL

Proxy = Callable[[URL], URL | None]


def parent_proxies(environ: Mapping[str, str]) -> Proxy:
    """Which proxy is on the way to a URL. As curl and Python do, lower case wins, and HTTP_PROXY in upper
    case does not count where a CGI's REQUEST_METHOD is set (httpoxy)."""
    found: dict[str, str] = {}
    for scheme in ("http", "https", "no"):
        value = environ.get(f"{scheme}_proxy") or environ.get(f"{scheme.upper()}_PROXY")
        if value and not (scheme == "http" and "REQUEST_METHOD" in environ and f"{scheme}_proxy" not in environ):
            found[scheme] = value

    def parent(url: URL) -> URL | None:
        value = found.get({"ws": "http", "wss": "https"}.get(url.scheme, url.scheme))
        host = url.host or ""
        if value is None or host in ("localhost", "127.0.0.1", "::1") or _bypassed(host, found):
            return None
        return URL(value if "://" in value else f"http://{value}")

    return parent


def _bypassed(host: str, found: Mapping[str, str]) -> bool:
    bypassed: bool = request.proxy_bypass_environment(host, found)  # type: ignore[attr-defined]  # not in its stubs
    return bypassed
