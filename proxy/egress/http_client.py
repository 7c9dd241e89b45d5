"""The HTTP client towards an upstream: its connections are kept, and its errors become AttemptFailed in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib import request

import aiohttp
from yarl import URL

from proxy.egress.headers import Fields
from proxy.errors import AttemptFailed

KEEPALIVE_SECONDS = 60.0  # seconds that an idle connection is kept; vendors close theirs after minutes
DNS_TTL = 30.0  # seconds that an address is believed: a vendor that moves is followed
MAX_FIELD_SIZE = 64 * 1024
_APP_FIELDS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # only the app states these

ParentProxy = Callable[[URL], URL | None]


class HttpClient:
    """One aiohttp session and its connections, to one upstream. `proxy` names the proxy on the way to a URL, if any."""

    def __init__(self, *, proxy: ParentProxy = lambda url: None) -> None:
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        connector = self._session.connector if self._session is not None else None
        return f"<Caller {len(connector._acquired) if connector is not None else 0} connections in use>"

    async def send(
        self,
        method: str,
        url: URL,
        fields: Fields,
        payload: aiohttp.BytesPayload | AsyncIterator[bytes] | None,
        *,
        connect: float,
        length: int | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request and read the head of its answer. `connect` is seconds for name, TCP and TLS together.

        Raises AttemptFailed. Redirects, cookies, compression and credentials are the app's business.
        """
        if length is not None:
            fields = [*fields, ("Content-Length", str(length))]
        # The call's deadline bounds the rest, over all attempts. From `ceil_threshold` on, by default 5 s, aiohttp
        # rounds time-outs up to whole seconds.
        timeout = aiohttp.ClientTimeout(total=None, connect=connect, ceil_threshold=3600.0)
        try:
            return await self._get_session().request(
                method,
                url,
                headers=fields,
                data=payload,
                timeout=timeout,
                allow_redirects=False,
                proxy=self._proxy(url),
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise attempt_failure(error) from error

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No limit of connections: `pace.concurrency` bounds calls, and refuses with a reason.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ttl_dns_cache=int(DNS_TTL)
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # it would look into ~/.netrc, and add what the app did not send
                skip_auto_headers=_APP_FIELDS,
                max_line_size=MAX_FIELD_SIZE,
                max_field_size=MAX_FIELD_SIZE,
            )
            # aiohttp would send idempotent requests again by itself, past our budget and our count.
            self._session._retry_connection = False
        return self._session


def attempt_failure(error: Exception) -> AttemptFailed:
    """The AttemptFailed for an exception of aiohttp's; nowhere else is one told from another."""
    # Subclasses come first. What is not known to have failed before anything was sent counts as sent: an upstream that
    # has the request may bill it.
    text = _error_text(error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return AttemptFailed("certificate", f"its certificate is not valid: {text}", sent=False)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return AttemptFailed("connect", f"its name could not be resolved: {text}", sent=False)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return AttemptFailed("connect", "connecting took too long", sent=False)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError | aiohttp.InvalidURL):
        return AttemptFailed("connect", text, sent=False)
    if isinstance(error, aiohttp.ClientPayloadError):
        return AttemptFailed("reset", "its answer broke off", sent=True)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return AttemptFailed("reset", "it closed the connection without an answer", sent=True)
    if isinstance(error, aiohttp.ClientResponseError):
        return AttemptFailed("reset", f"its answer is no sound HTTP: {error.message}", sent=True)
    return AttemptFailed("reset", text, sent=True)


def _error_text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


async def read_chunk(response: aiohttp.ClientResponse) -> bytes:
    """The next bytes of the answer's body, empty at its end. Raises AttemptFailed if it breaks off."""
    try:
        return await response.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        raise attempt_failure(error) from error


async def read_whole(response: aiohttp.ClientResponse, most: int) -> tuple[bytes, bool]:
    """The body, and whether that is all of it: past `most` bytes the rest is still to come."""
    parts: list[bytes] = []
    size = 0
    while data := await read_chunk(response):
        parts.append(data)
        size += len(data)
        if size > most:
            return b"".join(parts), False
    return b"".join(parts), True


def discard_response(response: Any) -> None:
    """Give up an answer: its connection is closed unless it was read to the end."""
    if isinstance(response, aiohttp.ClientResponse):
        if response.content.at_eof():
            response.release()
        else:
            response.close()


def find_parent_proxies(environ: Mapping[str, str]) -> ParentProxy:
    """Which proxy the gateway itself has to use for a URL, by HTTPS_PROXY, HTTP_PROXY and NO_PROXY of its environment.

    As in curl and Python, lower case wins, and HTTP_PROXY in upper case does not count if a CGI's REQUEST_METHOD is set
    (httpoxy).
    """
    found: dict[str, str] = {}
    for scheme in ("http", "https", "no"):
        value = environ.get(f"{scheme}_proxy") or environ.get(f"{scheme.upper()}_PROXY")
        if value and not (scheme == "http" and "REQUEST_METHOD" in environ and f"{scheme}_proxy" not in environ):
            found[scheme] = value

    def parent(url: URL) -> URL | None:
        value = found.get({"ws": "http", "wss": "https"}.get(url.scheme, url.scheme))
        host = url.host or ""
        # A parent proxy elsewhere would take loopback for its own machine.
        if value is None or host in ("localhost", "127.0.0.1", "::1") or _bypassed(host, found):
            return None
        return URL(value if "://" in value else f"http://{value}")

    return parent


def _bypassed(host: str, found: Mapping[str, str]) -> bool:
    bypassed: bool = request.proxy_bypass_environment(host, found)  # type: ignore[attr-defined]  # not in its stubs
    return bypassed
