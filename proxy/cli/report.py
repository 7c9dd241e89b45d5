"""`report [--policy FILE] [--since 24h] [--by user|model|route] [--csv]`: what the ledger comes to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from proxy.errors import PolicyError, UsageError
from proxy.ledger.database import By, LedgerAway, Sum
from proxy.ledger.report import as_csv, as_table, moment
from proxy.policy.load import find, load
from proxy.policy.urls import mask_password, sqlite_path

_BY: Mapping[str, By] = {"user": "user", "model": "model", "route": "route"}


@dataclass
class Wanted:
    policy: str | None = None
    since: str = "24h"
    by: By = "user"
    csv: bool = False


def report(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, also for a ledger without rows; 1 where it cannot be read; 2 for a policy that cannot be taken.

    Raises UsageError.
    """
    wanted = _arguments(argv)
    try:
        since = moment(wanted.since, time.time())
    except ValueError as error:
        raise UsageError(f"report: --since {wanted.since}: {error}; write 24h, 7d or 2026-11-26") from None
    try:
        policy = load(find(wanted.policy, environ, Path.cwd()), environ)
    except PolicyError as error:
        print(error, file=stderr)
        return 2
    url = policy.ledger.url
    try:
        sums = _read(url, wanted.by, since)
    except FileNotFoundError as error:
        print(f"report: there is no ledger at {error}; it is begun with the first call out", file=stderr)
        sums = []
    except LedgerAway as error:
        print(f"report: the ledger cannot be read: {error}", file=stderr)
        return 1
    else:
        if not sums:
            print(f"report: no calls since {wanted.since} in {mask_password(url)}", file=stderr)
    if wanted.csv:
        _write(stdout, as_csv(sums, wanted.by))
    elif sums:
        _write(stdout, as_table(sums, wanted.by, since))
    return 0


def _read(url: str, by: By, since: float) -> list[Sum]:
    path = sqlite_path(url)
    if path is not None:
        from proxy.ledger import sqlitesums

        return sqlitesums.read(Path(path), by, since)
    from proxy.ledger import postgres

    return asyncio.run(postgres.read(url, mask_password(url), by, since))


def _arguments(argv: Sequence[str]) -> Wanted:
    wanted = Wanted()
    rest = list(argv)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word == "--csv" and not equals:
            wanted.csv = True
            continue
        if word not in ("--policy", "--since", "--by"):
            raise UsageError(f"report: `{word}` is not known; there are --policy, --since, --by and --csv")
        if not equals:
            if not rest:
                raise UsageError(f"report: {word} needs a value")
            value = rest.pop(0)
        if word == "--policy":
            wanted.policy = value
        elif word == "--since":
            wanted.since = value
        elif value in _BY:
            wanted.by = _BY[value]
        else:
            raise UsageError(f"report: --by {value} is not known; write user, model or route")
    return wanted


def _write(stream: TextIO, text: str) -> None:
    # A terminal that is not UTF-8 gets escapes.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
