"""The errors of the house: one small tree. Foreign errors are mapped to these at one seam each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class OutriggerError(Exception):
    """Anything Outrigger itself has to say; its text is one sentence fit for an operator."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a policy: where it stands, what is wrong, what to write instead."""

    file: str
    line: int  # 1-based
    key: str  # dotted, as in `routes[0].timeout`
    problem: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.problem}; {self.mend}"


class PolicyError(OutriggerError):
    """A policy that cannot be taken; `faults` has every reason at once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


class UsageError(OutriggerError):
    """A command line that makes no sense (exit status 2)."""


class BindError(OutriggerError):
    """A listener's address cannot be had (exit status 1); the text names address and policy key."""


class Refusal(OutriggerError):
    """An answer of ours in place of the app's: an RFC 9457 problem.

    `retry_after` is in seconds and becomes the Retry-After header, rounded up.
    `close` asks for the client's connection to end after the answer.
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


class AppUnreachable(OutriggerError):
    """The app refused the connection, or broke it before the first byte of its answer."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent  # whether a byte of the request may have reached the app


class NoDescriptors(AppUnreachable):
    """This process holds as many files as it may: there is none left for a connection to the app."""


class AppMisframed(AppUnreachable):
    """The app's answer is framed in a way two readers could read differently (RFC 9112 section 6)."""


class CallRefused(OutriggerError):
    """An outgoing call's answer of ours, shown to the app in the error shape of the upstream's dialect.

    `retry_after` is in seconds. `again` is whether the caller's own retry makes sense: where it does not, the
    SDK is told by `x-should-retry: false`.
    """

    def __init__(
        self, code: str, status: int, message: str, *, retry_after: float | None = None, again: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after = retry_after
        self.again = again


class AttemptFailed(OutriggerError):
    """An attempt at an outgoing call got no whole answer.

    `word` is the policy's: connect, reset or first_byte. `sent` is whether a byte of the request may have
    reached the upstream.
    """

    def __init__(self, word: str, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.word = word
        self.sent = sent
