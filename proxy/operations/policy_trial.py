"""A trial of a policy: what a start or a reload would make of it is made once beforehand and thrown away.

What cannot be made is then a fault of the policy with its line, found before anything of the policy is in force.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from proxy.app.external_app import ExternalApp
from proxy.egress import upstream as outgoing
from proxy.errors import OutriggerError, PolicyError, PolicyFault
from proxy.ingress.pipeline import RequestRules
from proxy.ledger.ledger import store_of
from proxy.observe.redact import Redactor
from proxy.policy.schema import Policy

RESTORE_HINT = "write it as it was before, or another way"


def try_policy(policy: Policy, environ: Mapping[str, str]) -> None:
    """Raises PolicyError with a fault for every part that cannot be made, each at its line."""
    faults: list[PolicyFault] = []
    for key, make in _trial_steps(policy, environ):
        try:
            make()
        except PolicyError as error:
            faults += error.faults
        # What constructors raise for a value; anything else is a fault of ours and must not pass as the policy's.
        except (OutriggerError, ValueError, TypeError, LookupError, ArithmeticError, OSError, RecursionError) as error:
            faults.append(policy.fault_at(key, f"it cannot be taken ({describe_error(error)})", RESTORE_HINT))
    if faults:
        raise PolicyError(faults)


def describe_error(error: BaseException) -> str:
    """What went wrong, for an operator. The text of a foreign exception may quote a value of the policy, even a secret:
    only its type and its place are shown."""
    if isinstance(error, OutriggerError):
        return str(error)
    # The place is enough to find the cause, and no value of the policy can be in it.
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def _trial_steps(policy: Policy, environ: Mapping[str, str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """The key that each part is made from, and how it is made."""
    yield "log.redact", lambda: Redactor(policy.log.redact)
    # Compiles what requests are matched with: patterns, rates, trusted networks.
    yield "routes", lambda: RequestRules.from_policy(policy, on_render=bool(environ.get("RENDER")))
    for name, one in policy.upstreams.items():
        yield f"upstreams.{name}", partial(outgoing.check_policy, one)
    # Parsed, not connected: a database that is away is no fault of the policy.
    yield "ledger.url", lambda: store_of(policy.ledger.url)
    if policy.app.url is not None:
        yield "app.url", lambda: ExternalApp(policy.app, emit=_discard_event, clock=time.monotonic)
    if policy.postgres.url:
        yield "postgres.url", lambda: _parse_database_url(policy.postgres.url or "", environ)


def _parse_database_url(url: str, environ: Mapping[str, str]) -> object:
    from proxy.postgres.dsn import parse_url

    return parse_url(url, environ)


def _discard_event(event: str, message: str, **facts: object) -> None:
    """A trial logs nothing."""
