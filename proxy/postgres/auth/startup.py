"""The first packet of a connection, and what it asks the session to be like."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

SSL_REQUEST = 80877103
GSS_REQUEST = 80877104
CANCEL_REQUEST = 80877102
MAJOR = 3
MOST = 10_000  # bytes; PostgreSQL's own bound of a startup packet

# A client is told a number of a process that no machine has (Linux ends at 1 << 22): a pg_terminate_backend or
# pg_cancel_backend of it hits nobody, and no NOTIFY of somebody else's bears it.
PROCESSES = 1 << 30

Settings = Mapping[bytes, bytes]
Key = tuple[tuple[str, str], ...]

# Every client has these two, so they are set on whichever connection it gets. Whatever else a startup packet
# names stays out of reach of RESET, so it takes a connection that was opened with it.
NAME = b"application_name"
ENCODING = b"client_encoding"
ELSEWHERE = ""  # in a key: the database, where it is another than the policy's (a startup packet has no such name)


def process(client: int) -> int:
    """What a client is told is the process that serves it, by its number; and back."""
    return PROCESSES ^ client


def elsewhere(key: Key) -> str:
    """The database that connections of this key lead to, "" for the policy's."""
    return key[0][1] if key and key[0][0] == ELSEWHERE else ""


@dataclass(frozen=True, slots=True)
class Startup:
    """`key` is what a server connection must have been opened with; `unknown` are options of later protocols."""

    minor: int
    user: str
    database: str
    replication: bool
    name: str
    encoding: str | None
    key: Key
    unknown: tuple[bytes, ...] = ()


def packet(data: bytes) -> tuple[int, bytes] | None:
    """The code and body of a first packet, None while it is not whole. Raises ValueError where it is none."""
    if len(data) < 8:
        return None
    length, code = struct.unpack_from(">II", data)
    if not 8 <= length <= MOST:
        raise ValueError("its length is none of a startup packet")
    if len(data) < length:
        return None
    return code, data[8:length]


def read(code: int, body: bytes) -> Startup:
    """Raises ValueError in one clause."""
    if code >> 16 != MAJOR:
        raise ValueError(f"protocol version {code >> 16}.{code & 0xFFFF} is not spoken here; 3.0 is")
    words = body.split(b"\0")
    if len(words) < 2 or words[-1] or words[-2]:
        raise ValueError("the startup packet does not end as it must")
    words = words[:-2]
    if len(words) % 2:
        raise ValueError("the startup packet has a name without a value")
    named = dict(zip(words[::2], words[1::2], strict=True))
    unknown = tuple(name for name in named if name.startswith(b"_pq_."))
    text = {_text(name): _text(value) for name, value in named.items() if name not in unknown}
    user = text.pop("user", "")
    if not user:
        raise ValueError("the startup packet names no user")
    database = text.pop("database", "") or user
    replication = text.pop("replication", "false").lower() not in ("false", "off", "no", "0", "f", "n", "of")
    soft, options = _options(text.pop("options", ""))
    name = text.pop("application_name", soft.pop("application_name", ""))
    encoding = text.pop("client_encoding", soft.pop("client_encoding", None))
    wanted = {**soft, **text}
    if options:
        wanted["options"] = options
    return Startup(
        code & 0xFFFF,
        user,
        database,
        replication,
        name,
        None if encoding is None else _encoding(encoding),
        tuple(sorted(wanted.items())),
        unknown,
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _options(text: str) -> tuple[dict[str, str], str]:
    """The settings that `options` names (`-c name=value`, `--name=value`), and what else it says."""
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


def _encoding(value: str) -> str:
    """asyncpg sends 'utf-8' with the quotes: one name for what is one encoding."""
    plain = re.sub(r"[^a-z0-9]", "", value.lower())
    return "UTF8" if plain in ("utf8", "unicode") else value.strip("'\"").upper()
