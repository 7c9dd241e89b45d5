"""The PostgreSQL that an app speaks to: by one address, or put together from parts."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from proxy.cli.detect.env_reads import Setting

DRIVERS = {"asyncpg", "psycopg", "psycopg2", "psycopg2-binary", "psycopg-binary", "pg8000", "pg", "postgres"}
DRIVERS |= {"@prisma/client", "pg-promise", "aiopg"}
URLS: tuple[str, ...] = (
    "DATABASE_URL",
    "POSTGRES_URL",
    "POSTGRESQL_URL",
    "POSTGRES_DSN",
    "PG_URL",
    "DB_URL",
    "SQLALCHEMY_DATABASE_URI",
    "DATABASE_DSN",
    "DB_DSN",
    "POSTGRES_URI",
    "DATABASE_URI",
    "PG_DSN",
)
PARTS = {
    "host": r"HOST(?:NAME)?|SERVER",
    "port": r"PORT",
    "user": r"USER(?:NAME)?",
    "password": r"PASS(?:WORD|WD)?",
    "database": r"NAME|DATABASE|DB|DBNAME",
}
_PREFIX = r"(?:DB|DATABASE|POSTGRES|POSTGRESQL|PG|SQL|PSQL)"


@dataclass(frozen=True, slots=True)
class Database:
    """`url` names its variable; else `parts` names the variable of each part, `defaults` what holds without it."""

    url: str = ""
    parts: dict[str, str] = field(default_factory=dict)  # by part
    defaults: dict[str, str] = field(default_factory=dict)
    where: str = ""

    @property
    def missing(self) -> list[str]:
        """Parts that the code fixes, so that they cannot be told it: the pool has an address and a password of its
        own."""
        return [] if self.url else [part for part in PARTS if part not in self.parts]

    def __str__(self) -> str:
        if self.url:
            return f"PostgreSQL, by {self.url}"
        return f"PostgreSQL, by {', '.join(self.parts.values())} ({self.where})"


def find_database(needs: Collection[str], settings: Sequence[Setting], *, spoken_of: bool) -> Database | None:
    """`spoken_of`: the code has the word DATABASE_URL in it, however it reads it."""
    if not DRIVERS & set(needs):
        return None
    by_name = {one.name: one for one in settings}
    for name in URLS:
        if name in by_name:
            return Database(url=name, where=by_name[name].where)
    parts: dict[str, Setting] = {}
    for part, words in PARTS.items():
        for one in settings:
            if re.fullmatch(rf"(?:\w+_)?{_PREFIX}_?(?:{words})", one.name):
                parts.setdefault(part, one)
    if "host" in parts and {"user", "password", "database"} & parts.keys():
        return Database(
            parts={part: one.name for part, one in parts.items()},
            defaults={part: one.default for part, one in parts.items() if one.default},
            where=parts["host"].where,
        )
    return Database(url="DATABASE_URL") if spoken_of or "@prisma/client" in needs else None
