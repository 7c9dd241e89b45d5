"""The exceptions of the project: one small tree. Foreign exceptions are mapped to these at one place each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class OutriggerError(Exception):
    """Base of them all; its text is one sentence that an operator can read."""


@dataclass(frozen=True, slots=True)
class PolicyFault:
    """One thing wrong in a policy: its place, the problem, and what to write instead.

    `line` counts from 1; `key` is dotted, as in `routes[0].timeout`; `problem` and `fix` are one clause each.
    """

    file: str
    line: int
    key: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.problem}; {self.fix}"


class PolicyError(OutriggerError):
    """A policy that cannot be put in force; `faults` has every reason at once."""

    def __init__(self, faults: Sequence[PolicyFault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


class UsageError(OutriggerError):
    """A command line that cannot be understood (exit status 2)."""


class BindError(OutriggerError):
    """A listener's address cannot be bound (exit status 1); the text names the address and its policy key."""


class Refusal(OutriggerError):
    """A request that Outrigger answers itself, in place of the app: an RFC 9457 problem.

    `name` is the problem's type, `status` the HTTP status, `title` and `detail` its texts. `retry_after` is in seconds
    and becomes the Retry-After header, rounded up. `close` asks for the client's connection to end after the response.
    """

    def __init__(
        self,
        name: str,
        status: int,
        title: str,
        detail: str,
        *,
        retry_after: float | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.name = name
        self.status = status
        self.title = title
        self.detail = detail
        self.retry_after = retry_after
        self.close = close


class PeerUnreachable(OutriggerError):
    """The app, or a vendor, refused the connection, or closed it before its response was whole.

    `sent` is whether a byte of the request may have reached it: only if not, another attempt is safe.
    """

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


class OutOfDescriptors(PeerUnreachable):
    """This process has no file descriptor left for a connection."""


class PeerMisframed(PeerUnreachable):
    """A response is framed so that two recipients could read it differently (RFC 9112 section 6).

    `why` is what is wrong, as a clause.
    """

    def __init__(self, detail: str, *, why: str) -> None:
        super().__init__(detail, sent=True)
        self.why = why


class CallRefused(OutriggerError):
    """A call that Outrigger answers itself, in the error shape of the upstream's dialect.

    `code` and `status` are what the app sees; `retry_after` is in seconds. `retryable` is whether a retry of the
    caller's own makes sense: if not, the SDK gets `x-should-retry: false`.
    """

    def __init__(
        self, code: str, status: int, message: str, *, retry_after: float | None = None, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after = retry_after
        self.retryable = retryable


class AttemptFailed(OutriggerError):
    """An attempt of a call got no whole response.

    `reason` is the policy's word for it (`retry.on`): connect, reset or first_byte. `sent` is whether a byte of the
    request may have reached the upstream.
    """

    def __init__(self, reason: str, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.reason = reason
        self.sent = sent
