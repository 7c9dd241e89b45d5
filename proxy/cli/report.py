"""`report [--policy FILE] [--since 24h] [--by user|model|route] [--csv]`: what the ledger comes to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from proxy.cli.arguments import parse
from proxy.cli.load_policy import UNFIT, taken
from proxy.cli.output import complain, figures, styled, write
from proxy.errors import UsageError
from proxy.ledger.report import HEADS, SPARE, as_csv, as_rows, dollars, moment, total
from proxy.ledger.store import By, LedgerAway, Sum
from proxy.policy.urls import mask_password, sqlite_path

FAULT = 1
_BY: Mapping[str, By] = {"user": "user", "model": "model", "route": "route"}


def report(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, also for a ledger without rows; 1 where it cannot be read; 2 for a policy that cannot be taken.

    Raises UsageError.
    """
    line = parse("report", argv, valued=("--policy", "--since", "--by"), alone=("--csv",))
    if surplus := [*line.words, *(line.rest or ())]:
        raise UsageError(f"report: `{surplus[0]}` is not known; there is --policy, --since, --by and --csv")
    by = _BY.get(line.last("--by") or "user")
    if by is None:
        raise UsageError(f"report: --by {line.last('--by')} is not known; write user, model or route")
    asked = line.last("--since") or "24h"
    try:
        since = moment(asked, time.time())
    except ValueError as error:
        raise UsageError(f"report: --since {asked}: {error}; write 24h, 7d or 2026-11-26") from None
    policy = taken(line.last("--policy"), environ, stderr, {"ledger"})
    if policy is None:
        return UNFIT
    url = policy.ledger.url
    try:
        sums = _read(url, by, since)
    except FileNotFoundError as error:
        where = f"{Path(str(error)).absolute()}, where ledger.url of {policy.source} leads"
        complain(stderr, f"report: there is no ledger at {where}; it is begun with the first call out")
        sums = []
    except LedgerAway as error:
        mend = "" if sqlite_path(url) else "; start that database, or mend ledger.url"
        complain(stderr, f"report: the ledger cannot be read: {error}{mend}")
        return FAULT
    else:
        if not sums:
            complain(stderr, f"report: no calls since {asked} in {mask_password(url)}")
    if "--csv" in line.options:
        write(stdout, as_csv(sums, by))
    elif sums:
        _table(sums, by, since, stdout)
    return 0


def _table(sums: Sequence[Sum], by: By, since: float, out: TextIO) -> None:
    styled(out, f"Since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S} UTC, by {by}:")
    write(out, "\n")
    *body, foot = as_rows(sums, by)
    figures((by, *HEADS), body, foot, SPARE, out)
    if estimated := total(sums, "").estimated:
        write(out, "\n")
        styled(out, f"${dollars(estimated)} of it is estimated: no usage was reported, or not yet.")


def _read(url: str, by: By, since: float) -> list[Sum]:
    path = sqlite_path(url)
    if path is not None:
        from proxy.ledger import sqlite_queries

        return sqlite_queries.read(Path(path), by, since)
    from proxy.ledger import postgres

    return asyncio.run(postgres.read(url, mask_password(url), by, since))
