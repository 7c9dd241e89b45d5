"""What ingress needs from other rooms, as protocols: spending limits, the app, the gateway's own endpoints.

Ingress imports none of those rooms; `gateway.py` passes in what implements these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class UserBudgets(Protocol):
    """What a user may still spend on calls out: asked before the app works, and stated with each response.

    Money is in nano-dollars.
    """

    def has_cap(self, user: str, tier: str) -> bool:
        """Whether any cap applies to this user."""

    def is_loaded(self, user: str, tier: str, *, fresh: bool = False) -> bool:
        """Whether all that this user has spent is in memory; if not, `load_user` is worth its time. `fresh`: as of the
        last seconds, on all instances."""

    async def load_user(self, user: str, tier: str) -> None:
        """Load it from the ledger, within a second or two. Raises nothing if that fails."""

    def spent_today(self, user: str) -> int: ...

    def exhausted_cap(self, user: str, tier: str) -> tuple[str, float] | None:
        """The exhausted cap, in words, and the seconds until its window ends; None if no cap is exhausted."""


class AppBackend(Protocol):
    """The app as the relay sees it: where it listens, and whether it is there."""

    @property
    def is_ready(self) -> bool: ...

    @property
    def state(self) -> str:
        """One of starting, ready, restarting, stopping, ended."""

    @property
    def address(self) -> tuple[str, int]: ...

    async def wait_ready(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until it is ready; whether it is."""

    def record_answer(self) -> None:
        """Note that the app has just answered: it is alive, whatever a probe says."""


OwnResponse = tuple[int, list[tuple[str, str]], bytes]  # status, complete headers, body


class OwnEndpointHandler(Protocol):
    """Answers a request to one of the gateway's own endpoints.

    `path` and `query` are as sent, `peer` is the client's address, and `header` gives the first value of a field.
    `secure` says that the client came by HTTPS, according to a trusted proxy.
    """

    async def __call__(
        self,
        method: str,
        path: str,
        query: str,
        header: Callable[[str], str | None],
        body: bytes,
        peer: str,
        request_id: str,
        secure: bool,
    ) -> OwnResponse: ...


class RequestView(Protocol):
    """What identity and routing may look at of a request. The `explain` command makes such requests up."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str:
        """The path as it was sent: percent-encoding intact, without the query."""

    @property
    def client_ip(self) -> str:
        """The client's address, according to `listen.trusted_proxies`."""

    def header(self, name: str) -> str | None:
        """The first value of a header, its name given in lower case."""
