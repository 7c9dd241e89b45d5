"""What operators decided, the same on every instance: a small map by kind, of which each instance has all.

Each entry has the time of its decision, and the newest one holds (last writer wins), so that instances that were apart
agree whatever order they meet in. An entry that was taken back stays as `None` for as long as any other, so that nobody
who was away brings the old one back. Decisions go into the store, which outlives instances, and as a message to those
who are there; whoever was away reads the map when it is back.

Names stand hashed where they are keys; the value has the name itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from proxy.store.interface import SchemaPart, Script, SharedStore, StoreAway, hash_user
from proxy.util.background_tasks import BackgroundTasks

KEPT_DAYS = 90  # after an entry was last written or any instance last read it
MAX_ENTRIES = 20_000  # of a kind; the oldest decision is forgotten first
_KEPT_US = KEPT_DAYS * 86_400 * 1_000_000

# KEYS: the map. ARGV: name, time and value of each entry to write, then none. Reply: time and value of every entry.
_LUA_MARKS = f"""
for i = 1, #ARGV, 3 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  if not known or tonumber(string.match(known, '^(%d+)')) < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2])
  end
end
redis.call('PEXPIRE', KEYS[1], '{_KEPT_US // 1000}')
if #ARGV > 0 then return {{}} end
local reply = {{}}
for _, value in ipairs(redis.call('HVALS', KEYS[1])) do reply[#reply + 1] = value end
return reply
"""
MARKS = Script("marks", _LUA_MARKS, "marks_sync")

SCHEMA = SchemaPart(
    "marks",
    (
        (
            "CREATE TABLE {schema}.marks (kind text NOT NULL, name text NOT NULL, at bigint NOT NULL,"
            " value text NOT NULL, expires bigint NOT NULL, PRIMARY KEY (kind, name))",
            f"""
CREATE FUNCTION {{schema}}.marks_sync(keys text[], args text[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  until bigint := {{schema}}.clock_us() + {_KEPT_US};
  reply jsonb;
BEGIN
  FOR i IN 1 .. coalesce(cardinality(args), 0) BY 3 LOOP
    INSERT INTO {{schema}}.marks AS m VALUES (keys[1], args[i], args[i + 1]::bigint, args[i + 2], until)
      ON CONFLICT (kind, name) DO UPDATE SET at = excluded.at, value = excluded.value, expires = excluded.expires
      WHERE m.at < excluded.at;
  END LOOP;
  IF cardinality(args) > 0 THEN
    RETURN '[]';
  END IF;
  UPDATE {{schema}}.marks SET expires = until WHERE kind = keys[1] AND expires < until - 86400000000;
  SELECT coalesce(jsonb_agg(at || ' ' || value), '[]') INTO reply FROM {{schema}}.marks WHERE kind = keys[1];
  RETURN reply;
END $$
""",
        ),
    ),
    expiring=("marks",),
)


class SharedMarks:
    """One kind of decision, by name. `apply(name, value)` is called for those of other instances; a value of None takes
    the decision back. `now` is the wall clock, in seconds."""

    def __init__(
        self, store: SharedStore, kind: str, apply: Callable[[str, Any], None], *, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._kind = kind
        self._key = f"marks:{kind}"
        self._apply = apply
        self._now = now
        self._known: dict[str, tuple[int, Any]] = {}  # name: when (µs), what; the oldest decision first
        self._unwritten: dict[str, None] = {}  # names
        self._tasks = BackgroundTasks()
        store.subscribe(f"mark:{kind}", lambda message: self._take(message["name"], message["at"], message["value"]))
        store.on_return(self.synchronize)

    def set(self, name: str, value: Any) -> None:
        """An operator decided here: tell the others, and the store. Neither waits nor raises."""
        at = round(self._now() * 1e6)
        self._remember(name, at, value)
        self._unwritten[name] = None
        self._store.publish(f"mark:{self._kind}", {"name": name, "at": at, "value": value})
        self._tasks.start(self._write())

    def add_older(self, names: list[str], value: Any) -> None:
        """What was decided before instances shared anything: it holds unless a newer decision is known."""
        for name in names:
            if name not in self._known:
                self._remember(name, 0, value)
                self._unwritten[name] = None

    async def synchronize(self) -> None:
        """Write what is not written, and read what others decided. Raises StoreAway."""
        await self._write_all()
        for entry in await self._store.execute(MARKS, (self._key,), ()):
            at, _, text = entry.partition(" ")
            told = json.loads(text)
            self._take(told["name"], int(at), told["value"])

    async def close(self) -> None:
        await self._tasks.close()

    def _take(self, name: str, at: int, value: Any) -> None:
        known = self._known.get(name)
        if known is not None and known[0] >= at:
            return
        self._remember(name, at, value)
        if known is None or known[1] != value:
            self._apply(name, value)

    def _remember(self, name: str, at: int, value: Any) -> None:
        self._known.pop(name, None)
        self._known[name] = (at, value)
        if len(self._known) > MAX_ENTRIES:
            self._known.pop(next(iter(self._known)))

    async def _write(self) -> None:
        try:
            await self._write_all()
        except StoreAway:
            pass  # it is written when the store is back

    async def _write_all(self) -> None:
        while self._unwritten:
            batch = list(self._unwritten)[:100]
            words: list[str] = []
            for name in batch:
                at, value = self._known.get(name, (0, None))
                words += (hash_user(name), str(at), json.dumps({"name": name, "value": value}))
            await self._store.execute(MARKS, (self._key,), words)
            for name in batch:
                self._unwritten.pop(name, None)
