"""One client twice: through the door, and direct to a database of the same making. Both must hear the same."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import psycopg
from postgres_wire_client import FLUSH, SYNC, Message, Wire, query

SCHEMA = (
    "create schema other",
    "create table other.only_there (a int)",
    "create table common (k int primary key, said text)",
    "insert into common values (1, 'one'), (2, 'two'), (3, 'three')",
    "create function hidden(v text) returns void language plpgsql as $$ begin perform v; end $$",
    "create sequence counter",
    *(f"create table own_{k} (id serial, said text); insert into own_{k} (said) values ('first')" for k in range(8)),
)
"""What each database of a pair is made with; it needs a role `other` that the app's user may take on."""

FACTS = """select current_setting('search_path'), current_setting('timezone'), current_setting('work_mem'),
 nullif(current_setting('app.tenant', true), ''), current_user, session_user, current_setting('role'),
 current_setting('default_transaction_read_only'), current_setting('default_transaction_isolation'),
 current_setting('statement_timeout'), current_setting('application_name'), current_setting('datestyle'),
 current_setting('extra_float_digits'), current_setting('bytea_output'), current_setting('client_encoding'),
 (select string_agg(c, ',' order by c) from pg_listening_channels() c),
 (select string_agg(name || ' ' || statement, ',' order by name) from pg_prepared_statements where from_sql),
 (select string_agg(name || is_holdable, ',' order by name) from pg_cursors where name <> ''),
 (select string_agg(classid || ':' || objid, ',' order by classid, objid) from pg_locks
   where locktype = 'advisory' and pid = pg_backend_pid()),
 (select string_agg(relname, ',' order by relname) from pg_class
   where relnamespace = pg_my_temp_schema() and relkind = 'r'),
 to_regclass('scratch')::text"""
"""Everything of a session that a statement can see; `to_regclass` finds what search_path and temp tables give."""

TERMINALS = "123nTCsIE"


def normal(found: Message) -> Message:
    """Without what differs from database to database (OIDs of tables, process ids) or is nobody's concern."""
    if found.kind == "T":
        out, at = bytearray(found.body), 2
        for _ in range(struct.unpack_from("!H", found.body)[0]):
            at = found.body.index(b"\0", at) + 1
            out[at : at + 6] = bytes(6)
            at += 18
        return Message("T", bytes(out))
    if found.kind == "A":
        return Message("A", found.body[4:])
    if found.kind == "E" and b"\0C25P02\0" in found.body:
        # It may be a Parse put ahead of the client's message that is refused: which line of PostgreSQL did it.
        return Message("E", b"\0".join(part for part in found.body.split(b"\0") if part[:1] not in (b"L", b"R")))
    return found


def same(through: Message, direct: Message) -> bool:
    """Of a Bind with too few parameters PostgreSQL says that first; the door, what is wrong with the statement."""
    if direct.kind == "E" and b"\0C08P01\0Mbind message supplies" in direct.body:
        return through.kind == "E" and any(code in through.body for code in (b"C08P01", b"C0A000", b"C25P02"))
    return through == direct


class Mismatch(AssertionError):
    def __init__(self, said: Sequence[bytes], through: Sequence[Message], direct: Sequence[Message]) -> None:
        whole = "\n  ".join(readable(each) for each in said)
        super().__init__(f"said:\n  {whole}\n  through the door: {list(through)}\n  direct:           {list(direct)}")


def readable(sent: bytes) -> str:
    """`P'select 1' B E S`: what a client sent at once."""
    out, at = [], 0
    while at < len(sent):
        (length,) = struct.unpack_from("!I", sent, at + 1)
        body = sent[at + 5 : at + 1 + length].replace(b"\0", b" ").strip().decode(errors="replace")
        out.append(f"{chr(sent[at])}{body[:90]!r}" if body else chr(sent[at]))
        at += 1 + length
    return " ".join(out)


@contextlib.contextmanager
def kept(wrong: list[Exception], said: Sequence[bytes] = ()) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if said and not isinstance(error, Mismatch):
            error.add_note("said: " + "\n  ".join(readable(each) for each in said))
        wrong.append(error)
        raise


class Pair:
    """`wrong` gets what went wrong, at the moment it did."""

    def __init__(self, pooler: str, direct: str, slot: int, wrong: list[Exception], **startup: str) -> None:
        self.slot = slot
        self._wrong = wrong
        self.pooler, self.direct = Wire(pooler, **startup), Wire(direct, **startup)
        self.status = "I"
        self.heard: tuple[list[Message], list[Message]] = ([], [])
        self.unsynced = False
        self.said: list[bytes] = []
        ours, theirs = self.pooler.parameters, self.direct.parameters
        assert ours == theirs, f"at startup {startup}: {ours} is not {theirs}"

    @property
    def backend(self) -> int:
        return self.direct.key[0]

    def _sides(self) -> tuple[Wire, Wire]:
        return self.pooler, self.direct

    def _judge(self, answers: Sequence[list[Message]]) -> list[Message]:
        reported: list[list[Message]] = []
        for heard, answer in zip(self.heard, answers, strict=True):
            heard += [normal(each) for each in answer if each.kind == "A"]
            # Of ParameterStatus counts what the client takes from it: a value told again is nothing new.
            reported.append([normal(each) for each in answer if each.kind not in "AS"])
        if len(reported[0]) != len(reported[1]) or not all(map(same, *reported)):
            raise Mismatch(self.said, *reported)
        ours, theirs = (side.parameters.items() for side in self._sides())
        if ours != theirs:
            raise Mismatch(
                self.said, *([Message("S", repr(sorted(items)).encode())] for items in (ours - theirs, theirs - ours))
            )
        for each in reported[1]:
            if each.kind == "Z":
                self.status = each.body.decode()
        return reported[1]

    def ask(self, *parts: bytes, answers: int = 1) -> list[Message]:
        """Send to both and compare all up to that many ReadyForQuery."""
        self.said.append(b"".join(parts))
        with kept(self._wrong, self.said):
            for side in self._sides():
                side.send(*parts)
            # The direct one first: where it says less than was thought, nobody waits for the door's.
            direct = [each for _ in range(answers) for each in self.direct.answer()]
            pooler = [each for _ in range(answers) for each in self.pooler.answer()]
            return self._judge((pooler, direct))

    def flushed(self, *parts: bytes) -> list[Message]:
        """Extended messages and a Flush: compare all that they are answered with, up to the first error."""
        self.said.append(b"".join((*parts, FLUSH)))
        with kept(self._wrong, self.said):
            for side in self._sides():
                side.send(*parts, FLUSH)
            self.unsynced = True
            return self._judge([_terminals(side, len(parts)) for side in self._sides()])

    def sync(self) -> list[Message]:
        self.unsynced = False
        return self.ask(SYNC)

    def sql(self, text: str) -> list[Message]:
        return self.ask(query(text))

    def facts(self) -> list[Message]:
        return self.sql(FACTS)

    def settle(self) -> None:
        """Both have heard the same notifications; they come when they come."""
        deadline = time.monotonic() + 5
        while True:
            self.sql("")
            if self.heard[0] == self.heard[1]:
                return
            if time.monotonic() > deadline:
                raise Mismatch(self.said, *self.heard)
            time.sleep(0.01)

    def drop(self, how: Callable[[Wire], None] = Wire.drop) -> None:
        for side in self._sides():
            how(side)


def _terminals(side: Wire, count: int) -> list[Message]:
    found: list[Message] = []
    left = count
    while left:
        found.append(side.read())
        if found[-1].kind == "E":
            break
        left -= found[-1].kind in TERMINALS
    return found


COUNTS = """select (select count(*) from pg_stat_activity where datname = current_database()
   and backend_type = 'client backend' and pid <> pg_backend_pid() and xact_start is not null),
 (select count(*) from pg_locks where locktype = 'advisory'
   and database = (select oid from pg_database where datname = current_database())),
 (select count(*) from pg_class where relpersistence = 't' and relkind = 'r')"""
"""Open transactions, advisory locks and temp tables of a database, all its sessions together."""


def counts(control: psycopg.Connection) -> tuple[int, ...]:
    found = control.execute(COUNTS).fetchone()
    assert found is not None
    return tuple(found)


def alike(controls: Iterable[psycopg.Connection], patience: float = 10.0, unsynced: int = 0) -> None:
    """As many transactions, locks and temp tables in the one database as in the other, once things came to rest.
    `unsynced` clients have begun a batch: what of it the door answers by itself has begun no transaction."""
    deadline = time.monotonic() + patience
    while True:
        pooler, direct = (counts(control) for control in controls)
        if pooler[1:] == direct[1:] and direct[0] - unsynced <= pooler[0] <= direct[0]:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"transactions, locks, temp tables: {pooler} behind the door, {direct} direct")
        time.sleep(0.01)
