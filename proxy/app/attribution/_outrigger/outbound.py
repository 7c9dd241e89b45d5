"""Where a call goes out: one to the gateway carries the token of its request, any other is as it was.

Hooked where a request is written to one connection, below redirects, so that what is redirected elsewhere
never takes the token along, and no client shows the header to the app.
"""

from __future__ import annotations

from .finder import replace
from .shim import DEFAULT_PORTS, HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from .shim import Shim

LOWER = HEADER.lower().encode()
NAME = HEADER.encode()


def _text(value: Any) -> Any:
    return value.decode("ascii") if isinstance(value, bytes) else value


def before(mark: Any) -> Any:
    def make(original: Any) -> Any:
        def send(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                mark(self, *args)
            except Exception:  # the call goes as it is
                pass
            return original(self, *args, **kwargs)

        return send

    return make


def before_async(mark: Any) -> Any:
    def make(original: Any) -> Any:
        async def send(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                mark(self, *args)
            except Exception:
                pass
            return await original(self, *args, **kwargs)

        return send

    return make


def stdlib(shim: Shim, module: ModuleType) -> None:
    """http.client, and with it urllib, requests, urllib3 and botocore."""

    def mark(connection: Any, *_: Any) -> None:
        head = connection._buffer
        host, port, by = connection.host, connection.port, None
        if connection._tunnel_host:
            by, host, port = (host, port), connection._tunnel_host, connection._tunnel_port
        elif head[0].split(b" ")[1].startswith(b"http"):  # in absolute form: to a proxy
            by = (host, port)
            host, port = _absolute(head[0])
        token = shim.token_for(host, port, by)
        if token is not None and not any(line.lower().startswith(LOWER) for line in head):
            connection.putheader(HEADER, token)

    replace(module.HTTPConnection, "endheaders", before(mark))


def _absolute(line: bytes) -> tuple[str, int]:
    scheme, _, rest = line.split(b" ")[1].decode("ascii").partition("://")
    host, colon, port = rest.partition("/")[0].rpartition("@")[2].partition(":")
    return host, int(port) if colon else DEFAULT_PORTS[scheme]


def httpcore(shim: Shim, module: ModuleType) -> None:
    """httpx, and with it openai and anthropic."""

    def mark(pool: Any, request: Any) -> None:
        url = request.url
        port = url.port or DEFAULT_PORTS[_text(url.scheme)]
        token = shim.token_for(_text(url.host), port, _proxy(pool))
        if token is not None and not any(name.lower() == LOWER for name, _ in request.headers):
            request.headers = [*request.headers, (NAME, token.encode())]

    if hasattr(module, "AsyncConnectionPool"):
        replace(module.AsyncConnectionPool, "handle_async_request", before_async(mark))
    else:
        replace(module.ConnectionPool, "handle_request", before(mark))


def _proxy(pool: Any) -> tuple[str, int] | None:
    """httpcore 1.0.6 and later keep a Proxy, those before a URL."""
    proxy = getattr(pool, "_proxy", None)
    url = getattr(proxy, "url", None) or getattr(pool, "_proxy_url", None)
    return None if url is None else (_text(url.host), url.port or 0)


def aiohttp(shim: Shim, module: ModuleType) -> None:
    def mark(request: Any, *_: Any) -> None:
        proxy = request.proxy
        token = shim.token_for(request.url.host, request.url.port, None if proxy is None else (proxy.host, proxy.port))
        if token is not None and HEADER not in request.headers:
            request.headers[HEADER] = token

    name = "send" if "send" in module.ClientRequest.__dict__ else "_send"
    replace(module.ClientRequest, name, before_async(mark))


def websockets(shim: Shim, module: ModuleType) -> None:
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

    replace(module.ClientProtocol, "connect", make)
