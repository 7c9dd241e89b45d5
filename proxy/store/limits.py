"""Rate limits over all instances, decided in the store by its clock.

Exact limits (N up to 1,000) share one log of a user on a route: the time of each admitted request with an id of its
own. A limit of N in a period has room exactly if fewer than N of them are younger than the period, so that N are
admitted in every window and never N + 1, wherever they come in. The id makes a request countable twice without harm,
when nobody knows whether the store heard of it, and lets it be taken back.

Larger limits have a log each that notes every `step`-th request (a hundredth of N) and counts a group until its last
request is a period old: never more than N, and at most 1 % of N refused early. (Leases of several requests at once
would save round trips and were left out: a decision costs this process 20 µs, and the store's clock could not stamp
requests that are admitted later by another.)

All limits of a request are asked in one script; it counts against all or none. A log is kept for the longest period
that any instance asked for within that period, since instances of two policies run side by side during a deploy.
"""

from __future__ import annotations

from proxy.store.interface import SchemaPart, Script

MIN_KEPT_MS = 1  # a log lives at least so long

# KEYS: the exact log, if there are exact limits; then for each larger limit its groups and its state.
# ARGV: id, number of exact limits, quota and period (µs) of each, then quota, period and step of each larger one.
# Reply: now, µs to wait (0: admitted), then for each limit how many requests it counts (this one excluded), and the µs
# until one of them does not count any more; of a limit that refuses, until it has room.
_LUA_ADMIT = f"""
local function number(text) return tonumber(text) or 0 end
local function keep(key, wanted)
  local left = redis.call('PTTL', key)
  if left < wanted then left = wanted end
  redis.call('PEXPIRE', key, string.format('%.0f', left))
  return left
end
local exact, at, wait, longest = tonumber(ARGV[2]), 3, 0, 0
local reply, logs = {{now, 0}}, {{}}
for i = 1, exact do
  local quota, period = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  at = at + 2
  if period > longest then longest = period end
  local since = string.format('(%.0f', now - period)
  local used, own = redis.call('ZCOUNT', KEYS[1], since, '+inf'), 0
  if quota == 0 then
    own = period
  elseif used > 0 then
    local place = -used
    if used > quota then place = -quota end
    own = tonumber(redis.call('ZRANGE', KEYS[1], place, place, 'WITHSCORES')[2]) + period - now
  end
  if used >= quota and own > wait then wait = own end
  reply[#reply + 1] = used
  reply[#reply + 1] = own
end
local key = exact > 0 and 2 or 1
while at <= #ARGV do
  local log = {{groups = KEYS[key], state = KEYS[key + 1]}}
  log.period, log.step = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local quota = tonumber(ARGV[at])
  at = at + 3
  key = key + 2
  local total, partial, last, serial = string.match(redis.call('GET', log.state) or '', '(%d+) (%d+) (%d+) (%d+)')
  log.total, log.partial, log.last, log.serial = number(total), number(partial), number(last), number(serial)
  if now - log.last >= log.period then log.partial = 0 end
  local gone = string.format('%.0f', now - log.period)
  local old = redis.call('ZRANGEBYSCORE', log.groups, '-inf', gone)
  for _, group in ipairs(old) do log.total = log.total - number(string.match(group, ':(%d+)$')) end
  if #old > 0 then redis.call('ZREMRANGEBYSCORE', log.groups, '-inf', gone) end
  local used, own = log.total + log.partial, 0
  if used > 0 then
    local oldest = redis.call('ZRANGE', log.groups, 0, 0, 'WITHSCORES')[2]
    own = (tonumber(oldest) or log.last) + log.period - now
  end
  if used >= quota and own > wait then wait = own end
  reply[#reply + 1] = used
  reply[#reply + 1] = own
  log.changed = #old > 0
  logs[#logs + 1] = log
end
reply[2] = wait
if wait == 0 and exact > 0 then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
  local kept = keep(KEYS[1], math.max(math.ceil(longest / 1000), {MIN_KEPT_MS}))
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - kept * 1000))
end
for _, log in ipairs(logs) do
  if wait == 0 then
    log.partial = log.partial + 1
    log.last = now
    log.changed = true
    if log.partial >= log.step then
      log.serial = log.serial + 1
      redis.call('ZADD', log.groups, string.format('%.0f', now), log.serial .. ':' .. log.partial)
      log.total = log.total + log.partial
      log.partial = 0
    end
  end
  if log.changed then
    local life = math.max(math.ceil(log.period / 1000), {MIN_KEPT_MS})
    local state = string.format('%d %d %.0f %d', log.total, log.partial, log.last, log.serial)
    redis.call('SET', log.state, state, 'PX', string.format('%.0f', life))
    redis.call('PEXPIRE', log.groups, string.format('%.0f', life))
  end
end
return reply
"""
ADMIT = Script("limit", _LUA_ADMIT, "limit_admit")

# A request that was admitted and then refused elsewhere does not count.
# KEYS: as for ADMIT. ARGV: id, 1 if there is an exact log, the time at which it was admitted, then the period of each
# larger limit.
_LUA_REFUND = """
local key = 1
if ARGV[2] == '1' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  key = 2
end
local at = tonumber(ARGV[3])
for i = 4, #ARGV do
  local groups, state, period = KEYS[key], KEYS[key + 1], tonumber(ARGV[i])
  key = key + 2
  local total, partial, last, serial = string.match(redis.call('GET', state) or '', '(%d+) (%d+) (%d+) (%d+)')
  local life = redis.call('PTTL', state)
  if total and life > 0 and now - at < period then
    total, partial = tonumber(total), tonumber(partial)
    local found = redis.call('ZRANGEBYSCORE', groups, ARGV[3], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if found[1] then
      local name, count = string.match(found[1], '^(.*):(%d+)$')
      redis.call('ZREM', groups, found[1])
      if tonumber(count) > 1 then redis.call('ZADD', groups, found[2], name .. ':' .. (tonumber(count) - 1)) end
      total = total - 1
    else
      partial = math.max(0, partial - 1)
    end
    redis.call('SET', state, string.format('%d %d %s %s', total, partial, last, serial), 'PX', life)
  end
end
return {}
"""
REFUND = Script("limit_refund", _LUA_REFUND, "limit_refund")

# What was admitted while the store was away. KEYS: an exact log. ARGV: its longest period (µs), how many ids to remove,
# these ids, then id and time of each request to add.
_LUA_RECORD = f"""
local removed = tonumber(ARGV[2])
for i = 3, 2 + removed do redis.call('ZREM', KEYS[1], ARGV[i]) end
for i = 3 + removed, #ARGV, 2 do redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i]) end
local life = math.max(math.ceil(tonumber(ARGV[1]) / 1000), {MIN_KEPT_MS}, redis.call('PTTL', KEYS[1]))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', life))
return {{}}
"""
RECORD = Script("limit_record", _LUA_RECORD, "limit_record")

# The same for a larger limit. KEYS: its groups and its state. ARGV: its period (µs), then name, time of the last
# request and number of requests of each group. A group whose name is there already was written before.
_LUA_RECORD_GROUPS = f"""
local state = redis.call('GET', KEYS[2]) or '0 0 0 0'
local total, partial, last, serial = string.match(state, '(%d+) (%d+) (%d+) (%d+)')
total = tonumber(total)
for i = 2, #ARGV, 3 do
  local member = ARGV[i] .. ':' .. ARGV[i + 2]
  if not redis.call('ZSCORE', KEYS[1], member) then
    redis.call('ZADD', KEYS[1], ARGV[i + 1], member)
    total = total + tonumber(ARGV[i + 2])
  end
end
local life = string.format('%.0f', math.max(math.ceil(tonumber(ARGV[1]) / 1000), {MIN_KEPT_MS}))
redis.call('SET', KEYS[2], string.format('%d %s %s %s', total, partial, last, serial), 'PX', life)
redis.call('PEXPIRE', KEYS[1], life)
return {{}}
"""
RECORD_GROUPS = Script("limit_record_groups", _LUA_RECORD_GROUPS, "limit_record_groups")

SCRIPTS = (ADMIT, REFUND, RECORD, RECORD_GROUPS)

# No index on `expires`: an update of an indexed column could not stay on its page (HOT), and each request is an update.
_TABLE = """
CREATE TABLE {schema}.limits (
  key text PRIMARY KEY,
  times bigint[] NOT NULL DEFAULT '{}',   -- of each request; of a larger limit, of the last request of each group
  ids text[] NOT NULL DEFAULT '{}',       -- of each request, or name of each group
  counts bigint[] NOT NULL DEFAULT '{}',  -- requests of each group, for larger limits
  partial bigint NOT NULL DEFAULT 0,      -- requests of the group that is not complete yet
  last bigint NOT NULL DEFAULT 0,         -- time of the last of them
  serial bigint NOT NULL DEFAULT 0,
  expires bigint NOT NULL
) WITH (fillfactor = 50)
"""

# The keys of a larger limit are its groups and its state in Valkey, and one row here: the second key is passed over.
_SQL_LOCK = """
CREATE FUNCTION {schema}.limit_lock(name text) RETURNS {schema}.limits LANGUAGE plpgsql AS $$
DECLARE
  found_row {schema}.limits;
BEGIN
  LOOP
    SELECT * INTO found_row FROM {schema}.limits WHERE key = name FOR UPDATE;
    EXIT WHEN FOUND;
    INSERT INTO {schema}.limits (key, expires) VALUES (name, {schema}.clock_us()) ON CONFLICT DO NOTHING;
  END LOOP;
  RETURN found_row;
END $$
"""

_SQL_ADMIT = """
CREATE FUNCTION {schema}.limit_admit(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  exact int := args[2]::int;
  place int := 3;
  logs {schema}.limits[] := '{}';
  log {schema}.limits;
  moment bigint;
  quota bigint;
  period bigint;
  step bigint;
  used bigint;
  oldest bigint;
  own bigint;
  wait bigint := 0;
  longest bigint := 0;
  standings bigint[] := '{}';
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  IF exact > 0 THEN
    logs := array_append(logs, {schema}.limit_lock(keys[1]));
  END IF;
  FOR i IN CASE WHEN exact > 0 THEN 2 ELSE 1 END .. array_length(keys, 1) BY 2 LOOP
    logs := array_append(logs, {schema}.limit_lock(keys[i]));
  END LOOP;
  -- Only now: whoever waited for a row decides by the time at which it got it.
  moment := {schema}.clock_us();
  FOR i IN 1 .. exact LOOP
    log := logs[1];
    quota := args[place]::bigint;
    period := args[place + 1]::bigint;
    place := place + 2;
    longest := greatest(longest, period);
    SELECT count(*), min(t) INTO used, oldest FROM unnest(log.times) t WHERE t > moment - period;
    IF quota = 0 THEN
      own := period;
    ELSIF used > quota THEN
      SELECT t + period - moment INTO own FROM unnest(log.times) t ORDER BY t DESC OFFSET quota - 1 LIMIT 1;
    ELSE
      own := coalesce(oldest + period - moment, 0);
    END IF;
    IF used >= quota THEN
      wait := greatest(wait, own);
    END IF;
    standings := standings || used || own;
  END LOOP;
  FOR i IN CASE WHEN exact > 0 THEN 2 ELSE 1 END .. cardinality(logs) LOOP
    log := logs[i];
    quota := args[place + 3 * (i - 1 - least(exact, 1))]::bigint;
    period := args[place + 3 * (i - 1 - least(exact, 1)) + 1]::bigint;
    SELECT coalesce(sum(c), 0), min(t) INTO used, oldest
      FROM unnest(log.times, log.counts) AS g (t, c) WHERE t > moment - period;
    IF log.partial > 0 AND moment - log.last < period THEN
      used := used + log.partial;
      oldest := coalesce(oldest, log.last);
    END IF;
    own := coalesce(oldest + period - moment, 0);
    IF used >= quota THEN
      wait := greatest(wait, own);
    END IF;
    standings := standings || used || own;
  END LOOP;
  IF wait > 0 THEN
    RETURN jsonb_build_array(moment, wait) || to_jsonb(standings);
  END IF;
  IF exact > 0 THEN
    log := logs[1];
    -- What somebody still needs stays, who may have a longer period than this one.
    oldest := moment - greatest(longest, log.expires - moment);
    IF log.times[1] <= oldest THEN
      SELECT array_agg(t ORDER BY t), array_agg(name ORDER BY t) INTO log.times, log.ids
        FROM unnest(log.times, log.ids) AS r (t, name) WHERE t > oldest;
    END IF;
    UPDATE {schema}.limits SET times = coalesce(log.times, '{}') || moment, ids = coalesce(log.ids, '{}') || args[1],
      expires = greatest(log.expires, moment + longest) WHERE key = log.key;
  END IF;
  FOR i IN CASE WHEN exact > 0 THEN 2 ELSE 1 END .. cardinality(logs) LOOP
    log := logs[i];
    period := args[place + 3 * (i - 1 - least(exact, 1)) + 1]::bigint;
    step := args[place + 3 * (i - 1 - least(exact, 1)) + 2]::bigint;
    log.partial := CASE WHEN moment - log.last < period THEN log.partial ELSE 0 END + 1;
    IF log.partial >= step THEN
      log.serial := log.serial + 1;
      SELECT array_agg(t ORDER BY t), array_agg(name ORDER BY t), array_agg(c ORDER BY t)
        INTO log.times, log.ids, log.counts
        FROM (SELECT * FROM unnest(log.times, log.ids, log.counts) AS g (t, name, c) WHERE t > moment - period
              UNION ALL SELECT moment, log.serial::text, log.partial) AS kept;
      log.partial := 0;
    END IF;
    UPDATE {schema}.limits SET times = log.times, ids = log.ids, counts = log.counts, partial = log.partial,
      last = moment, serial = log.serial, expires = greatest(log.expires, moment + period) WHERE key = log.key;
  END LOOP;
  RETURN jsonb_build_array(moment, 0) || to_jsonb(standings);
END $$
"""

_SQL_REFUND = """
CREATE FUNCTION {schema}.limit_refund(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  first int := CASE WHEN args[2] = '1' THEN 2 ELSE 1 END;
  at bigint := args[3]::bigint;
  log {schema}.limits;
  place int;
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  IF first = 2 THEN
    SELECT * INTO log FROM {schema}.limits WHERE key = keys[1] FOR UPDATE;
    place := array_position(log.ids, args[1]);
    IF place IS NOT NULL THEN
      UPDATE {schema}.limits SET ids = log.ids[:place - 1] || log.ids[place + 1:],
        times = log.times[:place - 1] || log.times[place + 1:] WHERE key = log.key;
    END IF;
  END IF;
  FOR i IN 4 .. cardinality(args) LOOP
    SELECT * INTO log FROM {schema}.limits WHERE key = keys[first + 2 * (i - 4)] FOR UPDATE;
    CONTINUE WHEN NOT FOUND OR {schema}.clock_us() - at >= args[i]::bigint;
    -- It is in the group whose last request came at the same time or next; if there is none, in the one to come.
    SELECT nr INTO place FROM unnest(log.times) WITH ORDINALITY AS g (t, nr) WHERE t >= at ORDER BY t LIMIT 1;
    IF FOUND THEN
      log.counts[place] := log.counts[place] - 1;
      UPDATE {schema}.limits SET counts = log.counts WHERE key = log.key;
    ELSE
      UPDATE {schema}.limits SET partial = greatest(0, log.partial - 1) WHERE key = log.key;
    END IF;
  END LOOP;
  RETURN '[]';
END $$
"""

_SQL_RECORD = """
CREATE FUNCTION {schema}.limit_record(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  log {schema}.limits := {schema}.limit_lock(keys[1]);
  removed text[] := args[3:2 + args[2]::int];
BEGIN
  SELECT coalesce(array_agg(t ORDER BY t), '{}'), coalesce(array_agg(name ORDER BY t), '{}') INTO log.times, log.ids
    FROM (SELECT DISTINCT ON (name) name, t FROM (
      SELECT name, t FROM unnest(log.times, log.ids) AS r (t, name)
      UNION ALL SELECT args[i], args[i + 1]::bigint FROM generate_series(3 + args[2]::int, cardinality(args), 2) AS i
    ) AS every WHERE name <> ALL (removed) ORDER BY name, t) AS kept;
  UPDATE {schema}.limits SET times = log.times, ids = log.ids,
    expires = greatest(log.expires, {schema}.clock_us() + args[1]::bigint) WHERE key = log.key;
  RETURN '[]';
END $$
"""

_SQL_RECORD_GROUPS = """
CREATE FUNCTION {schema}.limit_record_groups(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  log {schema}.limits := {schema}.limit_lock(keys[1]);
BEGIN
  SELECT coalesce(array_agg(t ORDER BY t), '{}'), coalesce(array_agg(name ORDER BY t), '{}'),
    coalesce(array_agg(c ORDER BY t), '{}') INTO log.times, log.ids, log.counts
    FROM (SELECT DISTINCT ON (name) name, t, c FROM (
      SELECT name, t, c FROM unnest(log.times, log.ids, log.counts) AS g (t, name, c)
      UNION ALL SELECT args[i], args[i + 1]::bigint, args[i + 2]::bigint
        FROM generate_series(2, cardinality(args), 3) AS i
    ) AS every ORDER BY name, t) AS kept;
  UPDATE {schema}.limits SET times = log.times, ids = log.ids, counts = log.counts,
    expires = greatest(log.expires, {schema}.clock_us() + args[1]::bigint) WHERE key = log.key;
  RETURN '[]';
END $$
"""

SCHEMA = SchemaPart(
    "limits",
    (
        (
            _TABLE,
            _SQL_LOCK,
            _SQL_ADMIT,
            _SQL_REFUND,
            _SQL_RECORD,
            _SQL_RECORD_GROUPS,
        ),
    ),
    expiring=("limits",),
)
