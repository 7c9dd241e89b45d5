"""`attribution [--policy FILE]`: what is hooked in the app that runs, and what was left alone and why.

The running gateway says it: each Python process of the app reports what carries a request's token in it. What each hook
replaces is in docs/attribution.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from proxy.cli.admin_client import GatewaySilent, fetch_status
from proxy.cli.arguments import parse_arguments
from proxy.cli.load_policy import EXIT_BAD_POLICY, load_policy
from proxy.cli.output import Finding, print_error, print_findings, print_line, write_text
from proxy.errors import UsageError

EXIT_FAILED = 1
SWITCH_OFF = "To switch it off: app.attribution: off in the policy, then `outrigger ctl restart-app`."


def run_attribution(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, whatever is hooked; 1 if no gateway answers, 2 for a policy that cannot be taken.

    Raises UsageError.
    """
    arguments = parse_arguments("attribution", argv, with_value=("--policy",))
    if surplus := [*arguments.positionals, *(arguments.remainder or ())]:
        raise UsageError(f"attribution: `{surplus[0]}` is not known; there is --policy")
    policy = load_policy(arguments.last_value("--policy"), environ, stderr, {"listen.admin", "admin"})
    if policy is None:
        return EXIT_BAD_POLICY
    try:
        shown = fetch_status(policy).get("attribution")
        if not isinstance(shown, dict):
            raise GatewaySilent("the gateway that runs is older than this command; restart it with this version")
    except GatewaySilent as error:
        print_error(stderr, f"attribution: {error}")
        return EXIT_FAILED
    print_line(stdout, f"Attribution is {_STATES.get(shown['state'], shown['state'])}. {shown['reason']}", "bold")
    for processes, said in _group_by_report(shown["processes"]):
        write_text(stdout, f"\n{processes}:\n")
        print_findings(_list_findings(said), stdout)
    if shown["state"] == "on":
        if not shown["processes"]:
            # Nothing is sent before a request has come: a process that serves none says nothing.
            print_line(
                stdout, "\nNo process has said a thing yet: each does at its first request or call out.", "yellow"
            )
        print_line(stdout, f"\n{SWITCH_OFF}")
    return 0


_STATES = {"on": "on", "off": "off", "elsewhere": "the app's own business"}


def _group_by_report(processes: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The workers of a server say the same as a rule: one heading, and one report, for all that do."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in processes:
        left = tuple((each["name"], each["why"]) for each in one["left_alone"])
        groups.setdefault((one["python"], tuple(one["hooked"]), left), []).append(one)
    found = []
    for same in groups.values():
        pids = ", ".join(str(one["pid"]) for one in same)
        found.append((f"Process{'es' if len(same) > 1 else ''} {pids}, Python {same[0]['python']}", same[0]))
    return found


def _list_findings(said: Mapping[str, Any]) -> list[Finding]:
    hooked = [Finding("ok", name, "hooked") for name in said["hooked"]]
    return [*hooked, *(Finding("warning", one["name"], f"left alone: {one['why']}") for one in said["left_alone"])]
