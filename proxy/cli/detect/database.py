"""The PostgreSQL that an app speaks to: by one address, or put together from parts."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from proxy.cli.detect.env_reads import EnvRead

DRIVER_PACKAGES = {"asyncpg", "psycopg", "psycopg2", "psycopg2-binary", "psycopg-binary", "pg8000", "pg", "postgres"}
DRIVER_PACKAGES |= {"@prisma/client", "pg-promise", "aiopg"}
URL_VARIABLES: tuple[str, ...] = (
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
PART_PATTERNS = {
    "host": r"HOST(?:NAME)?|SERVER",
    "port": r"PORT",
    "user": r"USER(?:NAME)?",
    "password": r"PASS(?:WORD|WD)?",
    "database": r"NAME|DATABASE|DB|DBNAME",
}
_VARIABLE_PREFIX = r"(?:DB|DATABASE|POSTGRES|POSTGRESQL|PG|SQL|PSQL)"


@dataclass(frozen=True, slots=True)
class DetectedDatabase:
    """How the app is told where its database is.

    Attributes:
        url: the variable that has the whole address, empty if it is put together from parts.
        parts: the variable of each part that has one.
        defaults: what the code uses for a part if its variable is not set.
        location: FILE:LINE where it is read.
    """

    url: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    location: str = ""

    @property
    def missing_parts(self) -> list[str]:
        """Parts that the code fixes. No pool is possible then: the pool has an address and a password of its own, which
        the app has to be given."""
        return [] if self.url else [part for part in PART_PATTERNS if part not in self.parts]

    def __str__(self) -> str:
        if self.url:
            return f"PostgreSQL, by {self.url}"
        return f"PostgreSQL, by {', '.join(self.parts.values())} ({self.location})"


def find_database(
    packages: Collection[str], settings: Sequence[EnvRead], *, mentions_url: bool
) -> DetectedDatabase | None:
    """The database, None if the app brings no driver of PostgreSQL or does not say where it is.

    `mentions_url`: the code has the word DATABASE_URL in it, however it reads the variable.
    """
    if not DRIVER_PACKAGES & set(packages):
        return None
    by_name = {one.name: one for one in settings}
    # By the order of the list: the pool stands before one database only.
    for name in URL_VARIABLES:
        if name in by_name:
            return DetectedDatabase(url=name, location=by_name[name].location)
    parts: dict[str, EnvRead] = {}
    for part, words in PART_PATTERNS.items():
        for one in settings:
            # APP_DB_HOST counts, REDIS_HOST does not.
            if re.fullmatch(rf"(?:\w+_)?{_VARIABLE_PREFIX}_?(?:{words})", one.name):
                parts.setdefault(part, one)
    if "host" in parts and {"user", "password", "database"} & parts.keys():
        return DetectedDatabase(
            parts={part: one.name for part, one in parts.items()},
            defaults={part: one.default for part, one in parts.items() if one.default},
            location=parts["host"].location,
        )
    # Prisma reads the variable by its schema, which is no source file.
    return DetectedDatabase(url="DATABASE_URL") if mentions_url or "@prisma/client" in packages else None
