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
    """`folder` is that of the repository below SUITES, of which `copied` is taken to run by itself, not built as it is
    (all of it where that is empty); `added`: where files of ours go. `tests` is what pytest gets,
    `environ` and `arguments` what else, for a database's URL. `reasons`: parts of tests' names, and why those end
    otherwise through the door."""

    name: str
    folder: str
    tests: Sequence[str]
    environ: Callable[[str], Mapping[str, str]] = libpq
    arguments: Callable[[str], Sequence[str]] = lambda url: ()
    copied: Sequence[str] = ("tests", "pyproject.toml")
    added: Mapping[str, str] = field(default_factory=dict)
    statements: Sequence[str] = ()
    database: str = "suites"
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "").replace(",", "-")

    def reason(self, test: str) -> str:
        """Why it differs; "" where that is not known."""
        return next((why for part, why in self.reasons.items() if part in test), "")


PROCESS = "it ends a server process, or knows one again, by the number that was told at login"
NOTIFIER = "it knows the sender of a notification again by the number that the sender was told at its login"
SHARED = "it ends the process that pg_backend_pid() named one transaction earlier, which is its own by now"
SQL_NAMES = "SQL (EXECUTE, pg_prepared_statements) shows what is prepared there under names of ours, for all clients"
REUSED = "in session mode it knows a new connection by another process, and may get the one that was given back"
LATER = "an error amid a long batch is heard one hop later, when all of it was sent"
LEFT = "it collects garbage, and is charged with open connections that tests which failed before it left behind"
ONE_USER = "it logs in as another user"
LONG_NAME = "PostgreSQL refuses a statement's name of 16 KiB, which never gets there"


def _sqlalchemy(driver: str) -> Suite:
    def arguments(url: str) -> Sequence[str]:
        return ("--backend-only", "--dburi", url.replace("postgresql://", f"postgresql+{driver}://"))

    return Suite(
        f"SQLAlchemy {driver}",
        "sqlalchemy",
        ("test/dialect/postgresql", "test/dialect/test_suite.py", "test/engine", "test/sql"),
        lambda url: {},
        arguments,
        copied=(),
        statements=(
            "create schema test_schema",
            "create schema test_schema_2",
            "create extension hstore",
            "create extension citext",
        ),
    )


SUITES = (
    Suite(
        "asyncpg",
        "asyncpg",
        ("tests", "--ignore=tests/test__sourcecode.py"),
        database="postgres",
        reasons={
            "test_listen_": NOTIFIER,
            "test_pool_remote_close": SHARED,
            "test_prepare_explicitly_named": SQL_NAMES,
            "test_executemany_server_failure_during_writes": LATER,
        },
    ),
    Suite(
        "psycopg 3",
        "psycopg",
        ("tests",),
        lambda url: {"PSYCOPG_TEST_DSN": make_conninfo(**parts(url))},
        lambda url: ("-p", "no:asyncio", "-m", "not refcount and not mypy and not crdb and not timing"),
        copied=("tests", "tools", "pyproject.toml"),
        reasons={
            **dict.fromkeys(
                (
                    "connect_no_check",
                    "connect_check",
                    "getconn_check",
                    "stats_check",
                    "check_connection",
                    "identify_closure",
                ),
                PROCESS,
            ),
            **dict.fromkeys(("test_broken_reconnect",), REUSED),
            **dict.fromkeys(("test_broken", "inerror_rollback_no_clobber", "exception_on_server_disconnect"), PROCESS),
            **dict.fromkeys(("::test_notify", "::test_notifies"), NOTIFIER),
            **dict.fromkeys(("test_prepared", "::test_auto_prepare"), SQL_NAMES),
            **dict.fromkeys(("test_weakref", "noasyncio.py::test_reconnect_after_max_lifetime"), LEFT),
            "test_change_password": ONE_USER,
            **dict.fromkeys(("test_active_close", "max_lifetime", "test_drain", "reset_badstate"), REUSED),
        },
    ),
    Suite(
        "psycopg2",
        "psycopg2",
        ("tests",),
        lambda url: {
            f"PSYCOPG2_TESTDB{'_' + name.upper() if name != 'dbname' else ''}": value
            for name, value in parts(url).items()
        },
        copied=("tests",),
        statements=("create extension hstore",),
        reasons={
            "test_notif": NOTIFIER,
            "test_many_notifies": NOTIFIER,
            "test_backend_pid": PROCESS,
            "test_external_close": SHARED,
        },
    ),
    Suite(
        "PgBouncer",
        "pgbouncer",
        ("test",),
        lambda url: {"SUITE_DSN": url},
        copied=("test/test_copy.py", "test/test_cancel.py", "test/test_prepared.py"),
        added={"test/utils.py": "bouncer.py", "test/conftest.py": "bouncer.py"},
        statements=("create table test_copy (i int)",),
        reasons={"test_statement_name_longer": LONG_NAME},
    ),
    *(_sqlalchemy(driver) for driver in ("asyncpg", "psycopg", "psycopg_async", "psycopg2", "pg8000")),
)
