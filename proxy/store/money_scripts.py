"""The two decisions about money that a store makes, in the languages of both: `caps_sync` and `caps_forgive`.

What they decide and why is said in money.py; a test compares them with a third one in Python, decision by decision.

In Valkey a window is a hash: `b`, `f`, `e`: base, forgiven, and the epoch in which the base was read; `w`: the
instances without whom it was read; `c`: until when it is contended; `again`: an instance told of money that the base
may have; `i:ID`: spent, open, held, time heard of, number and epoch of each instance. In PostgreSQL these are the
tables `caps_windows` and `caps_parts`. Numbers are exact up to 2^53 nano-dollars, nine million dollars in a window.

Arguments of `caps_sync`: ARGUMENTS of the sender, then one text for each window, FIELDS with a space between. Keys:
META, the sender's number, NEWS, then each window. The reply: epoch, recovering, the number of news, the news, then one
text for each window, COLUMNS with a space between (`late` alone for one that came too late).
"""

from __future__ import annotations

from proxy.store.interface import SchemaPart, Script
from proxy.store.money import CONTENDED_SECONDS, HELD_SECONDS, KEPT_SECONDS, MILLION, RECOVERY_SECONDS

META, NEWS, NUMBER = "caps", "caps:news", "caps:number:"  # keys; the last one with an instance's id
ARGUMENTS = 8  # instance, number, acknowledged, epoch, ratio, has_ledger, shares_ledger, whether to look at the server
# FIELDS: ends, limit, spent, open, keep, need, floor, wants, is_first, goes_unseeded, base, forgiven, without, key.
# COLUMNS: held, room, spent before, spent, open and held elsewhere, forgiven, contended, known.
NOTHING, NOBODY = "-", ","  # base, forgiven and without, if there is no seed; `without`, if it lacks nobody
LATE = "late"
UNASKED = "-"  # `known`, if the ledger need not be asked

_MICROS = 1_000_000
_HELD, _RECOVERY, _CONTENDED = (round(each * _MICROS) for each in (HELD_SECONDS, RECOVERY_SECONDS, CONTENDED_SECONDS))
_NEWS_KEPT = 5 * _MICROS
_NEWS_MOST = 100
_META_KEPT = 40 * 86_400  # seconds: longer than any month
_NUMBER_KEPT = 7 * 86_400  # seconds

SYNC = Script(
    "caps_sync",
    f"""
local function text(number) return string.format('%.0f', number) end
local me, number, acknowledged, heard_epoch = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local ratio, has_ledger, shares_ledger = tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7] == '1'
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'until', 'run')
local epoch, recovers_until, run = tonumber(meta[1] or '0'), tonumber(meta[2] or '0'), meta[3] or ''
local had = tonumber(redis.call('GET', KEYS[2]) or '0')
local lost = acknowledged > had or (epoch == 0 and heard_epoch > 0)
if ARGV[8] == '1' then
  local told = redis.pcall('INFO', 'server')
  local found = type(told) == 'string' and string.match(told, 'run_id:(%w+)') or ''
  if found ~= '' and found ~= run then
    lost = lost or run ~= ''
    redis.call('HSET', KEYS[1], 'run', found)
  end
end
-- While it recovers every instance tells its sums anew in any case: one new life is enough.
lost = lost and now >= recovers_until
if epoch == 0 or lost then
  epoch = math.max(epoch + 1, math.floor(now / 1000))
  if lost then recovers_until = now + {_RECOVERY} end
  redis.call('HSET', KEYS[1], 'epoch', text(epoch), 'until', text(recovers_until))
end
redis.call('EXPIRE', KEYS[1], {_META_KEPT})
redis.call('SET', KEYS[2], text(math.max(had, number)), 'EX', {_NUMBER_KEPT})
local recovering = now < recovers_until
local reply = {{epoch, recovering and 1 or 0, 0}}
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', text(now - {_NEWS_KEPT}))
for _, each in ipairs(redis.call('ZREVRANGE', KEYS[3], 0, {_NEWS_MOST - 1})) do
  reply[3] = reply[3] + 1
  reply[#reply + 1] = each
end
for at = 4, #KEYS do
  local fields = {{}}
  for field in string.gmatch(ARGV[{ARGUMENTS} + at - 3], '[^ ]+') do fields[#fields + 1] = field end
  local function given(nr) return tonumber(fields[nr]) end
  local key, ends, limit, spent, open, keep, need = KEYS[at], given(1), given(2), given(3), given(4), given(5), given(6)
  local floor, wants, is_first, goes_unseeded = given(7), given(8) == 1, given(9) == 1, given(10) == 1
  local found, parts = {{}}, {{}}
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local id = string.match(all[i], '^i:(.*)$')
    if id then
      local s, o, h, seen, nr, e = string.match(all[i + 1], '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
      parts[id] = {{spent = tonumber(s), open = tonumber(o), held = tonumber(h), seen = tonumber(seen),
                   number = tonumber(nr), epoch = tonumber(e)}}
    else
      found[all[i]] = all[i + 1]
    end
  end
  local mine = parts[me]
  if mine and mine.number >= number then
    reply[#reply + 1] = '{LATE}'
  else
    local without = ',' .. (found.w or '') .. ','
    -- What the base may have already, since it was read when this instance's sums were not here.
    if (not mine or mine.epoch ~= epoch) and spent + open > 0 and shares_ledger and found.b
        and tonumber(found.e) == epoch and not string.find(without, ',' .. me .. ',', 1, true) then
      found.again = '1'
    end
    local unseeded = has_ledger and (not found.b or
      (shares_ledger and (tonumber(found.e) ~= epoch or found.again == '1')))
    local before = is_first and mine and mine.spent or 0
    if not is_first then parts[me] = {{spent = spent, open = open, held = keep, seen = now, epoch = epoch}} end
    if unseeded and fields[11] ~= '{NOTHING}' then
      local asked, complete = ',' .. fields[13] .. ',', true
      for id, part in pairs(parts) do
        if (part.epoch == epoch or not shares_ledger) and not string.find(asked, ',' .. id .. ',', 1, true) then
          complete = false
        end
      end
      -- Nor may the base lack somebody whose sums are not here.
      for id in string.gmatch(fields[13], '[^,]+') do
        local part = parts[id]
        if id ~= me and not (part and (part.epoch == epoch or not shares_ledger)) then complete = false end
      end
      if complete then
        if shares_ledger then
          for id, part in pairs(parts) do
            if part.epoch ~= epoch then
              redis.call('HDEL', key, 'i:' .. id)
              parts[id] = nil
            end
          end
        end
        found.b, found.f, found.e, found.again = fields[11], fields[12], text(epoch), '0'
        redis.call('HSET', key, 'b', found.b, 'f', found.f, 'e', found.e, 'again', '0', 'w', fields[13])
        unseeded = false
        before = is_first and parts[me] and parts[me].spent or 0
      end
    end
    if not has_ledger and not found.b then
      found.b = '0'
      redis.call('HSET', key, 'b', '0', 'f', '0', 'e', text(epoch))
    end
    local forgiven = tonumber(found.f or '0')
    local spent_elsewhere, open_elsewhere, held_elsewhere = tonumber(found.b or '0'), 0, 0
    local known = {{}}
    for id, part in pairs(parts) do
      if part.epoch == epoch or not shares_ledger then known[#known + 1] = id end
      if id ~= me then
        if now - part.seen < {_HELD} then
          spent_elsewhere = spent_elsewhere + part.spent
          open_elsewhere, held_elsewhere = open_elsewhere + part.open, held_elsewhere + part.held
        else
          spent_elsewhere = spent_elsewhere + part.spent + part.open
        end
      end
    end
    local contended = now < tonumber(found.c or '0')
    local held, room = keep, 0
    if is_first then spent = spent + before end
    if limit >= 0 then
      room = limit + forgiven - spent_elsewhere - open_elsewhere - held_elsewhere - spent - open
      if not recovering and (not unseeded or goes_unseeded) then
        if need > room then
          if need <= room + held_elsewhere then
            contended = true
            found.c = text(now + {_CONTENDED})
            redis.call('HSET', key, 'c', found.c)
            redis.call('ZADD', KEYS[3], text(now), 'w' .. fields[14])
          end
        elseif need > 0 or wants then
          if contended then
            held = math.max(keep, need)
          else
            held = math.max(keep, need, math.min(room, math.max(floor, math.floor(room * ratio / {MILLION}))))
          end
        end
      end
    end
    if not is_first or not unseeded or goes_unseeded then
      local kept = is_first and before or spent
      redis.call('HSET', key, 'i:' .. me, table.concat({{text(kept), text(open), text(held), text(now), text(number),
        text(epoch)}}, ' '))
      if found.again == '1' then redis.call('HSET', key, 'again', '1') end
      redis.call('EXPIREAT', key, text(ends + {round(KEPT_SECONDS)}))
    end
    table.sort(known)
    reply[#reply + 1] = table.concat({{text(held), text(room), text(before), text(spent_elsewhere),
      text(open_elsewhere), text(held_elsewhere), text(forgiven), contended and '1' or '0',
      unseeded and table.concat(known, ',') or '{UNASKED}'}}, ' ')
  end
end
redis.call('EXPIRE', KEYS[3], 60)
return reply
""",
    "caps_exchange",
)

# KEYS: NEWS, then the windows of one user. ARGV: the place of the day among them (from 1), then their plain keys.
# Reply: what was taken off each.
_FORGIVE_LUA = """
local function text(number) return string.format('%.0f', number) end
local counted, today = {}, 0
for at = 2, #KEYS do
  local all, sum = redis.call('HGETALL', KEYS[at]), 0
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'i:' then
      sum = sum + tonumber(string.match(all[i + 1], '^(%S+)'))
    elseif all[i] == 'b' then
      sum = sum + tonumber(all[i + 1])
    elseif all[i] == 'f' then
      sum = sum - tonumber(all[i + 1])
    end
  end
  counted[at] = math.max(0, sum)
  if at - 1 == tonumber(ARGV[1]) then today = counted[at] end
end
local reply = {}
for at = 2, #KEYS do
  local taken = math.min(counted[at], today)
  if taken > 0 then
    local forgiven = tonumber(redis.call('HGET', KEYS[at], 'f') or '0')
    redis.call('HSET', KEYS[at], 'f', text(forgiven + taken))
    redis.call('ZADD', KEYS[1], text(now), 'f' .. ARGV[at])
  end
  reply[#reply + 1] = taken
end
redis.call('EXPIRE', KEYS[1], 60)
return reply
"""
FORGIVE = Script("caps_forgive", _FORGIVE_LUA, "caps_forgive")

SCRIPTS = (SYNC, FORGIVE)

_SYNC_SQL = f"""
CREATE FUNCTION {{schema}}.caps_exchange(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  me text := args[1];
  number_ bigint := args[2];
  acknowledged bigint := args[3];
  heard_epoch bigint := args[4];
  ratio bigint := args[5];
  has_ledger boolean := args[6] = '1';
  shares_ledger boolean := args[7] = '1';
  moment bigint;
  life {{schema}}.caps_life;
  had bigint;
  run_ text := extract(epoch FROM pg_postmaster_start_time())::text;
  lost boolean;
  recovering boolean;
  reply jsonb;
  news jsonb;
  fields text[];
  key_ text;
  expires_ bigint;
  limit_ bigint; spent_ bigint; open_ bigint; keep bigint; need bigint; floor_ bigint;
  wants boolean; is_first boolean; goes_unseeded boolean;
  found {{schema}}.caps_windows;
  mine {{schema}}.caps_parts;
  asked text[];
  unseeded boolean;
  contended_ boolean;
  before bigint;
  elsewhere bigint; open_elsewhere bigint; held_elsewhere bigint;
  known text;
  held_ bigint;
  room bigint;
BEGIN
  -- Every row is locked before the clock is read, so that times within a row never go back.
  INSERT INTO {{schema}}.caps_windows (key, expires)
    SELECT k, 0 FROM unnest(keys[4:]) AS k ORDER BY k ON CONFLICT (key) DO NOTHING;
  PERFORM 1 FROM {{schema}}.caps_windows w WHERE w.key = ANY (keys[4:]) ORDER BY w.key FOR UPDATE;
  moment := {{schema}}.clock_us();
  SELECT * INTO life FROM {{schema}}.caps_life;
  SELECT s.number INTO had FROM {{schema}}.caps_senders s WHERE s.id = me;
  had := coalesce(had, 0);
  lost := acknowledged > had OR (life.epoch IS NULL AND heard_epoch > 0) OR coalesce(life.run <> run_, false);
  -- While it recovers every instance tells its sums anew in any case: one new life is enough.
  lost := lost AND moment >= coalesce(life.recovers_until, 0);
  IF life.epoch IS NULL OR lost THEN
    INSERT INTO {{schema}}.caps_life AS l
      VALUES (1, moment / 1000, CASE WHEN lost THEN moment + {_RECOVERY} ELSE 0 END, run_)
      ON CONFLICT (one) DO UPDATE SET epoch = greatest(l.epoch + 1, excluded.epoch), run = excluded.run,
        recovers_until = excluded.recovers_until
        -- Another instance may have seen it at the same time.
        WHERE l.epoch = life.epoch;
    SELECT * INTO life FROM {{schema}}.caps_life;
  END IF;
  INSERT INTO {{schema}}.caps_senders AS s VALUES (me, number_, moment + {_NUMBER_KEPT * _MICROS})
    ON CONFLICT (id) DO UPDATE SET number = greatest(s.number, excluded.number), expires = excluded.expires;
  recovering := moment < life.recovers_until;
  SELECT coalesce(jsonb_agg(n.word), '[]') INTO news FROM
    (SELECT w.word FROM {{schema}}.caps_news w WHERE w.at > moment - {_NEWS_KEPT}
      ORDER BY w.at DESC LIMIT {_NEWS_MOST}) n;
  reply := jsonb_build_array(life.epoch, recovering::int, jsonb_array_length(news)) || news;
  FOR at IN 4 .. coalesce(array_length(keys, 1), 3) LOOP
    fields := string_to_array(args[{ARGUMENTS} + at - 3], ' ');
    key_ := keys[at];
    expires_ := (fields[1]::float8 + {round(KEPT_SECONDS)}) * {_MICROS};
    limit_ := fields[2]; spent_ := fields[3]; open_ := fields[4]; keep := fields[5];
    need := fields[6]; floor_ := fields[7]; wants := fields[8] = '1';
    is_first := fields[9] = '1'; goes_unseeded := fields[10] = '1';
    SELECT * INTO found FROM {{schema}}.caps_windows w WHERE w.key = key_;
    SELECT * INTO mine FROM {{schema}}.caps_parts p WHERE p.key = key_ AND p.id = me;
    IF mine.number >= number_ THEN
      reply := reply || jsonb_build_array('{LATE}');
      CONTINUE;
    END IF;
    -- What the base may have already, since it was read when this instance's sums were not here.
    IF (mine.epoch IS NULL OR mine.epoch <> life.epoch) AND spent_ + open_ > 0 AND shares_ledger
        AND found.base IS NOT NULL AND found.epoch = life.epoch
        AND NOT me = ANY (string_to_array(found.without, ',')) THEN
      found.again := true;
    END IF;
    unseeded := has_ledger
      AND (found.base IS NULL OR (shares_ledger AND (found.epoch <> life.epoch OR found.again)));
    before := CASE WHEN is_first THEN coalesce(mine.spent, 0) ELSE 0 END;
    IF NOT is_first THEN
      INSERT INTO {{schema}}.caps_parts VALUES (key_, me, spent_, open_, keep, moment, number_, life.epoch, expires_)
        ON CONFLICT (key, id) DO UPDATE SET spent = excluded.spent, open = excluded.open, held = excluded.held,
          seen = excluded.seen, number = excluded.number, epoch = excluded.epoch, expires = excluded.expires;
    END IF;
    IF unseeded AND fields[11] <> '{NOTHING}' THEN
      asked := array_remove(string_to_array(fields[13], ','), '');
      IF NOT EXISTS (SELECT 1 FROM {{schema}}.caps_parts p WHERE p.key = key_ AND NOT p.id = ANY (asked)
          AND (p.epoch = life.epoch OR NOT shares_ledger))
          -- Nor may the base lack somebody whose sums are not here.
          AND NOT EXISTS (SELECT 1 FROM unnest(asked) AS a (id) WHERE a.id <> me AND NOT EXISTS (
            SELECT 1 FROM {{schema}}.caps_parts p
            WHERE p.key = key_ AND p.id = a.id AND (p.epoch = life.epoch OR NOT shares_ledger))) THEN
        IF shares_ledger THEN
          DELETE FROM {{schema}}.caps_parts p WHERE p.key = key_ AND p.epoch <> life.epoch;
          IF is_first AND mine.epoch <> life.epoch THEN before := 0; END IF;
        END IF;
        found.base := fields[11]; found.forgiven := fields[12]; found.epoch := life.epoch;
        found.without := fields[13]; found.again := false;
        unseeded := false;
      END IF;
    END IF;
    IF NOT has_ledger AND found.base IS NULL THEN
      found.base := 0; found.epoch := life.epoch;
    END IF;
    SELECT coalesce(sum(p.spent + CASE WHEN moment - p.seen < {_HELD} THEN 0 ELSE p.open END), 0),
        coalesce(sum(p.open) FILTER (WHERE moment - p.seen < {_HELD}), 0),
        coalesce(sum(p.held) FILTER (WHERE moment - p.seen < {_HELD}), 0)
      INTO elsewhere, open_elsewhere, held_elsewhere
      FROM {{schema}}.caps_parts p WHERE p.key = key_ AND p.id <> me;
    SELECT coalesce(string_agg(p.id, ',' ORDER BY p.id), '') INTO known FROM {{schema}}.caps_parts p
      WHERE p.key = key_ AND (p.epoch = life.epoch OR NOT shares_ledger);
    elsewhere := elsewhere + coalesce(found.base, 0);
    contended_ := moment < found.contended;
    held_ := keep; room := 0;
    IF is_first THEN spent_ := spent_ + before; END IF;
    IF limit_ >= 0 THEN
      room := limit_ + found.forgiven - elsewhere - open_elsewhere - held_elsewhere - spent_ - open_;
      IF NOT recovering AND (NOT unseeded OR goes_unseeded) THEN
        IF need > room THEN
          IF need <= room + held_elsewhere THEN
            contended_ := true;
            found.contended := moment + {_CONTENDED};
            INSERT INTO {{schema}}.caps_news VALUES ('w' || fields[14], moment, moment + {60 * _MICROS})
              ON CONFLICT (word) DO UPDATE SET at = excluded.at, expires = excluded.expires;
          END IF;
        ELSIF need > 0 OR wants THEN
          IF contended_ THEN
            held_ := greatest(keep, need);
          ELSE
            held_ := greatest(keep, need,
              least(room, greatest(floor_, div(room::numeric * ratio, {MILLION})::bigint)));
          END IF;
        END IF;
      END IF;
    END IF;
    IF NOT is_first OR NOT unseeded OR goes_unseeded THEN
      INSERT INTO {{schema}}.caps_parts VALUES (key_, me, CASE WHEN is_first THEN before ELSE spent_ END, open_, held_,
          moment, number_, life.epoch, expires_)
        ON CONFLICT (key, id) DO UPDATE SET spent = excluded.spent, open = excluded.open, held = excluded.held,
          seen = excluded.seen, number = excluded.number, epoch = excluded.epoch, expires = excluded.expires;
      UPDATE {{schema}}.caps_windows w SET base = found.base, forgiven = found.forgiven, epoch = found.epoch,
        without = found.without, again = found.again, contended = found.contended, expires = expires_
        WHERE w.key = key_;
    END IF;
    reply := reply || jsonb_build_array(concat_ws(' ', held_, room, before, elsewhere, open_elsewhere, held_elsewhere,
      found.forgiven, contended_::int, CASE WHEN unseeded THEN known ELSE '{UNASKED}' END));
  END LOOP;
  RETURN reply;
END $$
"""

SCHEMA = SchemaPart(
    "caps",
    (
        (
            # One row: the store's life.
            "CREATE TABLE {schema}.caps_life (one int PRIMARY KEY CHECK (one = 1), epoch bigint NOT NULL,"
            " recovers_until bigint NOT NULL, run text NOT NULL)",
            "CREATE TABLE {schema}.caps_senders (id text PRIMARY KEY, number bigint NOT NULL, expires bigint NOT NULL)",
            "CREATE TABLE {schema}.caps_windows (key text PRIMARY KEY, base bigint, forgiven bigint NOT NULL DEFAULT 0,"
            " epoch bigint NOT NULL DEFAULT 0, without text NOT NULL DEFAULT '', again boolean NOT NULL DEFAULT false,"
            " contended bigint NOT NULL DEFAULT 0, expires bigint NOT NULL)",
            "CREATE TABLE {schema}.caps_parts (key text NOT NULL, id text NOT NULL, spent bigint NOT NULL,"
            " open bigint NOT NULL, held bigint NOT NULL, seen bigint NOT NULL, number bigint NOT NULL,"
            " epoch bigint NOT NULL, expires bigint NOT NULL, PRIMARY KEY (key, id))",
            "CREATE TABLE {schema}.caps_news (word text PRIMARY KEY, at bigint NOT NULL, expires bigint NOT NULL)",
            """
CREATE FUNCTION {schema}.caps_forgive(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  counted bigint[];
  today bigint;
  taken bigint;
  moment bigint;
  reply jsonb := '[]';
BEGIN
  PERFORM 1 FROM {schema}.caps_windows w WHERE w.key = ANY (keys[2:]) ORDER BY w.key FOR UPDATE;
  moment := {schema}.clock_us();
  SELECT array_agg(greatest(0, coalesce(w.base, 0) - coalesce(w.forgiven, 0) + coalesce(
      (SELECT sum(p.spent) FROM {schema}.caps_parts p WHERE p.key = k.key), 0))::bigint ORDER BY k.nr) INTO counted
    FROM unnest(keys[2:]) WITH ORDINALITY AS k (key, nr) LEFT JOIN {schema}.caps_windows w ON w.key = k.key;
  today := counted[args[1]::int];
  FOR at IN 1 .. array_length(counted, 1) LOOP
    taken := least(counted[at], today);
    IF taken > 0 THEN
      UPDATE {schema}.caps_windows w SET forgiven = w.forgiven + taken WHERE w.key = keys[at + 1];
      INSERT INTO {schema}.caps_news VALUES ('f' || args[at + 1], moment, moment + 60000000)
        ON CONFLICT (word) DO UPDATE SET at = excluded.at, expires = excluded.expires;
    END IF;
    reply := reply || to_jsonb(taken);
  END LOOP;
  RETURN reply;
END $$
""",
        ),
        (_SYNC_SQL,),
    ),
    expiring=("caps_senders", "caps_windows", "caps_parts", "caps_news"),
)
