"""The forms of every command, and the usage text made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Each command's forms, and what they do.
COMMANDS: Mapping[str, Sequence[tuple[str, str]]] = {
    "run": (
        ("[run] [--policy FILE] -- COMMAND ARG…", "start an app and everything in front of it"),
        ("run --policy FILE", "front the app at app.url or app.port"),
    ),
    "check": (
        ("check [FILE] [--print]", "validate a policy; show it with every default"),
        ("check --running [FILE] [--policy FILE]", "what saving it would change in the gateway that runs"),
    ),
    "schema": (("schema", "the policy language as a JSON Schema, for editors"),),
    "explain": (
        ("explain METHOD PATH [-H 'K: V']… [--policy FILE]", "which route, user, tier and limits a request gets"),
    ),
    "init": (("init [DIR]", "look at an app, write a policy for it, say how to start it"),),
    "doctor": (
        (
            "doctor [--policy FILE] [--slack] [-- COMMAND ARG…]",
            "try what the policy names: a table of ok, warning, error",
        ),
    ),
    "attribution": (
        ("attribution [--policy FILE]", "what is hooked in the running app, what was left alone, and why"),
    ),
    "suggest": (("suggest [--policy FILE]", "figures for limits, by what the running gateway saw"),),
    "report": (
        (
            "report [--since 24h] [--by user|model|route] [--csv] [--policy FILE]",
            "spend, tokens and calls out of the ledger",
        ),
    ),
    "ctl": tuple(
        (f"ctl {action} [--policy FILE]", does)
        for action, does in (
            ("block|unblock USER", "refuse every request of a user, or no longer"),
            ("forgive USER", "what they spent today counts against their caps no more"),
            ("breaker UPSTREAM open|close|auto", "hold an upstream's breaker, or let it judge again"),
            ("reload", "take the policy as it is now"),
            ("restart-app", "replace the app; requests wait"),
            ("purge ROUTE [PATH]", "forget the answers that a route (or an upstream) keeps, on every instance"),
            ("instances", "who shares the store, and when they were last heard of"),
            ("tasks [--route R] [--status S]", "requests that run later, the newest first"),
            ("task ID [retry|cancel]", "one of them; try it again, or end it"),
        )
    ),
    "completion": (("completion bash|zsh|fish", "a shell's completion of these commands"),),
    "man": (("man", "the manual page, as in `outrigger man | man -l -`"),),
}

# What a command with several forms is for, in a few words; of the others the first form says it.
SUMMARIES: Mapping[str, str] = {"ctl": "what an operator does to the running gateway"}


def format_usage(*commands: str) -> str:
    """A line for each form of these commands, and what it does below."""
    return "".join(f"outrigger {form}\n    {does}\n" for name in commands for form, does in COMMANDS[name])
