"""Checks of Host and Origin that keep foreign web pages away from an admin listener on loopback.

Every program on the machine can reach it, and two of them act for strangers: a browser (a page may point a name of
its own at 127.0.0.1, which is DNS rebinding, or send its visitor's browser there) and the app (it may be talked into
fetching a page, which is SSRF). The Host that they ask for gives them away and, in a browser, the origin of the page.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.errors import Refusal
from proxy.policy.urls import host_of, is_loopback


def check_loopback_request(header: Callable[[str], str | None]) -> None:
    """Raises Refusal: 421 unless the Host is a loopback one, 403 if a page of another origin asks."""
    host = header("host")
    if host is None or not is_loopback(host_of(host)):
        raise Refusal(
            "misdirected",
            421,
            "Not a host of this listener",
            "The admin listener answers only a loopback Host such as 127.0.0.1 or localhost.",
        )
    if _has_foreign_origin(header) or (is_cross_site(header) and not _is_followed_link(header)):
        raise Refusal(
            "cross-site",
            403,
            "Not for pages of another site",
            "The admin listener does not answer pages of another origin.",
        )


def is_cross_site(header: Callable[[str], str | None]) -> bool:
    """Whether the browser says that a page of another site asks (Fetch metadata). Unlike a comparison of Origin and
    Host this holds behind a proxy that changes the Host, too."""
    return header("sec-fetch-site") in ("cross-site", "same-site")


def is_same_origin(header: Callable[[str], str | None]) -> bool:
    """Whether a page of this very origin asks, by Fetch metadata or by an Origin that equals the Host; False if the
    request has neither."""
    site = header("sec-fetch-site")
    return not _has_foreign_origin(header) and (
        site == "same-origin" if site is not None else header("origin") is not None
    )


def _has_foreign_origin(header: Callable[[str], str | None]) -> bool:
    origin, host = header("origin"), header("host")
    # An opaque origin is sent as `null`, which equals no host.
    return origin is not None and (host is None or origin.lower().partition("://")[2] != host.lower())


def _is_followed_link(header: Callable[[str], str | None]) -> bool:
    """Whether a person followed a link to here (from a chat, a runbook): that page cannot read the response."""
    return header("sec-fetch-mode") == "navigate" and header("sec-fetch-dest") == "document"
