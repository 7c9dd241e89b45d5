"""Hooks of HTTP clients: a call to the gateway carries the token of its request, any other call is unchanged.

The hook sits at the function that writes a request to one connection, below redirects: a redirect to another host
never takes the token along, and no client shows the header to the app.
"""

from __future__ import annotations

from .patching import replace_function, run_before, run_before_async
from .shim import DEFAULT_PORTS, HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from .shim import Shim

HEADER_LOWER = HEADER.lower().encode()
HEADER_NAME = HEADER.encode()


def _as_text(value: Any) -> Any:
    return value.decode("ascii") if isinstance(value, bytes) else value


def hook_stdlib(shim: Shim, module: ModuleType) -> None:
    """`http.client`, and with it urllib, requests, urllib3 and botocore."""

    def mark_call(connection: Any, *_: Any) -> None:
        head = connection._buffer
        host, port, proxy = connection.host, connection.port, None
        # Through a CONNECT tunnel the connection's own address is the proxy's.
        if connection._tunnel_host:
            proxy, host, port = (host, port), connection._tunnel_host, connection._tunnel_port
        elif head[0].split(b" ")[1].startswith(b"http"):  # in absolute form: to a proxy
            proxy = (host, port)
            host, port = _split_absolute_target(head[0])
        token = shim.token_for(host, port, proxy)
        if token is not None and not any(line.lower().startswith(HEADER_LOWER) for line in head):
            connection.putheader(HEADER, token)

    replace_function(module.HTTPConnection, "endheaders", run_before(mark_call))


def _split_absolute_target(line: bytes) -> tuple[str, int]:
    scheme, _, rest = line.split(b" ")[1].decode("ascii").partition("://")
    host, colon, port = rest.partition("/")[0].rpartition("@")[2].partition(":")
    return host, int(port) if colon else DEFAULT_PORTS[scheme]


def hook_httpcore(shim: Shim, module: ModuleType) -> None:
    """httpx, and with it openai and anthropic."""

    def mark_call(pool: Any, request: Any) -> None:
        url = request.url
        port = url.port or DEFAULT_PORTS[_as_text(url.scheme)]
        token = shim.token_for(_as_text(url.host), port, _proxy_address(pool))
        if token is not None and not any(name.lower() == HEADER_LOWER for name, _ in request.headers):
            request.headers = [*request.headers, (HEADER_NAME, token.encode())]

    if hasattr(module, "AsyncConnectionPool"):
        replace_function(module.AsyncConnectionPool, "handle_async_request", run_before_async(mark_call))
    else:
        replace_function(module.ConnectionPool, "handle_request", run_before(mark_call))


def _proxy_address(pool: Any) -> tuple[str, int] | None:
    """httpcore 1.0.6 and later keep a Proxy, those before a URL."""
    proxy = getattr(pool, "_proxy", None)
    url = getattr(proxy, "url", None) or getattr(pool, "_proxy_url", None)
    return None if url is None else (_as_text(url.host), url.port or 0)


def hook_aiohttp(shim: Shim, module: ModuleType) -> None:
    def mark_call(request: Any, *_: Any) -> None:
        proxy = request.proxy
        token = shim.token_for(request.url.host, request.url.port, None if proxy is None else (proxy.host, proxy.port))
        if token is not None and HEADER not in request.headers:
            request.headers[HEADER] = token

    name = "send" if "send" in module.ClientRequest.__dict__ else "_send"
    replace_function(module.ClientRequest, name, run_before_async(mark_call))


def hook_websockets(shim: Shim, module: ModuleType) -> None:
    def make(original: Any) -> Any:
        def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
            request = original(self, *args, **kwargs)
            try:
                uri = getattr(self, "uri", None) or self.wsuri
                token = shim.token_for(uri.host, uri.port)
                if token is not None and HEADER not in request.headers:
                    request.headers[HEADER] = token
            except Exception:
                pass
            return request

        return connect

    replace_function(module.ClientProtocol, "connect", make)
