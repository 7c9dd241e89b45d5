"""`ctl ACTION [--policy FILE]`: acts on the running gateway, through its admin listener."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import TextIO
from urllib.parse import quote

from proxy.cli.arguments import parse
from proxy.cli.load_policy import UNFIT, taken
from proxy.cli.output import complain, styled
from proxy.errors import UsageError
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.server import Address

PATIENCE = 20.0  # seconds
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a listener on every address is reached
FAILED = 1
WORDS = "block USER, unblock USER, forgive USER, breaker UPSTREAM open|close|auto, reload, restart-app"


def ctl(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0 when it was done, 1 where the gateway refused or did not answer, 2 for a policy that cannot be
    taken. Raises UsageError."""
    option, path = _arguments(argv)
    policy = taken(option, environ, stderr, {"listen.admin", "admin"})
    if policy is None:
        return UNFIT
    place = seen(policy.listen.admin)
    try:
        status, text = _post(policy, place, path)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        complain(
            stderr,
            f"ctl: no gateway answers on {place} ({why}); start it, or show the policy it runs with by --policy"
            " (the address is listen.admin)",
        )
        return FAILED
    if status == 401:
        how = "by this admin token" if policy.admin.token else "without its admin token"
        mend = "set OUTRIGGER_ADMIN_TOKEN to the gateway's own, or show its policy by --policy (admin.token)"
        complain(stderr, f"ctl: the gateway on {place} takes no orders {how}; {mend}")
        return FAILED
    if status == 200:
        styled(stdout, text, "green")
        return 0
    complain(stderr, f"ctl: {text}")
    return FAILED


def seen(address: Address) -> Address:
    """Where a listener of ours is reached from this machine."""
    host = address.host.strip("[]")
    return Address(ANYWHERE.get(host, host), address.port)


def _post(policy: Policy, place: Address, path: str) -> tuple[int, str]:
    """The status, and what the gateway says. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(place.host, place.port, timeout=PATIENCE)
    headers: dict[str, str | bytes] = {"Content-Length": "0"}
    if policy.admin.token:
        headers["Authorization"] = f"Bearer {policy.admin.token}".encode()
    try:
        connection.request("POST", f"/ctl/{path}", headers=headers)
        answer = connection.getresponse()
        body = answer.read(1024 * 1024)
    finally:
        connection.close()
    try:
        said = json.loads(body)
        return answer.status, str(said["done"] if answer.status == 200 else said["detail"])
    except (ValueError, KeyError, TypeError):
        text = f"{place} answered {answer.status} and not as a gateway does; listen.admin may name another's port"
        return answer.status if answer.status != 200 else 502, text


def _arguments(argv: Sequence[str]) -> tuple[str | None, str]:
    """The policy option, and the action as a path. A name that begins with - stands after `--`."""
    line = parse("ctl", argv, valued=("--policy",))
    option = line.last("--policy")
    match [*line.words, *(line.rest or ())]:
        case [("reload" | "restart-app") as action]:
            return option, action
        case [("block" | "unblock" | "forgive") as action, name] if name:
            return option, f"{action}/{_quoted(name)}"
        case ["breaker", upstream, ("open" | "close" | "auto") as word] if upstream:
            return option, f"breaker/{_quoted(upstream)}/{word}"
    raise UsageError(f"ctl: give one of {WORDS}")


def _quoted(name: str) -> str:
    return quote(name.encode("utf-8", "surrogateescape"), safe="")
