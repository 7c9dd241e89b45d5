"""Limits on open streams and WebSockets by user, if the policy sets them (`routes[].streams`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from proxy.errors import Refusal
from proxy.http.upstream_connection import UpstreamConnection
from proxy.ingress.exchange import Exchange
from proxy.ingress.message_head import STREAM_TYPES

# Media types that are sent in pieces as these are made, if no length is stated; a page or JSON in chunks is just long.
CHUNK_TYPES = frozenset((b"", b"text/plain", b"application/octet-stream"))

OnShadowRefusal = Callable[[Exchange, str, str], None]


class StreamLimits:
    """Counts streams, each from the head of its response to its end.

    What a request says about the response that it wants is only used to refuse it early, before the app works. What the
    app answers decides. `on_shadow_refusal` is called with each refusal that a route in shadow mode does not make.
    """

    def __init__(self, on_shadow_refusal: OnShadowRefusal) -> None:
        self._on_shadow_refusal = on_shadow_refusal
        self._open: Counter[tuple[str, str]] = Counter()  # by route and user

    def open_by_route(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (route, _), count in self._open.items():
            found[route] += count
        return found

    def refuse_early(self, x: Exchange) -> None:
        """Called before the app has the request. Raises Refusal (429)."""
        if x.route.enforce and self._is_full(x) and _wants_stream(x):
            raise self._refusal(x)

    def admit(self, x: Exchange, app_connection: UpstreamConnection) -> None:
        """Called when the app has answered, and nothing was sent to the client yet. Raises Refusal (429)."""
        if not is_stream(app_connection):
            return
        if self._is_full(x):
            refusal = self._refusal(x)
            if x.route.enforce:
                raise refusal
            self._on_shadow_refusal(x, refusal.name, "this user has all the streams that the route allows (streams)")
        # In shadow mode too, so that what is counted is what enforcement would see.
        x.hold_resources().has_stream = True
        self._open[x.route.name, x.user] += 1

    def release(self, x: Exchange) -> None:
        x.hold_resources().has_stream = False
        key = (x.route.name, x.user)
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def _is_full(self, x: Exchange) -> bool:
        limit = x.route.streams
        return limit is not None and self._open[x.route.name, x.user] >= limit

    def _refusal(self, x: Exchange) -> Refusal:
        detail = f"This user has {x.route.streams} streams open here ({x.route.name}: streams); close one first."
        return Refusal("rate-limited", 429, "Too many streams", detail, retry_after=5.0)


def is_stream(app_connection: UpstreamConnection) -> bool:
    """Whether a response, of which the head has come, will go on for as long as somebody listens."""
    if app_connection.upgraded:
        return True
    # A response that is complete, or an error, is over soon, whatever its type says.
    if app_connection.complete or app_connection.bodyless or app_connection.status >= 400:
        return False
    value = next((value for name, value in app_connection.headers if name.lower() == b"content-type"), b"")
    kind = value.partition(b";")[0].strip().lower()
    return kind in STREAM_TYPES or (app_connection.content_length is None and kind in CHUNK_TYPES)


def _wants_stream(x: Exchange) -> bool:
    """Whether the client accepts nothing but a stream. One that accepts JSON too, as MCP's clients do, mostly gets
    that.
    """
    if x.upgrade is not None:
        return True
    wanted = (x.joined_header("Accept") or "").lower().encode("utf-8", "replace").split(b",")
    return all(kind.partition(b";")[0].strip() in STREAM_TYPES for kind in wanted)
