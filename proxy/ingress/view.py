"""What identity and routing may look at of a request."""

from __future__ import annotations

from typing import Protocol


class RequestView(Protocol):
    """The face of a request that decisions are made on."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str:
        """The path as it was sent: percent-encoding intact, without the query."""

    @property
    def client_ip(self) -> str:
        """Who sent it, after `trusted_proxies`."""

    def header(self, name: str) -> str | None:
        """The first value of a header, its name given in lower case."""
