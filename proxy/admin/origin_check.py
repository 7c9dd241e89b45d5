"""Who may look at the admin listener on a loopback address.

Everybody on the machine can reach it, and two of them act for strangers: a browser (a page may point a name
of its own at 127.0.0.1, or send its visitor's browser there) and the app (it may be talked into fetching a
page). What gives them away is the Host that they ask for and, in a browser, the page that asks.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.errors import Refusal
from proxy.policy.urls import host_of
from proxy.policy.urls import is_loopback as is_loopback


def check_local(header: Callable[[str], str | None]) -> None:
    """Raises Refusal (421, 403) unless a loopback Host is asked for, and by no page of another origin."""
    host = header("host")
    if host is None or not is_loopback(host_of(host)):
        raise Refusal(
            "misdirected",
            421,
            "Not a host of this listener",
            "The admin listener answers only a loopback Host such as 127.0.0.1 or localhost.",
        )
    if _foreign(header) or (of_another_site(header) and not _followed_link(header)):
        raise Refusal(
            "cross-site",
            403,
            "Not for pages of another site",
            "The admin listener does not answer pages of another origin.",
        )


def of_another_site(header: Callable[[str], str | None]) -> bool:
    """Whether a browser says so (Fetch metadata). It holds behind a proxy that changes the Host, too."""
    return header("sec-fetch-site") in ("cross-site", "same-site")


def same_origin(header: Callable[[str], str | None]) -> bool:
    """Whether a page of this very origin asks (Fetch metadata, or an Origin that is the Host). A browser that says
    neither of the two is not believed."""
    site = header("sec-fetch-site")
    return not _foreign(header) and (site == "same-origin" if site is not None else header("origin") is not None)


def _foreign(header: Callable[[str], str | None]) -> bool:
    origin, host = header("origin"), header("host")
    return origin is not None and (host is None or origin.lower().partition("://")[2] != host.lower())


def _followed_link(header: Callable[[str], str | None]) -> bool:
    """A person followed a link to here (from a chat, a runbook), whose page cannot read the answer."""
    return header("sec-fetch-mode") == "navigate" and header("sec-fetch-dest") == "document"
