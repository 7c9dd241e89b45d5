"""`ctl ACTION [--policy FILE]`: acts on the running gateway, through its admin listener."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import TextIO
from urllib.parse import quote

from proxy.cli.admin_client import describe_failure, reachable_address, request
from proxy.cli.arguments import parse_arguments
from proxy.cli.load_policy import EXIT_BAD_POLICY, load_policy
from proxy.cli.output import print_error, print_line
from proxy.errors import UsageError
from proxy.policy.schema import Policy
from proxy.policy.values import Address

REQUEST_TIMEOUT = 20.0  # seconds
MAX_ANSWER_BYTES = 1024 * 1024
EXIT_FAILED = 1
ACTIONS = (
    "block USER, unblock USER, forgive USER, breaker UPSTREAM open|close|auto, reload, restart-app, purge ROUTE [PATH]"
)


def run_ctl(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0 when it was done, 1 if the gateway refused or did not answer, 2 for a policy that cannot be taken.

    Raises UsageError.
    """
    option, path = _parse_action(argv)
    policy = load_policy(option, environ, stderr, {"listen.admin", "admin"})
    if policy is None:
        return EXIT_BAD_POLICY
    address = reachable_address(policy.listen.admin)
    try:
        status, text = _post_action(policy, address, path)
    except (OSError, http.client.HTTPException) as error:
        print_error(
            stderr,
            f"ctl: no gateway answers on {address} ({describe_failure(error)}); start it, or show the policy"
            " it runs with by --policy (the address is listen.admin)",
        )
        return EXIT_FAILED
    if status == 401:
        how = "by this admin token" if policy.admin.token else "without its admin token"
        fix = "set OUTRIGGER_ADMIN_TOKEN to the gateway's own, or show its policy by --policy (admin.token)"
        print_error(stderr, f"ctl: the gateway on {address} takes no orders {how}; {fix}")
        return EXIT_FAILED
    if status == 200:
        print_line(stdout, text, "green")
        return 0
    print_error(stderr, f"ctl: {text}")
    return EXIT_FAILED


def _post_action(policy: Policy, address: Address, path: str) -> tuple[int, str]:
    """The status, and what the gateway says. Raises OSError, HTTPException."""
    status, body = request(
        address, "POST", f"/ctl/{path}", token=policy.admin.token, timeout=REQUEST_TIMEOUT, limit=MAX_ANSWER_BYTES
    )
    # Anything may listen on that port, and answer with anything.
    try:
        said = json.loads(body)
        return status, str(said["done"] if status == 200 else said["detail"])
    except (ValueError, KeyError, TypeError):
        text = f"{address} answered {status} and not as a gateway does; listen.admin may name another's port"
        return status if status != 200 else 502, text


def _parse_action(argv: Sequence[str]) -> tuple[str | None, str]:
    """The policy option, and the action as a path. A name that begins with - stands after `--`."""
    arguments = parse_arguments("ctl", argv, with_value=("--policy",))
    option = arguments.last_value("--policy")
    match [*arguments.positionals, *(arguments.remainder or ())]:
        case [("reload" | "restart-app") as action]:
            return option, action
        case [("block" | "unblock" | "forgive") as action, name] if name:
            return option, f"{action}/{_quote_segment(name)}"
        case ["breaker", upstream, ("open" | "close" | "auto") as word] if upstream:
            return option, f"breaker/{_quote_segment(upstream)}/{word}"
        case ["purge", route] if route:
            return option, f"purge/{_quote_segment(route)}"
        case ["purge", route, path] if route and path.startswith("/"):
            return option, f"purge/{_quote_segment(route)}/{_quote_segment(path)}"
    raise UsageError(f"ctl: give one of {ACTIONS}")


def _quote_segment(name: str) -> str:
    # Bytes of an argument that are not UTF-8 come as lone surrogates (PEP 383).
    return quote(name.encode("utf-8", "surrogateescape"), safe="")
