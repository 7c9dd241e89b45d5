"""A number of things that instances share by leases: connections of `postgres.pool.total`, calls of `pace.concurrency`.

Each instance has a lease of so many, and all leases together never come to more than the total; only an instance that
nobody knows yet has one without asking. What one instance wants and cannot have, the others give back: first what they
have and do not use, then what they have above an even share. A lease is lowered by its owner alone, once it has so few,
so a newcomer gets only what was given back. An instance that was not heard of for LEASE_SECONDS has no lease any more.

| instance       | may have                                                     |
|----------------|--------------------------------------------------------------|
| not known yet  | 1                                                            |
| known          | its lease                                                    |
| store away     | its lease; after AWAY_SECONDS no more than total ÷ instances |
| ended          | nothing: the lease is given back at once                     |

As with slices of money (money.py), an update says what its sender holds (`hold`) and is never answered with less, and
updates that overtake each other are told apart by their numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from proxy.store.interface import SchemaPart, Script, SharedStore, StoreAway, WaitBudget
from proxy.util.background_tasks import BackgroundTasks

LEASE_SECONDS = 20.0  # that a lease lasts without news of its owner
AWAY_SECONDS = 12.0  # after which an owner without the store counts on less: others may soon take its lease
TICK_SECONDS = 1.0  # between updates
WANTING_TICK_SECONDS = 0.2  # while somebody waits for more
HASTE_SECONDS = 0.02  # between updates at most
CALL_SECONDS = 2.0

_LEASE_MICROS = round(LEASE_SECONDS * 1_000_000)

# KEYS: the thing. ARGV: own id, number, hold, want, total; hold -1: the end of the lease. Reply: the lease, what to
# shrink to, the instances with a lease.
LEASE = Script(
    "lease",
    f"""
local me, number, hold = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local want, total = tonumber(ARGV[4]), tonumber(ARGV[5])
local count, others, theirs = 1, 0, {{}}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local g, w, seen, nr = string.match(all[i + 1], '^(%S+) (%S+) (%S+) (%S+)$')
  if all[i] == me then
    if tonumber(nr) >= number then return {{-1, 0, 0}} end
  elseif now - tonumber(seen) > {_LEASE_MICROS} then
    redis.call('HDEL', KEYS[1], all[i])
  else
    count = count + 1
    others = others + tonumber(g)
    theirs[#theirs + 1] = {{tonumber(g), tonumber(w)}}
  end
end
if hold < 0 then
  redis.call('HDEL', KEYS[1], me)
  return {{0, 0, count - 1}}
end
local fair = math.max(1, math.floor(total / count))
local unmet, more = 0, 0
for _, each in ipairs(theirs) do
  unmet = unmet + math.max(0, math.min(each[2], fair) - each[1])
  more = more + math.max(0, each[2] - math.max(each[1], fair))
end
local room = total - others
local granted = math.min(want, room)
if granted > fair then granted = math.max(math.min(fair, room), math.min(granted, room - unmet)) end
granted = math.max(hold, granted, 1)
local target = granted
local over = math.max(0, others + granted - total)
if over + unmet > 0 then
  target = math.max(1, math.min(granted, math.max(math.min(want, fair), granted - over - unmet)))
end
if more > 0 then target = math.max(math.min(math.max(want, 1), target), target - more) end
redis.call('HSET', KEYS[1], me, string.format('%.0f %.0f %.0f %.0f', granted, want, now, number))
redis.call('PEXPIRE', KEYS[1], {2 * round(LEASE_SECONDS * 1000)})
return {{granted, target, count}}
""",
    "lease",
)

_SQL = f"""
CREATE FUNCTION {{schema}}.lease(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  me text := args[1];
  number_ bigint := args[2];
  hold bigint := args[3];
  want_ bigint := args[4];
  total bigint := args[5];
  moment bigint;
  others bigint;
  instances bigint;
  fair bigint;
  unmet bigint;
  more bigint;
  room bigint;
  granted_ bigint;
  target bigint;
  over bigint;
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  -- One lock for the thing: a lease is decided by all the others.
  PERFORM pg_advisory_xact_lock(hashtext('{{schema}}'), hashtext(keys[1]));
  moment := {{schema}}.clock_us();
  IF EXISTS (SELECT 1 FROM {{schema}}.leases l WHERE l.thing = keys[1] AND l.id = me AND l.number >= number_) THEN
    RETURN '[-1, 0, 0]';
  END IF;
  DELETE FROM {{schema}}.leases l WHERE l.thing = keys[1] AND l.id <> me AND moment - l.seen > {_LEASE_MICROS};
  SELECT coalesce(sum(l.granted), 0), count(*) + 1 INTO others, instances
    FROM {{schema}}.leases l WHERE l.thing = keys[1] AND l.id <> me;
  IF hold < 0 THEN
    DELETE FROM {{schema}}.leases l WHERE l.thing = keys[1] AND l.id = me;
    RETURN jsonb_build_array(0, 0, instances - 1);
  END IF;
  fair := greatest(1, total / instances);
  SELECT coalesce(sum(greatest(0, least(l.want, fair) - l.granted)), 0),
      coalesce(sum(greatest(0, l.want - greatest(l.granted, fair))), 0)
    INTO unmet, more FROM {{schema}}.leases l WHERE l.thing = keys[1] AND l.id <> me;
  room := total - others;
  granted_ := least(want_, room);
  IF granted_ > fair THEN
    granted_ := greatest(least(fair, room), least(granted_, room - unmet));
  END IF;
  granted_ := greatest(hold, granted_, 1);
  target := granted_;
  over := greatest(0, others + granted_ - total);
  IF over + unmet > 0 THEN
    target := greatest(1, least(granted_, greatest(least(want_, fair), granted_ - over - unmet)));
  END IF;
  IF more > 0 THEN
    target := greatest(least(greatest(want_, 1), target), target - more);
  END IF;
  INSERT INTO {{schema}}.leases VALUES (keys[1], me, granted_, want_, moment, number_, moment + 2 * {_LEASE_MICROS})
    ON CONFLICT (thing, id) DO UPDATE SET granted = excluded.granted, want = excluded.want, seen = excluded.seen,
      number = excluded.number, expires = excluded.expires;
  RETURN jsonb_build_array(granted_, target, instances);
END $$
"""

SCRIPTS = (LEASE,)
SCHEMA = SchemaPart(
    "leases",
    (
        (
            "CREATE TABLE {schema}.leases (thing text NOT NULL, id text NOT NULL, granted bigint NOT NULL,"
            " want bigint NOT NULL, seen bigint NOT NULL, number bigint NOT NULL, expires bigint NOT NULL,"
            " PRIMARY KEY (thing, id))",
            _SQL,
        ),
    ),
    expiring=("leases",),
)


Measure = Callable[[], tuple[int, int]]  # how many there are now, and how many would be used


class Lease:
    """This instance's lease of one thing, of which there are `total` over all instances (a reload may change that).

    limit: how many it may have now

    `measure` tells how many it has and would have, at each update; `on_change` hears that `limit` is another.
    """

    def __init__(
        self,
        store: SharedStore,
        thing: str,
        total: int,
        *,
        clock: Callable[[], float],
        measure: Measure,
        on_change: Callable[[], None],
        takes_share_unheard: bool = False,
    ) -> None:
        """`takes_share_unheard`: with a store that was away from the start, take total ÷ instances last seen, and not
        one alone: for what is better passed than stood still for."""
        self._takes_share_unheard = takes_share_unheard
        self._store = store
        self._key = f"lease:{thing}"
        self.total = total
        self._clock = clock
        self._measure = measure
        self._on_change = on_change
        self.limit = 1
        self._granted = 1
        self._number = 0
        self._instances = 1
        self._heard_at = self._sent_at = clock()
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = False
        self._is_known = False
        self._closing = False
        self._tasks = BackgroundTasks()

    def __repr__(self) -> str:
        return f"<Lease {self._key}: {self.limit} of {self.total}, of {self._instances} instances>"

    def start(self) -> None:
        """Be known to the others."""
        self._ask()

    def hasten(self) -> None:
        """Something changed that the others should know: more are wanted, or some were given back."""
        if self._under_way or self._closing or self._clock() - self._sent_at < HASTE_SECONDS:
            return
        self._ask()

    async def close(self) -> None:
        """Give it back."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.close()
        if self._is_known:
            with suppress(StoreAway):
                await self._store.execute(LEASE, [self._key], self._words(-1, 0), WaitBudget(CALL_SECONDS))

    def _words(self, hold: int, want: int) -> list[str]:
        self._number += 1
        return [self._store.instance_id, str(self._number), str(hold), str(want), str(self.total)]

    def _ask(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._closing and not self._under_way:
            self._under_way = True
            self._tasks.start(self._exchange())

    async def _exchange(self) -> None:
        used, want = self._measure()
        # From here on no more than this: what is above it may be somebody else's when the answer comes.
        hold = max(used, min(self.limit, self._granted))
        self._sent_at = self._clock()
        before = self.limit
        try:
            found = await self._store.execute(
                LEASE, [self._key], self._words(hold, max(want, 1)), WaitBudget(CALL_SECONDS)
            )
            granted, target, instances = (int(number) for number in found)
            if granted >= 0:
                self._is_known = True
                self._granted, self._instances, self._heard_at = granted, max(1, instances), self._sent_at
                self.limit = min(granted, max(1, target))
        except StoreAway:
            self._granted = hold
            if not self._is_known and self._takes_share_unheard:
                self.limit = max(1, self.total // max(1, self._store.instances))
            elif self._clock() - self._heard_at > AWAY_SECONDS:
                share = max(1, self.total // max(self._instances, self._store.instances))
                self.limit = min(self.limit, share)
        finally:
            self._under_way = False
        if self._closing:
            return
        used, want = self._measure()
        seconds = WANTING_TICK_SECONDS if want > self.limit or used > self.limit else TICK_SECONDS
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ask)
        if self.limit != before:
            self._on_change()
