"""The first packet of a connection, and what it asks the session to be like (54.2.1 Start-up, 54.7 StartupMessage)."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

# What a first packet may ask for in place of a version: the high half is 1234, which no version is.
SSL_REQUEST = 80877103
GSS_REQUEST = 80877104
CANCEL_REQUEST = 80877102
PROTOCOL_MAJOR = 3
MAX_PACKET_BYTES = 10_000  # PostgreSQL's own bound of a start-up packet

# A client is told a number of a process that no machine has (Linux ends at 1 << 22): a pg_terminate_backend or
# pg_cancel_backend of it hits nobody, and no NOTIFY of somebody else's bears it.
FAKE_PID_BASE = 1 << 30

Settings = Mapping[bytes, bytes]
PoolKey = tuple[tuple[str, str], ...]  # settings by name, sorted; connections of one key are interchangeable

# Every client has these two, so they are set on whichever connection it gets. What else a start-up packet names is a
# default that RESET returns to, so it takes a connection that was opened with it.
APPLICATION_NAME = b"application_name"
CLIENT_ENCODING = b"client_encoding"
OTHER_DATABASE = ""  # the name in a key of a database that is not the policy's (no setting has that name)


def share_settings(settings: Settings) -> Settings:
    """The one object for all that have these values, which is never changed: nearly all clients and servers of an app
    have the same, and who compares two by identity is done at once. Beside one server that was opened under another
    name, 18 % of the loans had been compared value by value."""
    return _shared_settings(tuple(settings.items()))


@lru_cache(maxsize=200)
def _shared_settings(items: tuple[tuple[bytes, bytes], ...]) -> Settings:
    return dict(items)


def fake_pid(client: int) -> int:
    """The number of the process that a client is told serves it, by the client's own number; and back."""
    return FAKE_PID_BASE ^ client


def other_database(key: PoolKey) -> str:
    """The database that connections of this key lead to, "" for the policy's."""
    return key[0][1] if key and key[0][0] == OTHER_DATABASE else ""


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """What a client has asked for. `pool_key` is what its server connection must have been opened with;
    `minor_version` and `unknown_options` are of later protocols (`_pq_.…`); `encoding` is None if it named none."""

    minor_version: int
    user: str
    database: str
    replication: bool
    application_name: str
    encoding: str | None
    pool_key: PoolKey
    unknown_options: tuple[bytes, ...] = ()


def split_packet(data: bytes) -> tuple[int, bytes] | None:
    """The code and body of a first packet, None while it is not whole. Raises ValueError if it is none."""
    if len(data) < 8:
        return None
    length, code = struct.unpack_from(">II", data)
    if not 8 <= length <= MAX_PACKET_BYTES:
        raise ValueError("its length is none of a startup packet")
    if len(data) < length:
        return None
    return code, data[8:length]


def parse_startup(code: int, body: bytes) -> StartupMessage:
    """Raises ValueError, whose text is one clause without an end."""
    if code >> 16 != PROTOCOL_MAJOR:
        raise ValueError(f"protocol version {code >> 16}.{code & 0xFFFF} is not spoken here; 3.0 is")
    words = body.split(b"\0")
    if len(words) < 2 or words[-1] or words[-2]:
        raise ValueError("the startup packet does not end as it must")
    words = words[:-2]
    if len(words) % 2:
        raise ValueError("the startup packet has a name without a value")
    # Protocol options (_pq_.…) are of later minor versions, and are negotiated rather than refused.
    named = dict(zip(words[::2], words[1::2], strict=True))
    unknown = tuple(name for name in named if name.startswith(b"_pq_."))
    text = {decode_text(name): decode_text(value) for name, value in named.items() if name not in unknown}
    user = text.pop("user", "")
    if not user:
        raise ValueError("the startup packet names no user")
    database = text.pop("database", "") or user
    replication = text.pop("replication", "false").lower() not in ("false", "off", "no", "0", "f", "n", "of")
    # `options` is a command line of the server's: its settings count less than those that are named directly.
    soft, options = parse_options(text.pop("options", ""))
    name = text.pop("application_name", soft.pop("application_name", ""))
    encoding = text.pop("client_encoding", soft.pop("client_encoding", None))
    wanted = {**soft, **text}
    if options:
        wanted["options"] = options
    return StartupMessage(
        code & 0xFFFF,
        user,
        database,
        replication,
        name,
        None if encoding is None else normalize_encoding(encoding),
        tuple(sorted(wanted.items())),
        unknown,
    )


def decode_text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def parse_options(text: str) -> tuple[dict[str, str], str]:
    """The settings that `options` names (`-c name=value`, `--name=value`), and what else it says. A backslash quotes
    the next sign, as in libpq."""
    words = [re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|[^\s\\])+", text)]
    found: dict[str, str] = {}
    left: list[str] = []
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            word = "-c" + words.pop(0)
        name, equals, value = word[2:].partition("=")
        if word[:2] in ("-c", "--") and equals:
            found[name.replace("-", "_")] = value
        else:
            left.append(re.sub(r"([\\\s])", r"\\\1", word))
    return found, " ".join(left)


def normalize_encoding(value: str) -> str:
    """asyncpg sends 'utf-8' with the quotes: one name for what is one encoding."""
    plain = re.sub(r"[^a-z0-9]", "", value.lower())
    return "UTF8" if plain in ("utf8", "unicode") else value.strip("'\"").upper()
