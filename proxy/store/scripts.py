"""Every script and table that is kept in a store. Both stores know all of it, so that `store.money` may be either.

Loaded only if a policy names a store.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.store import cache_zones, leases, limits, marks, money_scripts, presence, rates
from proxy.store.interface import SchemaPart, Script
from proxy.store.postgres_schema import CLOCK, KEPT_VALUES

SCRIPTS: Sequence[Script] = (
    *presence.SCRIPTS,
    *limits.SCRIPTS,
    marks.MARKS,
    *money_scripts.SCRIPTS,
    *leases.SCRIPTS,
    *rates.SCRIPTS,
    *cache_zones.SCRIPTS,
)
SCHEMA_PARTS: Sequence[SchemaPart] = (
    CLOCK,
    KEPT_VALUES,
    presence.SCHEMA,
    limits.SCHEMA,
    marks.SCHEMA,
    money_scripts.SCHEMA,
    leases.SCHEMA,
    rates.SCHEMA,
    cache_zones.SCHEMA,
)
