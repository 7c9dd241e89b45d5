"""What of a session outlives its transaction: which texts may have changed it, and how to ask the database.

A text only hints, and rather once too often; what there is to carry or to pin, the database itself says when the
transaction has ended (`probe_query`). So a SET that was rolled back, a temporary table that dropped itself or a lock
that was given up leave nothing behind, whatever the text looked like.

Each flag is a kind of state: SETTING is carried to the next server, the others of PROBE_FLAGS and LIBRARY pin the
client to the one it has, SCHEMA makes all statements be prepared anew, and DISCARD, RESET, LOCAL_SETTING and
COMPUTED_SETTING say what a text does to settings and names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache

from proxy.postgres.auth.startup import APPLICATION_NAME, CLIENT_ENCODING, Settings
from proxy.postgres.wire import DATA_ROW, parameter_status, row_values, split_messages

(
    SETTING,
    TEMP_TABLE,
    ADVISORY_LOCK,
    HOLD_CURSOR,
    LISTEN,
    SQL_PREPARED,
    LIBRARY,
    COMPUTED_SETTING,
    LOCAL_SETTING,
    SCHEMA,
    DISCARD,
    RESET,
) = (1 << bit for bit in range(12))
PROBE_FLAGS = SETTING | TEMP_TABLE | ADVISORY_LOCK | HOLD_CURSOR | LISTEN | SQL_PREPARED
PIN_REASONS = {
    TEMP_TABLE: "a temporary table",
    ADVISORY_LOCK: "a session's advisory lock",
    HOLD_CURSOR: "a cursor WITH HOLD",
    LISTEN: "LISTEN",
    SQL_PREPARED: "PREPARE",
    LIBRARY: "LOAD",
    COMPUTED_SETTING: "set_config of a computed name",
}
MAX_CUSTOM_NAMES = 100  # parameters of an app's own (`app.tenant`) that are remembered a client

# What a CommandComplete tells, by its first three letters (a command that is not here leaves nothing behind).
TAG_FLAGS = {
    b"SET": SETTING,
    b"RES": SETTING,
    b"LIS": LISTEN,
    b"UNL": LISTEN,
    b"PRE": SQL_PREPARED,
    b"DEA": SQL_PREPARED,
    b"DIS": DISCARD,
    b"CLO": HOLD_CURSOR,
    b"LOA": LIBRARY,
    b"ALT": SCHEMA,
    b"CRE": SCHEMA,
    b"DRO": SCHEMA | TEMP_TABLE,
    b"IMP": SCHEMA,
    b"REF": SCHEMA,
    b"CAL": PROBE_FLAGS,  # nobody outside sees what they do
    b"DO\0": PROBE_FLAGS,
}

_LOCK_CALL = re.compile(rb"\bpg_(?:try_)?advisory_(?:un)?lock")
_TEMP_NAME = re.compile(rb"\b(?:temp|temporary|pg_temp\w*)\b")
_SET_CONFIG = re.compile(rb"\bset_config\s*\(\s*(?:'([^'\\]*)'|(.))", re.DOTALL)
_CUSTOM_SET = re.compile(
    rb"\bset\s+(?:session\s+|local\s+)?((?:\w+|\"[^\"]+\")(?:\s*\.\s*(?:\w+|\"[^\"]+\"))+)\s*(?:=|to\b)"
)
_LOCAL_SET = re.compile(rb"\s*set\s+(?:local|transaction)\s[^;]*;?\s*")
# One statement that changes rows: its SET is none of a parameter.
_ROW_CHANGE = re.compile(rb"\s*(?:update|insert)\b[^;]*;?\s*", re.IGNORECASE)
_RESET_TEXT = re.compile(
    rb"\s*(?:(?:discard|reset)\s+(?P<all>all)"
    rb"|(?:reset\s+|set\s+(?:session\s+)?(?=\S+\s*(?:=|\bto\b)\s*default\b))\"?(?P<one>application_name|client_encoding)\b\"?"
    rb"|set\s+(?P<names>names)\s+default)[^;]*;?\s*"
)
_DEALLOCATE = re.compile(rb"\s*deallocate\s+(?:prepare\s+)?(\"(?:[^\"]|\"\")+\"|\w+)\s*;?\s*", re.IGNORECASE)
_PIN_PATTERNS = (
    (LISTEN, "listen", re.compile(rb"(?:^|;)\s*listen\s")),
    (LIBRARY, "load", re.compile(rb"(?:^|;)\s*load\s")),
    (SQL_PREPARED, "prepare", re.compile(rb"(?:^|;)\s*prepare\s+(?!transaction\b)")),
    (HOLD_CURSOR, "hold", re.compile(rb"\bwith\s+hold\b")),
    (ADVISORY_LOCK, "advisory", re.compile(rb"\bpg_advisory_lock")),
    (
        TEMP_TABLE,
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
    """`flags` of what a text may leave behind; `custom_names` of the app's own parameters that it mentions;
    `deallocates`: the statement that it gives up, in SQL (psycopg does); `pin_flags`: what of it is certain to pin the
    connection, as far as a text can be; `reset_names`: those of application_name and client_encoding that it leads back
    to what the connection was opened with."""

    flags: int = 0
    custom_names: tuple[bytes, ...] = ()
    deallocates: bytes = b""
    pin_flags: int = 0
    reset_names: tuple[bytes, ...] = ()


NO_HINTS = Hints()


def inspect_text(text: bytes) -> Hints:
    """What a text may leave behind that no command tag tells of. 2 µs if there is nothing: nearly every text goes this
    way, so it is looked at closely only if it has one of a few words."""
    lowered = text.decode("latin-1").lower()  # bytes are eight times as slow to search
    sets = "set" in lowered
    # Most texts with the word are an UPDATE … SET, which is told by its begin.
    if sets and _ROW_CHANGE.fullmatch(text) is not None:
        sets = "set_config" in lowered
    if not sets and _has_no_word(lowered):
        return NO_HINTS
    return _inspect_closely(text, lowered, sets)


def names_no_state(text: bytes) -> bool:
    """Whether it has none of the words by which a text is looked at closely."""
    lowered = text.decode("latin-1").lower()
    return "set" not in lowered and _has_no_word(lowered)


def _has_no_word(lowered: str) -> bool:
    return (
        "temp" not in lowered
        and "hold" not in lowered
        and "listen" not in lowered
        and "advisory" not in lowered
        and "prepare" not in lowered
        and "deallocate" not in lowered
        and "discard" not in lowered
        and "load" not in lowered
    )


@lru_cache(maxsize=1000)
def is_plain_body(body: bytes) -> bool:
    """Whether a Parse's body after its name is whole, and its text leaves nothing behind. A text with parameters comes
    again and again, so what was found is remembered."""
    end = body.find(b"\0")
    return end >= 0 and inspect_text(body[:end]) is NO_HINTS


def _inspect_closely(text: bytes, lowered: str, sets: bool) -> Hints:
    # A DEALLOCATE of one name is the only text of which more is to be known than flags.
    low = text.lower()
    discards = "deallocate" in lowered or "discard" in lowered
    if discards and (name := _deallocated_name(text)):
        return Hints(SQL_PREPARED | DISCARD, deallocates=name)
    flags = DISCARD if discards else 0
    names: list[bytes] = []
    if "advisory" in lowered and _LOCK_CALL.search(low):
        flags |= ADVISORY_LOCK
    if "temp" in lowered and _TEMP_NAME.search(low):
        flags |= TEMP_TABLE
    if "hold" in lowered:
        flags |= HOLD_CURSOR
    if sets:
        setting_flags, names = _inspect_settings(low)
        flags |= setting_flags
    pin_flags = 0
    for flag, word, pattern in _PIN_PATTERNS:
        if word in lowered and pattern.search(low):
            pin_flags |= flag
    reset_names = _reset_names(low)
    if not flags and not names and not pin_flags and not reset_names:
        return NO_HINTS
    return Hints(flags, tuple(dict.fromkeys(names)), pin_flags=pin_flags, reset_names=reset_names)


def _inspect_settings(low: bytes) -> tuple[int, list[bytes]]:
    """The flags of what a text sets, and the app's own parameters among it."""
    flags, names = 0, []
    for quoted, _ in _SET_CONFIG.findall(low) if b"set_config" in low else ():
        flags |= SETTING
        if not quoted:
            flags |= COMPUTED_SETTING
        elif b"." in quoted:
            names.append(quoted)
    if b"." in low:
        names += [re.sub(rb"[\"\s]", b"", name) for name in _CUSTOM_SET.findall(low)]
    # A SET LOCAL has the tag of a SET, and the tag of a DO block says nothing of what it sets.
    if _LOCAL_SET.fullmatch(low):
        flags |= LOCAL_SETTING
    elif low.lstrip()[:2] == b"do":
        flags |= SETTING
    return flags, names


def _deallocated_name(text: bytes) -> bytes:
    """The statement that a DEALLOCATE gives up, b"" if the text is none or gives up all."""
    found = _DEALLOCATE.fullmatch(text)
    if found is None or found[1].lower() == b"all":
        return b""
    name = found[1]
    return name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name.lower()


def _reset_names(low: bytes) -> tuple[bytes, ...]:
    found = _RESET_TEXT.fullmatch(low)
    if found is None:
        return ()
    return (APPLICATION_NAME, CLIENT_ENCODING) if found["all"] else (found["one"] or CLIENT_ENCODING,)


def describe_pins(flags: int) -> str:
    return ", ".join(word for flag, word in PIN_REASONS.items() if flags & flag)


# What a connection may hold, and from which catalogue it is seen.
_PROBE_SOURCES = {
    TEMP_TABLE: b"(SELECT relnamespace FROM pg_catalog.pg_class UNION ALL SELECT pronamespace FROM pg_catalog.pg_proc"
    b" UNION ALL SELECT typnamespace FROM pg_catalog.pg_type) AS named (place)"
    b" WHERE place = pg_catalog.pg_my_temp_schema()",
    ADVISORY_LOCK: b"pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()",
    HOLD_CURSOR: b"pg_catalog.pg_cursors WHERE is_holdable",
    LISTEN: b"pg_catalog.pg_listening_channels()",
    SQL_PREPARED: b"pg_catalog.pg_prepared_statements WHERE from_sql",
}


def probe_query(flags: int, names: Iterable[bytes] = ()) -> bytes:
    """The query that asks a connection what it holds, of the kinds of `flags`: rows of what, name, value. What is `s`
    for a setting, `n` for one that was asked for by name, else the flag. An application_name or client_encoding that
    nobody set, or that was RESET, has no row."""
    parts: list[bytes] = []
    if flags & SETTING:
        parts.append(
            b"SELECT 's'::text, name, setting FROM pg_catalog.pg_settings WHERE source = 'session'"
            b" AND (setting IS DISTINCT FROM reset_val OR name IN ('application_name', 'client_encoding'))"
            b" AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')"
        )
        asked = (b"role", b"session_authorization", *names)
        values = b", ".join(b"(" + quote_literal(name) + b"::text)" for name in asked)
        parts.append(
            b"SELECT 'n', name, pg_catalog.current_setting(name, true) FROM (VALUES " + values + b") AS asked (name)"
        )
    for flag, source in _PROBE_SOURCES.items():
        if flags & flag:
            parts.append(b"(SELECT '%d', ''::text, ''::text FROM %b LIMIT 1)" % (flag, source))
    return b" UNION ALL ".join(parts)


def parse_probe(data: bytes) -> tuple[dict[bytes, bytes], int]:
    """What a probe's answer says: the settings, and flags of what holds the connection."""
    settings: dict[bytes, bytes] = {}
    held = 0
    for kind, body in split_messages(data):
        if kind == DATA_ROW:
            what, name, value = row_values(body)
            if what == b"s":
                settings[name or b""] = value or b""
            elif what != b"n":
                held |= int(what or b"0")
            elif value is not None and not (name == b"role" and value == b"none"):
                settings[name or b""] = value
    return settings, held


def settings_query(applied: Settings, wanted: Settings, defined: Set[bytes] = frozenset()) -> tuple[bytes, bool]:
    """The query that turns what a connection is set to into what its next client wants, and whether it sets
    anything: a RESET cannot fail, a SET can. Empty: nothing to do.

    A parameter of an app's own is never undefined again, but empty: those of `defined` are so already.
    """
    # What both have alike is left alone, so that two clients with the same settings cost each other nothing.
    gone = [name for name, value in applied.items() if name not in wanted and (value or name not in defined)]
    new = [name for name, value in wanted.items() if applied.get(name, b"" if name in defined else None) != value]
    text = b"".join(b"RESET %b;" % quote_identifier(name) for name in sorted(gone, key=_reset_order))
    for name in sorted(new, key=_set_order):
        text += b"SELECT pg_catalog.set_config(%b, %b, false);" % (quote_literal(name), quote_literal(wanted[name]))
    return text, bool(new)


def set_statement(one: tuple[bytes, bytes]) -> bytes:
    """A SET, which unlike `set_config` takes no snapshot: what a transaction may say only before its first query, it
    may still say."""
    return b"SET %b TO %b" % (quote_identifier(one[0]), quote_literal(one[1]))


def quote_literal(value: bytes) -> bytes:
    """Right whatever standard_conforming_strings is."""
    return b"E'" + value.replace(b"\\", b"\\\\").replace(b"'", b"''") + b"'"


def quote_identifier(name: bytes) -> bytes:
    return b".".join(b'"' + part.replace(b'"', b'""') + b'"' for part in name.split(b"."))


# A role is one that the session's user may take: it is reset before that user, and set after it.
def _reset_order(name: bytes) -> int:
    return {b"role": 0, b"session_authorization": 1}.get(name, 2)


def _set_order(name: bytes) -> int:
    return {b"session_authorization": 0, b"role": 2}.get(name, 1)


def parameter_changes(params: Mapping[bytes, bytes], shown: Mapping[bytes, bytes]) -> bytes:
    """The ParameterStatus messages that lead from what a client was shown to what holds."""
    return b"".join(parameter_status(name, value) for name, value in params.items() if shown.get(name) != value)
