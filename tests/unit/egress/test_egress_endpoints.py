"""What the page says of how each endpoint is metered is what the code does, and no endpoint of the SDKs is unnamed.

`OUTRIGGER_WRITE_README=1` writes the page's table.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import anthropic
import openai
import pytest

from proxy.egress.billing.pricing.pricer import Pricer
from proxy.egress.dialects import dialect_for, endpoints
from proxy.egress.dialects.endpoints import (
    ASKED,
    FREE,
    REPORTED,
    EndpointTable,
    MeteredEndpoint,
    UnmeteredPaths,
    path_pattern,
)

PAGE = Path(__file__).parents[3] / "docs" / "money.md"
START, END = "<!-- endpoints: written by a test -->\n", "<!-- endpoints end -->"
METERED = {"openai": endpoints.OPENAI, "anthropic": endpoints.ANTHROPIC}
UNMETERED = {"openai": endpoints.OPENAI_UNMETERED, "anthropic": endpoints.ANTHROPIC_UNMETERED}
ROWS = [(kind, row) for kind in METERED for row in METERED[kind]]
PATHS = [(kind, row, path.replace("{id}", "x")) for kind, row in ROWS for path in row.paths]
PASSING = [(kind, path.replace("{id}", "x")) for kind in UNMETERED for row in UNMETERED[kind] for path in row.paths]
BODIES = {"audio": {"model": "tts-1", "input": "hello"}, "videos": {"model": "sora-2", "seconds": "4"}}


def posted(package: object) -> set[str]:
    """Where an SDK posts to, without query."""
    resources = Path(str(package.__file__)).parent / "resources"  # type: ignore[attr-defined]
    found: set[str] = set()
    for file in resources.rglob("*.py"):
        found |= set(re.findall(r'self\._post\(\s*(?:path_template\(\s*)?"([^"?]+)', file.read_text()))
    return {path.removeprefix("/v1") for path in found}


def passes(rows: tuple[UnmeteredPaths, ...], path: str) -> bool:
    return any(re.match(rf"{path_pattern(known).pattern}(/|$)", path) for row in rows for known in row.paths)


@pytest.mark.parametrize(("kind", "row", "path"), PATHS, ids=[f"{one[0]} {one[2]}" for one in PATHS])
def test_a_metered_endpoint_is_known_as_what_it_is(kind, row, path):
    for spelled in (path, f"/v1{path}", path.upper()):
        assert dialect_for(kind).endpoint("POST", spelled) == row.name


@pytest.mark.parametrize(("kind", "path"), PASSING)
def test_what_is_said_to_pass_passes(kind, path):
    assert dialect_for(kind).endpoint("POST", f"/v1{path}") is None


@pytest.mark.parametrize(("kind", "row"), ROWS, ids=[f"{kind} {row.paths[0]}" for kind, row in ROWS])
def test_an_answer_is_paid_by_what_the_page_says(kind, row):
    usage = {"model": "m", "usage": {"input_tokens": 3, "output_tokens": 2}}
    tariffs = Pricer(kind, "https://api.openai.com/v1", {}, "highest")
    if row.whole == REPORTED:
        assert dialect_for(kind).usage(row.name, usage) is not None
    if row.whole in (ASKED, FREE):
        cost = tariffs.cost_of_request(row.name, BODIES.get(row.name, {}), at=0.0)
        assert cost is not None
        assert (cost.nanos == 0) is (row.whole == FREE)
    streams = dialect_for(kind).stream_state(row.name, strip_usage=False) or dialect_for(kind).media_stream(row.name)
    assert streams is not None or row.streamed != REPORTED
    if not row.streamed and row.name not in {other.name for _, other in ROWS if other.streamed}:
        assert streams is None, "it streams, and the page does not say so"


@pytest.mark.parametrize(("kind", "package"), [("openai", openai), ("anthropic", anthropic)])
def test_every_endpoint_that_an_sdk_posts_to_is_metered_or_named_with_the_reason_why_not(kind, package):
    paths = posted(package)
    assert len(paths) > 50, "the SDK is written in another way now"
    known = EndpointTable(METERED[kind])
    for path in sorted(paths):
        assert known.find(path) is not None or passes(UNMETERED[kind], path), f"nobody says what {path} costs"


def cells(row: MeteredEndpoint) -> list[str]:
    return [row.whole, row.streamed or "–", row.else_by]


def table() -> str:
    lines = ["| endpoint | whole | streamed | where that tells nothing |", "| --- | --- | --- | --- |"]
    for kind, rows in METERED.items():
        for row in rows:
            paths = ", ".join(f"`{path}`" for path in row.paths)
            lines.append("| " + " | ".join([f"{kind}: {paths}", *cells(row)]) + " |")
        for other in UNMETERED[kind]:
            paths = ", ".join(f"`{path}`" for path in other.paths)
            lines.append(f"| {kind}: {paths} | not | not | {other.why} |")
    return "\n".join(lines) + "\n"


def test_the_pages_table_is_what_the_code_does():
    text = PAGE.read_text()
    start, end = text.index(START) + len(START), text.index(END)
    if os.environ.get("OUTRIGGER_WRITE_README"):
        PAGE.write_text(text[:start] + table() + text[end:])
        return
    assert text[start:end] == table()
