"""What instances send to an upstream, told to each other, so that `pace` holds for all of them together.

Each instance says twice a second how much it has sent since it began, requests and tokens by upstream, and hears the
same of the others. What they sent meanwhile is taken out of its own buckets (egress/throttle.py), as if it had sent it
itself; so a rate is passed at most by what the others send until that is heard. Sums since the beginning need no answer
to be exact: one that got lost is made good by the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from proxy.store.interface import SchemaPart, Script, SharedStore, StoreAway, WaitBudget

TICK_SECONDS = 0.4
KEPT_SECONDS = 600.0  # that the sums of an instance are kept after it was last heard of
CALL_SECONDS = 1.0

_KEPT_MICROS = round(KEPT_SECONDS * 1_000_000)

# KEYS: the upstreams. ARGV: own id, then requests and tokens of each upstream. Reply: for each upstream how many others
# there are, then id, requests and tokens of each.
RATES = Script(
    "rates",
    f"""
local reply = {{}}
for at, key in ipairs(KEYS) do
  redis.call('HSET', key, ARGV[1], string.format('%s %s %.0f', ARGV[2 * at], ARGV[2 * at + 1], now))
  redis.call('PEXPIRE', key, {round(KEPT_SECONDS * 1000)})
  local count = #reply + 1
  reply[count] = 0
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if all[i] ~= ARGV[1] then
      local requests, tokens, seen = string.match(all[i + 1], '^(%S+) (%S+) (%S+)$')
      if now - tonumber(seen) > {_KEPT_MICROS} then
        redis.call('HDEL', key, all[i])
      else
        reply[count] = reply[count] + 1
        reply[#reply + 1] = all[i]
        reply[#reply + 1] = tonumber(requests)
        reply[#reply + 1] = tonumber(tokens)
      end
    end
  end
end
return reply
""",
    "rates",
)

_SQL = f"""
CREATE FUNCTION {{schema}}.rates(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  moment bigint := {{schema}}.clock_us();
  reply jsonb := '[]';
  others jsonb;
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  FOR at IN 1 .. array_length(keys, 1) LOOP
    INSERT INTO {{schema}}.rates VALUES
        (keys[at], args[1], args[2 * at]::bigint, args[2 * at + 1]::bigint, moment + {_KEPT_MICROS})
      ON CONFLICT (upstream, id) DO UPDATE SET requests = excluded.requests, tokens = excluded.tokens,
        expires = excluded.expires;
    SELECT coalesce(jsonb_agg(part ORDER BY r.id, nr), '[]') INTO others
      FROM {{schema}}.rates r,
        LATERAL (VALUES (1, to_jsonb(r.id)), (2, to_jsonb(r.requests)), (3, to_jsonb(r.tokens))) AS parts (nr, part)
      WHERE r.upstream = keys[at] AND r.id <> args[1] AND r.expires > moment;
    reply := reply || to_jsonb(jsonb_array_length(others) / 3) || others;
  END LOOP;
  RETURN reply;
END $$
"""

SCRIPTS = (RATES,)
SCHEMA = SchemaPart(
    "rates",
    (
        (
            "CREATE TABLE {schema}.rates (upstream text NOT NULL, id text NOT NULL, requests bigint NOT NULL,"
            " tokens bigint NOT NULL, expires bigint NOT NULL, PRIMARY KEY (upstream, id))",
            _SQL,
        ),
    ),
    expiring=("rates",),
)

OnElsewhere = Callable[[int, int], None]  # requests and tokens that others sent since it was last told


class SentCount:
    """What this instance has sent to one upstream since it began."""

    __slots__ = ("heard", "on_elsewhere", "requests", "tokens")

    def __init__(self, on_elsewhere: OnElsewhere) -> None:
        self.on_elsewhere = on_elsewhere
        self.requests = 0
        self.tokens = 0
        self.heard: dict[str, tuple[int, int]] | None = None  # of the others by id; None before the first answer


class SharedRates:
    """Tells and hears, for all upstreams that have a rate. `run` is its loop."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._counts: dict[str, SentCount] = {}

    @property
    def is_up(self) -> bool:
        return self._store.is_up

    def count_fallback(self) -> None:
        """Count a call that was paced by what this instance knows alone."""
        self._store.count_fallback("pace")

    def follow(self, upstream: str, on_elsewhere: OnElsewhere) -> SentCount:
        """The count of an upstream; `on_elsewhere` hears what others send there."""
        count = self._counts.get(upstream)
        if count is None:
            count = self._counts[upstream] = SentCount(on_elsewhere)
        count.on_elsewhere = on_elsewhere
        return count

    def forget(self, upstream: str) -> None:
        self._counts.pop(upstream, None)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._counts:
                with suppress(StoreAway):
                    await self.exchange()

    async def exchange(self) -> None:
        """Tell what was sent here, and hear what was elsewhere. Raises StoreAway."""
        counts = sorted(self._counts.items())
        words = [self._store.instance_id]
        for _, count in counts:
            words += (str(count.requests), str(count.tokens))
        reply = await self._store.execute(
            RATES, [f"rates:{name}" for name, _ in counts], words, WaitBudget(CALL_SECONDS)
        )
        parts = iter(reply)
        for _, count in counts:
            _take_others(
                count, {str(next(parts)): (int(next(parts)), int(next(parts))) for _ in range(int(next(parts)))}
            )


def _take_others(count: SentCount, others: dict[str, tuple[int, int]]) -> None:
    before, count.heard = count.heard, others
    if before is None:
        return  # what was sent before this instance began is long gone
    requests = tokens = 0
    for name, (sent, used) in others.items():
        earlier = before.get(name, (0, 0))
        requests += max(0, sent - earlier[0])
        tokens += max(0, used - earlier[1])
    if requests or tokens:
        count.on_elsewhere(requests, tokens)
