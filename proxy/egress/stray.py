"""Calls that came to none: they name no upstream, or are no HTTP. Refused and logged like any other."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.egress import refusal
from proxy.egress.dialects import Dialect
from proxy.egress.heads import of_refusal
from proxy.egress.sink import Head
from proxy.errors import CallRefused
from proxy.observe.events import Emit

LONGEST = 100  # characters of a name that nobody gave


def unknown(method: str, name: str, known: Iterable[str], emit: Emit) -> tuple[Head, bytes]:
    name = name[:LONGEST]
    return refused(f"{method} {name}", refusal.unknown_upstream(name, known), emit)


def refused(what: str, why: CallRefused, emit: Emit) -> tuple[Head, bytes]:
    emit(
        "call",
        f"{what} {why.status}",
        level="error" if why.status == 500 else "warning",
        status=why.status,
        attempts=0,
        cache="off",
        outcome="refused",
        refused=why.code,
        reason=str(why),
    )
    return of_refusal(why, Dialect(), None)
