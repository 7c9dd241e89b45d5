"""What `ctl instances` shows: a line for each instance that shares the store, and how the store is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TextIO

from proxy.cli.output import print_line, print_table

HEAD = ("id", "host", "region", "version", "started", "seen s ago")
SPARE = ("started", "region", "version")  # the columns that go first on a narrow terminal


def print_instances(
    instances: Sequence[Mapping[str, object]],
    store: Mapping[str, object] | None,
    out: TextIO,
    *,
    now: datetime | None = None,
) -> None:
    """A table; the instance that was asked has a star. `store` is None if this one shares nothing."""
    now = datetime.now(UTC) if now is None else now
    own = "" if store is None else str(store["this"])
    rows = [_row(instance, own, now) for instance in instances]
    foot = (f"{len(rows)} instance{'' if len(rows) == 1 else 's'}", *("" for _ in HEAD[1:]))
    print_table(HEAD, rows, foot, SPARE, out)
    if store is None:
        print_line(out, "store.url is memory://: this instance shares nothing, and knows of no other.")
    else:
        print_line(out, f"{store['where']}: {store['reason']}", "green" if store["up"] else "red")


def _row(instance: Mapping[str, object], own: str, now: datetime) -> tuple[str, ...]:
    seen = datetime.fromisoformat(str(instance["seen"]))
    # The store's clock may be ahead of this machine's.
    ago = max(0.0, (now - seen).total_seconds())
    star = " *" if instance["id"] == own else ""
    names = ("host", "region", "version", "started")
    return (f"{instance['id']}{star}", *(str(instance[name]) for name in names), f"{ago:.0f}")
