"""What a report says, to people and to machines."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.cli.report import run_report
from proxy.errors import UsageError
from proxy.ledger.record import CallRecord
from proxy.ledger.report import format_csv, format_dollars, format_rows, parse_moment
from proxy.ledger.sqlite import SqliteStore
from proxy.ledger.store import ReportRow

HEAD = "calls,errors,cached,input_tokens,cached_input_tokens,output_tokens,cost_usd,estimated_usd"
NOW = time.time()


def entry(id: object, cost: int = 10, at: float = NOW - 60, **rest: object) -> CallRecord:
    made = CallRecord(f"{id}", at, None, "ada", "free", "ask", "openai", "gpt", cost=cost, outcome="ok", status=200)
    return replace(made, **rest)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "x.db"

    async def fill() -> None:
        database = SqliteStore(path)
        await database.write_batch(
            [
                entry(1, 1_500_000, input_tokens=100, cached_input_tokens=40, output_tokens=10),
                entry(2, 2_000_000_499, user="bob", model="o1", route="", estimated=499, status=502, outcome="error"),
                entry(3, 0, user="bob", cache="hit", outcome="cached"),
                entry(4, 7_000, user="bob", outcome="open", estimated=7_000, status=0),
                entry(5, 9_000_000_000, at=NOW - 30 * 3600),
            ],
            [],
        )
        await database.close()

    asyncio.run(fill())
    return path


def said(*argv: str, path: Path | str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    policy = f"ledger: {{url: 'sqlite:///{path}'}}"
    status = run_report(argv, {"OUTRIGGER_POLICY_TEXT": policy}, out, err)
    return status, out.getvalue(), err.getvalue()


def test_the_csv_has_the_columns_of_the_contract_and_every_row_of_the_time(ledger: Path) -> None:
    status, out, err = said("--csv", path=ledger)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"user,{HEAD}",
        "bob,3,1,1,0,0,0,2.000007,0.000007",
        "ada,1,0,0,100,40,10,0.001500,0.000000",
    ]


@pytest.mark.parametrize(
    ("argv", "first"),
    [
        (("--by", "model"), "o1,1,1,0,0,0,0,2.000000,0.000000"),
        (("--by=route",), ",1,1,0,0,0,0,2.000000,0.000000"),
        (("--since", "2d"), "ada,2,0,0,100,40,10,9.001500,0.000000"),
        (("--since", f"{datetime.now(UTC) - timedelta(days=2):%Y-%m-%d}"), "ada,2,0,0,100,40,10,9.001500,0.000000"),
    ],
)
def test_by_and_since_choose_the_rows(ledger: Path, argv: tuple[str, ...], first: str) -> None:
    _, out, _ = said("--csv", *argv, path=ledger)
    assert out.splitlines()[1] == first


def test_the_table_is_for_people(ledger: Path) -> None:
    _, out, _ = said("--by", "route", path=ledger)
    lines = out.splitlines()
    assert lines[0].startswith("Since ")
    assert lines[0].endswith(" UTC, by route:")
    assert lines[2].split("  ")[0].strip() == "route"
    assert lines[4].startswith("(no request)")
    assert lines[5].startswith("ask")
    assert lines[7].split() == ["total", "4", "1", "1", "100", "40", "10", "2.001507", "0.000007"]
    assert lines[9] == "$0.000007 of it is estimated: no usage was reported, or not yet."
    assert len({len(line) for line in lines[2:8]}) == 1  # aligned


def test_many_users_are_summed_up_in_the_table_and_all_there_in_the_csv() -> None:
    sums = [ReportRow(f"user{n}", 1, 0, 0, 1000, 0, 0, 10**9, 0) for n in range(100)]
    rows = format_rows(sums, "user")
    assert rows[-2][:2] == ("60 others", "60")
    assert rows[-1] == ("total", "100", "0", "0", "100,000", "0", "0", "100.000000", "0.000000")
    assert len(format_csv(sums, "user").splitlines()) == 101


def test_names_that_clients_chose_break_neither_table_nor_csv() -> None:
    names = ["a,b", 'say "hi"', "two\nlines", "\x1b[31mred", "x" * 1000, "ünï"]
    sums = [ReportRow(name, 1, 0, 0, 0, 0, 0, 0, 0) for name in names]
    shown = [row[0] for row in format_rows(sums, "user")]
    assert shown == ["a,b", 'say "hi"', "two\\nlines", "\\x1b[31mred", "x" * 47 + "…", "ünï", "total"]
    found = list(csv.reader(io.StringIO(format_csv(sums, "user"), newline="")))
    assert [row[0] for row in found[1:]] == names


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.000000"), (499, "0.000000"), (500, "0.000001"), (1_234_567_891_499, "1234.567891"), (-1500, "-0.000002")],
)
def test_money_is_rounded_once_from_whole_numbers(nano: int, text: str) -> None:
    assert format_dollars(nano) == text


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("24h", -86400.0),
        ("90s", -90.0),
        ("1970-01-02", 86400.0),
        ("1970-01-01T02:00+01:00", 3600.0),
        ("1970-01-01 01:00:00Z", 3600.0),
    ],
)
def test_since_is_a_duration_or_a_moment(text: str, when: float) -> None:
    assert parse_moment(text, 0.0) == when


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (("--since", "yesterday"), "--since yesterday: it is not a number and a unit; write 24h, 7d or 2026-11-26"),
        (("--since", "2026-13-01"), "it is no date or time"),
        (("--since",), "--since needs a value"),
        (("--by", "tier"), "write user, model or route"),
        (("--json",), "`--json` is not known"),
        (("week",), "`week` is not known"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused_with_the_mend(ledger: Path, argv: tuple[str, ...], what: str) -> None:
    with pytest.raises(UsageError, match="report: ") as caught:
        said(*argv, path=ledger)
    assert what in str(caught.value)


def test_where_there_is_nothing_to_report_one_sentence_says_so(ledger: Path, tmp_path: Path) -> None:
    status, out, err = said("--since", "1s", path=ledger)
    assert (status, out) == (0, "")
    assert err.startswith("report: no calls since 1s in sqlite:///")
    status, out, err = said("--csv", path=tmp_path / "none.db")
    assert (status, out) == (0, f"user,{HEAD}\n")
    where = f"{tmp_path / 'none.db'}, where ledger.url of $OUTRIGGER_POLICY_TEXT leads"
    assert err == f"report: there is no ledger at {where}; it is begun with the first call out\n"


def test_a_ledger_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"no database at all " * 500)
    status, out, err = said("--csv", path=path)
    assert (status, out) == (1, "")
    assert "not a database; move it away" in err
    out2, err2 = io.StringIO(), io.StringIO()
    assert run_report((), {"OUTRIGGER_POLICY_TEXT": "ledger: {url: x}"}, out2, err2) == 2
