"""The app's metrics behind ours: what passes, what is left out, and what spoils all."""

from __future__ import annotations

import pytest

from proxy.observe.exposition_merge import AppExposition, InvalidExposition, parse_exposition

GOOD = """\
# HELP orders_total Orders, "all" of them \\n at once.
# TYPE orders_total counter
orders_total{kind="a b",quote="\\"}"} 12 1395066363000
orders_total{kind="x",} 1e+06

# a remark
# TYPE lat histogram
lat_bucket{le="+Inf"} 3
lat_sum  1.5
lat_count 3
untyped -Inf
nothing NaN
"""


async def test_every_kind_of_line_passes_with_its_name() -> None:
    found = await parse_exposition(GOOD.encode(), openmetrics=False)
    assert found.text is not None
    kept = [line for line in GOOD.splitlines() if line and line != "# a remark"]
    assert found.text.decode().splitlines() == kept


async def test_families_with_names_of_ours_are_left_out_and_counted() -> None:
    body = b"# TYPE outrigger_app_up gauge\noutrigger_app_up 5\n# HELP outrigger_x x\nmine 1\n"
    assert await parse_exposition(body, openmetrics=False) == AppExposition(b"mine 1\n", False, 2)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"name",
        b"name{a=b} 1",
        b'name{a="b} 1',
        b"name 1 2 3",
        b"name 1 # {} 1",
        b"1name 2",
        b"a 1\n\xff 2",
        b"a one",
    ],
)
async def test_a_line_that_is_no_sample_spoils_the_whole(body: bytes) -> None:
    with pytest.raises(InvalidExposition):
        await parse_exposition(body, openmetrics=False)


async def test_openmetrics_keeps_its_exemplars_and_ends_where_it_says() -> None:
    body = b'# TYPE a counter\n# UNIT a seconds\na_total 1 1.5 # {trace="x"} 0.5 1.5\n# EOF\n'
    assert await parse_exposition(body, openmetrics=True) == AppExposition(body.removesuffix(b"# EOF\n"), True, 0)


async def test_a_hostile_line_is_judged_in_no_time() -> None:
    with pytest.raises(InvalidExposition):
        await parse_exposition(b"a{" + b'a="b",' * 100_000 + b"!", openmetrics=False)
