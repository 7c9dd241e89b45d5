"""The suites of others that go through the database door: where each lies, and how it learns of a database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from psycopg.conninfo import make_conninfo


def parts(url: str) -> dict[str, str]:
    """libpq's names for the parts of a URL."""
    split = urlsplit(url)
    assert split.hostname is not None
    return {
        "host": split.hostname,
        "port": str(split.port),
        "user": unquote(split.username or ""),
        "password": unquote(split.password or ""),
        "dbname": split.path.lstrip("/"),
    }


def libpq(url: str) -> dict[str, str]:
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    return {names[name]: value for name, value in parts(url).items()}


@dataclass(frozen=True)
class Suite:
    """`folder` is that of the repository's name below SUITES; `tests` what pytest gets, `environ` and `arguments`
    what else, for a database's URL. `ignored`: why what is left out is."""

    name: str
    folder: str
    tests: Sequence[str]
    environ: Callable[[str], Mapping[str, str]] = libpq
    arguments: Callable[[str], Sequence[str]] = lambda url: ()
    statements: Sequence[str] = ()
    alone: bool = True
    database: str = "suites"
    reasons: Mapping[str, str] = field(default_factory=dict)

    def reason(self, test: str) -> str:
        """Why it differs; "" where that is not known."""
        return next((why for part, why in self.reasons.items() if part in test), "")


def _dialect(driver: str) -> Callable[[str], Sequence[str]]:
    def arguments(url: str) -> Sequence[str]:
        return ("--dburi", url.replace("postgresql://", f"postgresql+{driver}://"), "-p", "no:randomly")

    return arguments


_DIALECTS = ("test/dialect/postgresql", "test/dialect/test_suite.py", "test/engine/test_pool.py", "test/engine/test_transaction.py",
             "test/engine/test_reconnect.py", "test/engine/test_reflection.py", "test/engine/test_execute.py")  # fmt: skip
_SCHEMAS = (
    "create schema test_schema",
    "create schema test_schema_2",
    "create extension hstore",
    "create extension citext",
)

SUITES = (
    Suite("asyncpg", "asyncpg", ("tests", "--ignore=tests/test__sourcecode.py"), database="postgres"),
    Suite(
        "psycopg 3",
        "psycopg",
        ("tests",),
        lambda url: {"PSYCOPG_TEST_DSN": make_conninfo(**parts(url))},
        lambda url: ("-p", "no:asyncio", "-m", "not refcount and not mypy and not crdb and not timing"),
    ),
    Suite(
        "psycopg2",
        "psycopg2",
        ("tests",),
        lambda url: {
            f"PSYCOPG2_TESTDB{'_' + name.upper() if name != 'dbname' else ''}": value
            for name, value in parts(url).items()
        },
        statements=("create extension hstore",),
    ),
    Suite("SQLAlchemy, asyncpg", "sqlalchemy", _DIALECTS, lambda url: {}, _dialect("asyncpg"), _SCHEMAS, alone=False),
    Suite("SQLAlchemy, psycopg", "sqlalchemy", _DIALECTS, lambda url: {}, _dialect("psycopg"), _SCHEMAS, alone=False),
    Suite("SQLAlchemy, psycopg2", "sqlalchemy", _DIALECTS, lambda url: {}, _dialect("psycopg2"), _SCHEMAS, alone=False),
)
