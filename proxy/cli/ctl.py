"""`ctl ACTION [--policy FILE]`: acts on the running gateway, through its admin listener."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO
from urllib.parse import quote

from proxy.cli.admin_client import describe_failure, reachable_address, request
from proxy.cli.arguments import parse_arguments
from proxy.cli.ctl_instances import print_instances
from proxy.cli.ctl_tasks import print_task, print_tasks, tasks_path
from proxy.cli.load_policy import EXIT_BAD_POLICY, load_policy
from proxy.cli.output import print_error, print_line
from proxy.errors import UsageError
from proxy.policy.schema import Policy
from proxy.policy.values import Address

REQUEST_TIMEOUT = 20.0  # seconds
MAX_ANSWER_BYTES = 1024 * 1024
EXIT_FAILED = 1
STATUS = "/status"
ACTIONS = (
    "block USER, unblock USER, forgive USER, breaker UPSTREAM open|close|auto, reload, restart-app,"
    " purge ROUTE [PATH], instances, tasks [--route R] [--status S], task ID [retry|cancel]"
)


def run_ctl(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0 when it was done, 1 if the gateway refused or did not answer, 2 for a policy that cannot be taken.

    Raises UsageError.
    """
    option, method, path = _parse_action(argv)
    policy = load_policy(option, environ, stderr, {"listen.admin", "admin"})
    if policy is None:
        return EXIT_BAD_POLICY
    address = reachable_address(policy.listen.admin)
    try:
        status, answer = _ask_gateway(policy, address, method, path)
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
    if status != 200:
        print_error(stderr, f"ctl: {answer}")
        return EXIT_FAILED
    if isinstance(answer, str):
        print_line(stdout, answer, "green")
    elif isinstance(answer, Mapping) and "instances" in answer:
        print_instances(answer["instances"], answer["store"], stdout)
    elif isinstance(answer, Mapping):
        print_task(answer, stdout)
    else:
        print_tasks(answer, stdout)
    return 0


def _ask_gateway(policy: Policy, address: Address, method: str, path: str) -> tuple[int, Any]:
    """The status, and what the gateway says: a sentence, a task, a list of tasks, or instances. Raises OSError,
    HTTPException."""
    status, body = request(
        address, method, path, token=policy.admin.token, timeout=REQUEST_TIMEOUT, limit=MAX_ANSWER_BYTES
    )
    # Anything may listen on that port, and answer with anything.
    try:
        said = json.loads(body)
        if status != 200:
            return status, str(said["detail"])
        if method == "POST":
            return status, str(said["done"])
        if path == STATUS:
            return status, {"instances": said["instances"], "store": said["store"]}
        return status, said["tasks"] if "tasks" in said else said["task"]
    except (ValueError, KeyError, TypeError):
        text = f"{address} answered {status} and not as a gateway does; listen.admin may name another's port"
        return status if status != 200 else 502, text


def _parse_action(argv: Sequence[str]) -> tuple[str | None, str, str]:
    """The policy option, and the action as a method and a path. A name that begins with - stands after `--`."""
    arguments = parse_arguments("ctl", argv, with_value=("--policy", "--route", "--status"))
    option = arguments.last_value("--policy")
    if arguments.positionals[:1] != ["tasks"] and {"--route", "--status"} & set(arguments.options):
        raise UsageError("ctl: --route and --status go with `tasks` alone")
    match [*arguments.positionals, *(arguments.remainder or ())]:
        case [("reload" | "restart-app") as action]:
            return option, "POST", f"/ctl/{action}"
        case [("block" | "unblock" | "forgive") as action, name] if name:
            return option, "POST", f"/ctl/{action}/{_quote_segment(name)}"
        case ["breaker", upstream, ("open" | "close" | "auto") as word] if upstream:
            return option, "POST", f"/ctl/breaker/{_quote_segment(upstream)}/{word}"
        case ["purge", route] if route:
            return option, "POST", f"/ctl/purge/{_quote_segment(route)}"
        case ["purge", route, path] if route and path.startswith("/"):
            return option, "POST", f"/ctl/purge/{_quote_segment(route)}/{_quote_segment(path)}"
        case ["instances"]:
            return option, "GET", STATUS
        case ["tasks"] if path := tasks_path(arguments):
            return option, "GET", path
        case ["task", id] if id:
            return option, "GET", f"/status?task={_quote_segment(id)}"
        case ["task", id, ("retry" | "cancel") as word] if id:
            return option, "POST", f"/ctl/task/{_quote_segment(id)}/{word}"
    raise UsageError(f"ctl: give one of {ACTIONS}")


def _quote_segment(name: str) -> str:
    # Bytes of an argument that are not UTF-8 come as lone surrogates (PEP 383).
    return quote(name.encode("utf-8", "surrogateescape"), safe="")
