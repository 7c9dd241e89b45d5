"""A report as CSV is opened in a spreadsheet, and names in it are their clients' to choose: none becomes a formula."""

from __future__ import annotations

import csv
import io

import pytest

from proxy.ledger.report import format_csv
from proxy.ledger.store import ReportRow

FORMULAS = (
    "=HYPERLINK(\"http://evil\")", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "\n=1",
    "=1,2", '="x"', " =1", "＝1", "＋1+A1", "－A1", "＠A1",
)  # fmt: skip
PLAIN = ("ada", "user_1", "a=b", "+4915112345678", "-5", "-1.5", "ada-lovelace", "", "ünï", "a@b.example", "'quoted'")


def cell(name: str) -> str:
    text = format_csv([ReportRow(name, 1, 0, 0, 0, 0, 0, 0, 0)], "user")
    head, row = csv.reader(io.StringIO(text, newline=""))
    assert len(row) == len(head)
    return row[0]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_name_that_a_spreadsheet_would_compute_is_told_as_text(name: str) -> None:
    assert cell(name) == f"'{name}"


@pytest.mark.parametrize("name", PLAIN)
def test_every_other_name_and_a_number_stay_as_they_are(name: str) -> None:
    assert cell(name) == name


@pytest.mark.parametrize("name", ["a;=1", "a\t=1", "a|=1", 'a;"b";=1'])
def test_a_name_stays_one_cell_where_another_sign_parts_them(name: str) -> None:
    line = format_csv([ReportRow(name, 1, 0, 0, 0, 0, 0, 0, 0)], "user").splitlines()[1]
    for delimiter in ";\t|":
        assert next(csv.reader([line], delimiter=delimiter))[0].startswith(name)


def test_a_negative_sum_stays_a_number() -> None:
    assert (
        format_csv([ReportRow("ada", 1, 0, 0, 0, 0, 0, -5_000_000_000, 0)], "user").splitlines()[1].split(",")[-2]
        == "-5.000000"
    )
