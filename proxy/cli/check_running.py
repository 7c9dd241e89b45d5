"""`check --running`: what saving a policy would change in the gateway that runs, and what waits for what.

The gateway shows the policy in force with every default and without a secret (`/status?policy=1`); the comparison is
made here, by the rules that a reload goes by. So variables are those of this shell, and a secret that changed is not
seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from proxy.cli.admin_client import GatewaySilent, fetch_status
from proxy.cli.output import print_error, print_line
from proxy.errors import PolicyError
from proxy.operations.pending_changes import hold_back_changes
from proxy.policy.changes import find_changes
from proxy.policy.loading import find_source, load_policy, read_rendered
from proxy.policy.renderer import render_policy
from proxy.policy.schema import Policy
from proxy.policy.values import enclosing_keys
from proxy.policy.watch import find_fixed_changes, keep_fixed_keys

EXIT_FAILED = 1
WITHOUT_SECRETS = "Secrets are not compared. Variables were looked up in this shell, not in the gateway's environment."

When = Literal["at once", "app", "gateway"]
_HEADINGS: Mapping[When, str] = {
    "at once": "In force at once, within 2 s of saving",
    "app": "Waits for the app's next start (outrigger ctl restart-app)",
    "gateway": "Waits for the gateway's restart",
}


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of one key; `before` and `after` are empty if only the key is known."""

    key: str
    before: str
    after: str
    when: When


def report_effects(
    policy: Policy, running: str | None, environ: Mapping[str, str], stdout: TextIO, stderr: TextIO
) -> int:
    """Print what the gateway that runs would do with a policy. `running` is the file that it runs with; None is the one
    that `run` finds here. Exit status 0, or 1 if no gateway answers."""
    try:
        shown = fetch_status(_find_running_policy(running, environ, policy), "?policy=1")["policies"]
        effects = find_effects(policy, shown, environ)
    except (GatewaySilent, ValueError) as error:
        print_error(stderr, f"check --running: {error}")
        return EXIT_FAILED
    except KeyError:
        print_error(stderr, "check --running: the gateway that runs has not said what is in force; is it this version?")
        return EXIT_FAILED
    if not effects:
        print_line(stdout, "The gateway that runs says the same already: saving this changes nothing.", "green")
    for when, heading in _HEADINGS.items():
        lines = [_describe_effect(effect) for effect in effects if effect.when == when]
        if lines:
            print_line(stdout, f"{heading}:", "bold")
            for line in lines:
                print_line(stdout, f"  {line}")
    print_line(stdout, WITHOUT_SECRETS, "dim")
    return 0


def find_effects(policy: Policy, shown: Mapping[str, Any], environ: Mapping[str, str]) -> Sequence[Effect]:
    """What saving `policy` would change. `shown` is the gateway's answer: two policies as text, and whether it starts
    the app. Raises KeyError, ValueError for what no gateway of this version says."""
    # All three without their secrets, so that none seems to change.
    in_force, of_the_app = read_rendered(shown["in_force"]), read_rendered(shown["of_the_app"])
    new = read_rendered(render_policy(policy))
    fixed = set(find_fixed_changes(in_force, new))
    _, waiting = hold_back_changes(of_the_app, in_force, keep_fixed_keys(in_force, new), environ)
    # An app that something else started gets another environment only together with the gateway.
    late: When = "app" if shown["starts_app"] else "gateway"
    found = list(_sort_effects(in_force, new, fixed, set(waiting), late))
    # Keys of the app's environment wait though they are in force, and some by what other keys say: attribution by
    # identity, the variables of an upstream that is new.
    told = {key for effect in found for key in enclosing_keys(effect.key)}
    since_start = {change.key: change for change in find_changes(of_the_app, new)}
    for key in sorted(set(waiting) - told):
        change = since_start.get(key)
        found.append(Effect(key, change.before if change else "", change.after if change else "", late))
    return found


def _sort_effects(in_force: Policy, new: Policy, fixed: Set[str], waiting: Set[str], late: When) -> Iterator[Effect]:
    for change in find_changes(in_force, new):
        around = set(enclosing_keys(change.key))
        when: When = "gateway" if fixed & around else late if waiting & around else "at once"
        yield Effect(change.key, change.before, change.after, when)


def _describe_effect(effect: Effect) -> str:
    if not effect.before and not effect.after:
        return effect.key
    if not effect.before:
        return f"{effect.key} is new: {effect.after}"
    return f"{effect.key}: {effect.before} → {effect.after}" if effect.after else f"{effect.key} is gone"


def _find_running_policy(named: str | None, environ: Mapping[str, str], otherwise: Policy) -> Policy:
    """The policy whose `listen.admin` leads to the gateway: the one that it runs with, as far as it can be read here,
    else the one that is looked at."""
    try:
        return load_policy(find_source(named, environ, Path.cwd()), environ, {"listen.admin", "admin"})
    except PolicyError:
        if named is not None:
            raise GatewaySilent(
                f"{named}, which is to name the gateway's listen.admin, cannot be read as one"
            ) from None
        return otherwise
