"""How much of the store kept answers may take: a zone for each cache, as nginx has them (`keys_zone`, `max_size`).

A store for limits and caps must not drop what it counts (`noeviction`), so a cache that fills it up would stop them.
Each answer that is written is noted in its zone with its size and its end; the reply names those that have to go, the
soonest to end first, and whoever wrote the answer deletes them.
"""

from __future__ import annotations

from proxy.store.interface import SchemaPart, Script

MAX_FORGOTTEN = 200  # answers past their end that one note takes out of a zone
KEPT_SECONDS = 86_400 + 60  # for which a zone that nobody writes to is remembered: longer than any answer
_KEPT_US = KEPT_SECONDS * 1_000_000

# KEYS: ends and sizes of a zone's answers; the size under '' is that of all. ARGV: key and size of an answer, for how
# many milliseconds it is kept, and how many bytes all may take. Reply: the keys of those that have to go.
_LUA_NOTE = f"""
local function forget(key)
  local size = redis.call('HGET', KEYS[2], key)
  redis.call('ZREM', KEYS[1], key)
  redis.call('HDEL', KEYS[2], key)
  if size then redis.call('HINCRBY', KEYS[2], '', '-' .. size) end
end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, {MAX_FORGOTTEN})) do forget(key) end
forget(ARGV[1])
local total = redis.call('HINCRBY', KEYS[2], '', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
local gone = {{}}
while total > tonumber(ARGV[4]) do
  local key = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
  if not key then break end
  forget(key)
  gone[#gone + 1] = key
  total = tonumber(redis.call('HGET', KEYS[2], ''))
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[3] * 1000), ARGV[1])
redis.call('EXPIRE', KEYS[1], '{KEPT_SECONDS}')
redis.call('EXPIRE', KEYS[2], '{KEPT_SECONDS}')
return gone
"""
NOTE = Script("cache_note", _LUA_NOTE, "cache_note")

SCRIPTS = (NOTE,)

SCHEMA = SchemaPart(
    "cache_zones",
    (
        (
            "CREATE TABLE {schema}.cache_zones (zone text PRIMARY KEY, total bigint NOT NULL, expires bigint NOT NULL)",
            "CREATE TABLE {schema}.cache_sizes (zone text NOT NULL REFERENCES {schema}.cache_zones ON DELETE CASCADE,"
            " key text NOT NULL, size bigint NOT NULL, ends bigint NOT NULL, PRIMARY KEY (zone, key))",
            "CREATE INDEX cache_sizes_ends ON {schema}.cache_sizes (zone, ends)",
            f"""
CREATE FUNCTION {{schema}}.cache_note(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  whole bigint;
  freed bigint;
  moment bigint;
  oldest record;
  gone text[] := '{{}}';
BEGIN
  -- The row of the zone is locked first and by all, so that its sum is right and nobody waits in a circle.
  LOOP
    SELECT total INTO whole FROM {{schema}}.cache_zones WHERE zone = keys[1] FOR UPDATE;
    EXIT WHEN FOUND;
    INSERT INTO {{schema}}.cache_zones VALUES (keys[1], 0, {{schema}}.clock_us() + {_KEPT_US}) ON CONFLICT DO NOTHING;
  END LOOP;
  moment := {{schema}}.clock_us();
  WITH past AS (
    DELETE FROM {{schema}}.cache_sizes WHERE zone = keys[1] AND (ends <= moment OR key = args[1]) RETURNING size
  ) SELECT coalesce(sum(size), 0) INTO freed FROM past;
  whole := whole - freed + args[2]::bigint;
  FOR oldest IN SELECT key, size FROM {{schema}}.cache_sizes WHERE zone = keys[1] ORDER BY ends, key LOOP
    EXIT WHEN whole <= args[4]::bigint;
    DELETE FROM {{schema}}.cache_sizes WHERE zone = keys[1] AND key = oldest.key;
    whole := whole - oldest.size;
    gone := gone || oldest.key;
  END LOOP;
  INSERT INTO {{schema}}.cache_sizes VALUES (keys[1], args[1], args[2]::bigint, moment + args[3]::bigint * 1000);
  UPDATE {{schema}}.cache_zones SET total = whole, expires = moment + {_KEPT_US} WHERE zone = keys[1];
  RETURN to_jsonb(gone);
END $$
""",
        ),
    ),
    expiring=("cache_zones",),
)


def zone_keys(zone: str) -> tuple[str, str]:
    """What KEYS of a note are; PostgreSQL takes the first alone."""
    return f"{zone}:ends", f"{zone}:sizes"
