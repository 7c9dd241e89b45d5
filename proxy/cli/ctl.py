"""`ctl ACTION [--policy FILE]`: acts on the running gateway, through its admin listener."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from proxy.errors import PolicyError, UsageError
from proxy.policy.load import find, load
from proxy.policy.model import Address
from proxy.policy.policy import Policy

PATIENCE = 20.0  # seconds
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a listener on every address is reached
FAILED = 1
WORDS = "block USER, unblock USER, forgive USER, breaker UPSTREAM open|close|auto, reload, restart-app"


def ctl(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0 when it was done, 1 where the gateway refused or did not answer, 2 for a policy that cannot be
    taken. Raises UsageError."""
    option, path = _arguments(argv)
    try:
        policy = load(find(option, environ, Path.cwd()), environ)
    except PolicyError as error:
        print(error, file=stderr)
        return 2
    place = seen(policy.listen.admin)
    try:
        status, text = _post(policy, place, path)
    except (OSError, http.client.HTTPException) as error:
        why = str(error) or type(error).__name__
        print(
            f"ctl: no gateway answers on {place} ({why}); start it, or show the policy it runs with by --policy"
            " (the address is listen.admin)",
            file=stderr,
        )
        return FAILED
    if status == 200:
        print(text, file=stdout)
        return 0
    print(f"ctl: {text}", file=stderr)
    return FAILED


def seen(address: Address) -> Address:
    """Where a listener of ours is reached from this machine."""
    host = address.host.strip("[]")
    return Address(ANYWHERE.get(host, host), address.port)


def _post(policy: Policy, place: Address, path: str) -> tuple[int, str]:
    """The status, and what the gateway says. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(place.host, place.port, timeout=PATIENCE)
    headers = {"Content-Length": "0"}
    if policy.admin.token:
        headers["Authorization"] = f"Bearer {policy.admin.token}"
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
    """The policy option, and the action as a path."""
    option: str | None = None
    words: list[str] = []
    rest = list(argv)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word == "--policy":
            if not equals:
                if not rest:
                    raise UsageError("ctl: --policy needs a value")
                value = rest.pop(0)
            option = value
        elif word == "--" and not equals:
            words += rest
            break
        elif word.startswith("-"):
            raise UsageError(f"ctl: `{word}` is not known; there is --policy, and -- before a name that begins with -")
        else:
            words.append(f"{word}{equals}{value}")
    match words:
        case [("reload" | "restart-app") as action]:
            return option, action
        case [("block" | "unblock" | "forgive") as action, name] if name:
            return option, f"{action}/{quote(name, safe='')}"
        case ["breaker", upstream, ("open" | "close" | "auto") as word] if upstream:
            return option, f"breaker/{quote(upstream, safe='')}/{word}"
    raise UsageError(f"ctl: give one of {WORDS}")
