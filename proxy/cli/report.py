"""`report [--policy FILE] [--since 24h] [--by user|model|route] [--csv]`: what the ledger comes to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from proxy.cli.arguments import parse_arguments
from proxy.cli.load_policy import EXIT_BAD_POLICY, load_policy
from proxy.cli.output import print_error, print_line, print_table, write_text
from proxy.errors import UsageError
from proxy.ledger.report import (
    DROPPABLE_COLUMNS,
    TABLE_HEADERS,
    format_csv,
    format_dollars,
    format_rows,
    parse_moment,
    sum_rows,
)
from proxy.ledger.store import GroupBy, LedgerUnavailable, ReportRow
from proxy.policy.urls import mask_password, sqlite_path

EXIT_FAULT = 1
# What --by takes; the ledger's own words, which happen to be the same.
_GROUPINGS: Mapping[str, GroupBy] = {"user": "user", "model": "model", "route": "route"}


def run_report(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, also for a ledger without rows; 1 if it cannot be read; 2 for a policy that cannot be taken.

    Raises UsageError.
    """
    arguments = parse_arguments("report", argv, with_value=("--policy", "--since", "--by"), flags=("--csv",))
    if surplus := [*arguments.positionals, *(arguments.remainder or ())]:
        raise UsageError(f"report: `{surplus[0]}` is not known; there is --policy, --since, --by and --csv")
    by = _GROUPINGS.get(arguments.last_value("--by") or "user")
    if by is None:
        raise UsageError(f"report: --by {arguments.last_value('--by')} is not known; write user, model or route")
    asked = arguments.last_value("--since") or "24h"
    try:
        since = parse_moment(asked, time.time())
    except ValueError as error:
        raise UsageError(f"report: --since {asked}: {error}; write 24h, 7d or 2026-11-26") from None
    policy = load_policy(arguments.last_value("--policy"), environ, stderr, {"ledger"})
    if policy is None:
        return EXIT_BAD_POLICY
    url = policy.ledger.url
    try:
        sums = _read_ledger(url, by, since)
    except FileNotFoundError as error:
        # No failure: a gateway that made no call yet has no ledger.
        where = f"{Path(str(error)).absolute()}, where ledger.url of {policy.source} leads"
        print_error(stderr, f"report: there is no ledger at {where}; it is begun with the first call out")
        sums = []
    except LedgerUnavailable as error:
        fix = "" if sqlite_path(url) else "; start that database, or mend ledger.url"
        print_error(stderr, f"report: the ledger cannot be read: {error}{fix}")
        return EXIT_FAULT
    else:
        if not sums:
            print_error(stderr, f"report: no calls since {asked} in {mask_password(url)}")
    if "--csv" in arguments.options:
        write_text(stdout, format_csv(sums, by))
    elif sums:
        _print_report(sums, by, since, stdout)
    return 0


def _print_report(sums: Sequence[ReportRow], by: GroupBy, since: float, out: TextIO) -> None:
    print_line(out, f"Since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S} UTC, by {by}:")
    write_text(out, "\n")
    *body, foot = format_rows(sums, by)
    print_table((by, *TABLE_HEADERS), body, foot, DROPPABLE_COLUMNS, out)
    if estimated := sum_rows(sums, "").estimated:
        write_text(out, "\n")
        print_line(out, f"${format_dollars(estimated)} of it is estimated: no usage was reported, or not yet.")


def _read_ledger(url: str, by: GroupBy, since: float) -> list[ReportRow]:
    path = sqlite_path(url)
    if path is not None:
        from proxy.ledger import sqlite_queries

        return sqlite_queries.read_report(Path(path), by, since)
    from proxy.ledger import postgres

    return asyncio.run(postgres.read_report(url, mask_password(url), by, since))
