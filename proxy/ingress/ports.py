"""What a user may still spend: asked before the app works, and told with each answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class UserBudgets(Protocol):
    """Money is nano-dollars."""

    def has_cap(self, user: str, tier: str) -> bool:
        """Whether there is a cap on this user at all."""

    def is_loaded(self, user: str, tier: str) -> bool:
        """Whether all that this user spent is at hand; else it is worth asking for it."""

    async def load_user(self, user: str, tier: str) -> None:
        """Ask for it, a second or two at most; nothing is raised where it cannot be had."""

    def spent_today(self, user: str) -> int: ...

    def exhausted_cap(self, user: str, tier: str) -> tuple[str, float] | None:
        """Which cap is spent, in words, and the seconds until its window turns; None where none is."""


# [merged from ingress/backend] The app as the relay sees it: where it listens and whether it is there.
class AppBackend(Protocol):
    @property
    def is_ready(self) -> bool: ...

    @property
    def state(self) -> str:
        """One of starting, ready, restarting, stopping, ended."""

    @property
    def address(self) -> tuple[str, int]: ...

    async def wait_ready(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for it; at once where it is ready."""

    def record_answer(self) -> None:
        """The app has just answered something: it is alive whatever a probe says."""


# [merged from ingress/ours] How the public listener reaches the gateway's own endpoints without knowing who answers
# them.
OwnResponse = tuple[int, list[tuple[str, str]], bytes]


class OwnEndpointHandler(Protocol):
    """Answers a request to an endpoint of ours: status, complete headers, body. `path` is as sent.

    `secure`: the client came by HTTPS, as a trusted proxy says.
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


# [merged from ingress/view] What identity and routing may look at of a request.
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
