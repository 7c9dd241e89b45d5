"""Who is there, and what they tell each other: membership by heartbeat, and messages to all other instances.

Both are one script, `BEAT`, that an instance runs twice a second: it says that it lives (every 2 s), and gets who else
does and what was published since. Asking in place of being told (SUBSCRIBE, LISTEN) needs no second connection, works
through a transaction pooler, and catches up by itself after a short absence. A message stays for a minute; who was away
for longer reads anew what the messages were about (`SharedStore.on_return`).

An instance is alive while it was heard of in the last 10 s. One that ends says so (`LEAVE`).
"""

from __future__ import annotations

from proxy.store.interface import SchemaPart, Script

ALIVE_SECONDS = 10
KEPT_SECONDS = 60  # that a message stays
MAX_MESSAGES = 1000  # that stay
MAX_MESSAGES_PER_BEAT = 200

MEMBERS, MESSAGES = "instances", "messages"  # the keys

# KEYS: members, messages. ARGV: own id, own description as JSON (empty: no heartbeat this time), what was heard last
# (empty: from now on). Reply: now, what was heard last, number of members, then id, description and time of each, then
# sender, topic and body of each message.
BEAT = Script(
    "beat",
    f"""
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
  redis.call('PEXPIRE', KEYS[1], {ALIVE_SECONDS * 2000})
end
local reply, count = {{now, '', 0}}, 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local at, text = string.match(all[i + 1], '^(%d+) (.*)$')
  if now - tonumber(at) > {ALIVE_SECONDS * 1_000_000} then
    redis.call('HDEL', KEYS[1], all[i])
  else
    count = count + 1
    reply[#reply + 1] = all[i]
    reply[#reply + 1] = text
    reply[#reply + 1] = tonumber(at)
  end
end
reply[3] = count
local last = ARGV[3]
if last == '' then
  local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
  last = newest[1] and newest[1][1] or '0-0'
else
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '(' .. last, '+', 'COUNT', {MAX_MESSAGES_PER_BEAT})) do
    last = entry[1]
    for i = 2, 6, 2 do reply[#reply + 1] = entry[2][i] end
  end
end
reply[2] = last
return reply
""",
    "beat",
)

# KEYS: members. ARGV: own id.
LEAVE = Script("leave", "redis.call('HDEL', KEYS[1], ARGV[1]) return {}", "leave")

# KEYS: messages. ARGV: own id, then topic and body of each message.
PUBLISH = Script(
    "publish",
    f"""
for i = 2, #ARGV, 2 do
  local topic, body = ARGV[i], ARGV[i + 1]
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', {MAX_MESSAGES}, '*', 'from', ARGV[1], 'topic', topic, 'body', body)
end
redis.call('PEXPIRE', KEYS[1], {KEPT_SECONDS * 1000})
return {{}}
""",
    "publish",
)

SCRIPTS = (BEAT, LEAVE, PUBLISH)

# A message's number is drawn before its transaction commits, so numbers may become visible out of their order: those of
# the last seconds are read again, and who reads leaves out what it has had (`RECENT_SECONDS`).
RECENT_SECONDS = 5

SCHEMA = SchemaPart(
    "presence",
    (
        (
            "CREATE TABLE {schema}.instances (id text PRIMARY KEY, description text NOT NULL, seen bigint NOT NULL,"
            " expires bigint NOT NULL)",
            "CREATE TABLE {schema}.messages (number bigserial PRIMARY KEY, sender text NOT NULL, topic text NOT NULL,"
            " body text NOT NULL, at bigint NOT NULL, expires bigint NOT NULL)",
            "CREATE INDEX messages_at ON {schema}.messages (at)",
            # What was seen last is TIME@NUMBER,NUMBER: a time, and which messages near it were had.
            f"""
CREATE FUNCTION {{schema}}.beat(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  moment bigint := {{schema}}.clock_us();
  first boolean := args[3] = '';
  since bigint := CASE WHEN first THEN moment ELSE split_part(args[3], '@', 1)::bigint END;
  had bigint[] := CASE WHEN first THEN '{{}}' ELSE string_to_array(split_part(args[3], '@', 2), ',')::bigint[] END;
  near bigint := since - {RECENT_SECONDS * 1_000_000};
  fresh bigint[];
  members jsonb;
  news jsonb := '[]';
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  IF args[2] <> '' THEN
    INSERT INTO {{schema}}.instances VALUES (args[1], args[2], moment, moment + {ALIVE_SECONDS * 1_000_000})
      ON CONFLICT (id) DO UPDATE SET description = excluded.description, seen = excluded.seen,
        expires = excluded.expires;
  END IF;
  SELECT coalesce(jsonb_agg(part ORDER BY i.id, place), '[]') INTO members FROM {{schema}}.instances i,
    LATERAL (VALUES (1, to_jsonb(i.id)), (2, to_jsonb(i.description)), (3, to_jsonb(i.seen))) AS parts (place, part)
    WHERE i.expires > moment;
  fresh := ARRAY(SELECT number FROM {{schema}}.messages WHERE at > near AND number <> ALL (had)
    ORDER BY number LIMIT {MAX_MESSAGES_PER_BEAT});
  IF NOT first THEN
    SELECT coalesce(jsonb_agg(part ORDER BY m.number, place), '[]') INTO news FROM {{schema}}.messages m,
      LATERAL (VALUES (1, to_jsonb(m.sender)), (2, to_jsonb(m.topic)), (3, to_jsonb(m.body))) AS parts (place, part)
      WHERE m.number = ANY (fresh);
  END IF;
  SELECT greatest(since, max(at)) INTO since FROM {{schema}}.messages WHERE number = ANY (fresh);
  had := ARRAY(SELECT number FROM {{schema}}.messages WHERE at > since - {RECENT_SECONDS * 1_000_000}
    AND number = ANY (had || fresh));
  RETURN jsonb_build_array(moment, since || '@' || array_to_string(had, ','), jsonb_array_length(members) / 3)
    || members || news;
END $$
""",
            """
CREATE FUNCTION {schema}.leave(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM {schema}.instances WHERE id = args[1];
  RETURN '[]';
END $$
""",
            f"""
CREATE FUNCTION {{schema}}.publish(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  moment bigint := {{schema}}.clock_us();
BEGIN
  FOR i IN 1 .. (array_length(args, 1) - 1) / 2 LOOP
    INSERT INTO {{schema}}.messages (sender, topic, body, at, expires)
      VALUES (args[1], args[2 * i], args[2 * i + 1], moment, moment + {KEPT_SECONDS * 1_000_000});
  END LOOP;
  RETURN '[]';
END $$
""",
        ),
    ),
    expiring=("instances", "messages"),
)
