"""What of a session outlives its transaction: which texts may have changed it, and how to ask the database.

A text only hints, and rather once too often; what there is to carry or to pin, the database itself says when
the transaction has ended (`probe`). So a SET that was rolled back, a temporary table that dropped itself or a
lock that was given up leave nothing behind, whatever the text looked like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from proxy.postgres.auth.startup import ENCODING, NAME, Settings
from proxy.postgres.wire import DATA_ROW, cells, messages, parameter

SETTINGS, TEMP, LOCKS, CURSORS, LISTEN, PREPARED, LOADED, COMPUTED, LOCAL, SCHEMA, FORGET, RESETS = (
    1 << bit for bit in range(12)
)
PROBED = SETTINGS | TEMP | LOCKS | CURSORS | LISTEN | PREPARED
WORDS = {
    TEMP: "a temporary table",
    LOCKS: "a session's advisory lock",
    CURSORS: "a cursor WITH HOLD",
    LISTEN: "LISTEN",
    PREPARED: "PREPARE",
    LOADED: "LOAD",
    COMPUTED: "set_config of a computed name",
}
MOST_NAMES = 100  # parameters of an app's own (`app.tenant`) that are remembered a client

# What a CommandComplete tells, by its first three letters.
TAGS = {
    b"SET": SETTINGS,
    b"RES": SETTINGS,
    b"LIS": LISTEN,
    b"UNL": LISTEN,
    b"PRE": PREPARED,
    b"DEA": PREPARED,
    b"DIS": FORGET,
    b"CLO": CURSORS,
    b"LOA": LOADED,
    b"ALT": SCHEMA,
    b"CRE": SCHEMA,
    b"DRO": SCHEMA | TEMP,
    b"IMP": SCHEMA,
    b"REF": SCHEMA,
    b"CAL": PROBED,  # nobody outside sees what they do
    b"DO\0": PROBED,
}

_LOCK = re.compile(rb"\bpg_(?:try_)?advisory_(?:un)?lock")
_TEMP = re.compile(rb"\b(?:temp|temporary|pg_temp\w*)\b")
_SET_CONFIG = re.compile(rb"\bset_config\s*\(\s*(?:'([^'\\]*)'|(.))", re.DOTALL)
_NAMED = re.compile(
    rb"\bset\s+(?:session\s+|local\s+)?((?:\w+|\"[^\"]+\")(?:\s*\.\s*(?:\w+|\"[^\"]+\"))+)\s*(?:=|to\b)"
)
_ONLY_LOCAL = re.compile(rb"\s*set\s+(?:local|transaction)\s[^;]*;?\s*")
# One statement that changes rows: its SET is none of a parameter.
_UPDATE = re.compile(rb"\s*(?:update|insert)\b[^;]*;?\s*", re.IGNORECASE)
_RESETS = re.compile(
    rb"\s*(?:(?:discard|reset)\s+(?P<all>all)"
    rb"|(?:reset\s+|set\s+(?:session\s+)?(?=\S+\s*(?:=|\bto\b)\s*default\b))\"?(?P<one>application_name|client_encoding)\b\"?"
    rb"|set\s+(?P<names>names)\s+default)[^;]*;?\s*"
)
_DEALLOCATE = re.compile(rb"\s*deallocate\s+(?:prepare\s+)?(\"(?:[^\"]|\"\")+\"|\w+)\s*;?\s*", re.IGNORECASE)
_PINS = (
    (LISTEN, "listen", re.compile(rb"(?:^|;)\s*listen\s")),
    (LOADED, "load", re.compile(rb"(?:^|;)\s*load\s")),
    (PREPARED, "prepare", re.compile(rb"(?:^|;)\s*prepare\s+(?!transaction\b)")),
    (CURSORS, "hold", re.compile(rb"\bwith\s+hold\b")),
    (LOCKS, "advisory", re.compile(rb"\bpg_advisory_lock")),
    (
        TEMP,
        "temp",
        re.compile(
            rb"\bcreate\s+(?:or\s+replace\s+)?(?:local\s+|global\s+)?temp(?:orary)?\s+(?!.*\bon\s+commit\s+drop\b)"
            rb"|\binto\s+temp(?:orary)?\s",
            re.DOTALL,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Hints:
    """`flags` of what a text may leave behind; `names` of the app's own parameters that it mentions;
    `deallocates`: the statement that it gives up, in SQL (psycopg does); `pins`: what of it is certain to hold the
    connection, as far as a text can be; `resets`: those of NAME and ENCODING that it leads back to what the connection
    was opened with."""

    flags: int = 0
    names: tuple[bytes, ...] = ()
    deallocates: bytes = b""
    pins: int = 0
    resets: tuple[bytes, ...] = ()


NONE = Hints()


def inspect(text: bytes) -> Hints:
    """What a text may leave behind that no tag tells of. 2 µs where there is nothing."""
    word = text.decode("latin-1").lower()  # bytes are eight times as slow to search
    sets = "set" in word
    if sets and _UPDATE.fullmatch(text) is not None:
        sets = "set_config" in word
    if (
        not sets
        and "temp" not in word
        and "hold" not in word
        and "listen" not in word
        and "advisory" not in word
        and "prepare" not in word
        and "deallocate" not in word
        and "discard" not in word
        and "load" not in word
    ):
        return NONE
    low = text.lower()
    flags = 0
    names: list[bytes] = []
    if "advisory" in word and _LOCK.search(low):
        flags |= LOCKS
    if "temp" in word and _TEMP.search(low):
        flags |= TEMP
    if "hold" in word:
        flags |= CURSORS
    if sets:
        if "set_config" in word:
            for literal, _ in _SET_CONFIG.findall(low):
                flags |= SETTINGS
                if not literal:
                    flags |= COMPUTED
                elif b"." in literal:
                    names.append(literal)
        if "." in word:
            names += [re.sub(rb"[\"\s]", b"", name) for name in _NAMED.findall(low)]
        if _ONLY_LOCAL.fullmatch(low):
            flags |= LOCAL
        elif low.lstrip()[:2] == b"do":
            flags |= SETTINGS
    if "deallocate" in word or "discard" in word:
        flags |= FORGET
    found = _DEALLOCATE.fullmatch(text) if flags & FORGET else None
    if found is not None and found[1].lower() != b"all":
        name = found[1]
        name = name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name.lower()
        return Hints(PREPARED | FORGET, (), name)
    pins = 0
    for flag, hint, pattern in _PINS:
        if hint in word and pattern.search(low):
            pins |= flag
    resets = _resets(low)
    if not flags and not names and not pins and not resets:
        return NONE
    return Hints(flags, tuple(dict.fromkeys(names)), pins=pins, resets=resets)


def _resets(low: bytes) -> tuple[bytes, ...]:
    found = _RESETS.fullmatch(low)
    if found is None:
        return ()
    return (NAME, ENCODING) if found["all"] else (found["one"] or ENCODING,)


def words(flags: int) -> str:
    return ", ".join(word for flag, word in WORDS.items() if flags & flag)


def probe(flags: int, names: Iterable[bytes] = ()) -> bytes:
    """The query that asks a connection what it holds, for the hints at hand: rows of what, name, value. A NAME or
    ENCODING that nobody set, or that was RESET, has no row."""
    parts: list[bytes] = []
    if flags & SETTINGS:
        parts.append(
            b"SELECT 's'::text, name, setting FROM pg_catalog.pg_settings WHERE source = 'session'"
            b" AND (setting IS DISTINCT FROM reset_val OR name IN ('application_name', 'client_encoding'))"
            b" AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')"
        )
        asked = (b"role", b"session_authorization", *names)
        values = b", ".join(b"(" + literal(name) + b"::text)" for name in asked)
        parts.append(
            b"SELECT 'n', name, pg_catalog.current_setting(name, true) FROM (VALUES " + values + b") AS asked (name)"
        )
    for flag, source in _SOURCES.items():
        if flags & flag:
            parts.append(b"(SELECT '%d', ''::text, ''::text FROM %b LIMIT 1)" % (flag, source))
    return b" UNION ALL ".join(parts)


_SOURCES = {
    TEMP: b"(SELECT relnamespace FROM pg_catalog.pg_class UNION ALL SELECT pronamespace FROM pg_catalog.pg_proc"
    b" UNION ALL SELECT typnamespace FROM pg_catalog.pg_type) AS named (place)"
    b" WHERE place = pg_catalog.pg_my_temp_schema()",
    LOCKS: b"pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()",
    CURSORS: b"pg_catalog.pg_cursors WHERE is_holdable",
    LISTEN: b"pg_catalog.pg_listening_channels()",
    PREPARED: b"pg_catalog.pg_prepared_statements WHERE from_sql",
}


def answer(data: bytes) -> tuple[dict[bytes, bytes], int]:
    """What a probe's answer says: the settings, and flags of what holds the connection."""
    settings: dict[bytes, bytes] = {}
    held = 0
    for kind, body in messages(data):
        if kind == DATA_ROW:
            what, name, value = cells(body)
            if what == b"s":
                settings[name or b""] = value or b""
            elif what != b"n":
                held |= int(what or b"0")
            elif value is not None and not (name == b"role" and value == b"none"):
                settings[name or b""] = value
    return settings, held


def change(applied: Settings, wanted: Settings, defined: Set[bytes] = frozenset()) -> tuple[bytes, bool]:
    """The query that turns what a connection is set to into what its next client wants, and whether it sets
    anything: a RESET cannot fail, a SET can. Empty: nothing to do.

    A parameter of an app's own is never undefined again, but empty: those of `defined` are so already.
    """
    gone = [name for name, value in applied.items() if name not in wanted and (value or name not in defined)]
    new = [name for name, value in wanted.items() if applied.get(name, b"" if name in defined else None) != value]
    text = b"".join(b"RESET %b;" % identifier(name) for name in sorted(gone, key=_first))
    for name in sorted(new, key=_last):
        text += b"SELECT pg_catalog.set_config(%b, %b, false);" % (literal(name), literal(wanted[name]))
    return text, bool(new)


def setting(one: tuple[bytes, bytes]) -> bytes:
    """A SET, which unlike `set_config` takes no snapshot: what a transaction may say only before its first query, it
    may still say."""
    return b"SET %b TO %b" % (identifier(one[0]), literal(one[1]))


def literal(value: bytes) -> bytes:
    """Right whatever standard_conforming_strings is."""
    return b"E'" + value.replace(b"\\", b"\\\\").replace(b"'", b"''") + b"'"


def identifier(name: bytes) -> bytes:
    return b".".join(b'"' + part.replace(b'"', b'""') + b'"' for part in name.split(b"."))


def _first(name: bytes) -> int:
    return {b"role": 0, b"session_authorization": 1}.get(name, 2)


def _last(name: bytes) -> int:
    return {b"session_authorization": 0, b"role": 2}.get(name, 1)


def greeting(params: Mapping[bytes, bytes], shown: Mapping[bytes, bytes]) -> bytes:
    """The ParameterStatus messages that lead from what a client was shown to what holds."""
    return b"".join(parameter(name, value) for name, value in params.items() if shown.get(name) != value)
