"""One address, what the server gets of it and what the app gets instead."""

from __future__ import annotations

import pytest

from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import Postgres
from proxy.postgres.dsn import DatabaseAddress, app_variables, parse_url, rewrite_url


@pytest.mark.parametrize(
    ("url", "environ", "dsn", "user", "name"),
    [
        ("postgresql://u:p@h:5/db", {}, "postgresql://u:p@h:5/db", "u", "db"),
        ("postgres://u:p@h/db", {}, "postgresql://u:p@h/db", "u", "db"),
        ("postgresql+asyncpg://u:p%40@h/db", {}, "postgresql://u:p%40@h/db", "u", "db"),
        ("postgresql://u%20v@h", {}, "postgresql://u%20v@h", "u v", "u v"),
        ("postgresql://h/d%20b?user=x", {}, "postgresql://h/d%20b?user=x", "x", "d b"),
        ("postgresql:///?host=/run/pg&dbname=d", {"PGUSER": "e"}, "postgresql:///?host=%2Frun%2Fpg&dbname=d", "e", "d"),
        ("postgresql://u@a:1,b:2/db?target_session_attrs=primary", {}, None, "u", "db"),
        ("postgresql://u@h/db?ssl=true", {}, "postgresql://u@h/db?sslmode=require", "u", "db"),
        ("postgresql://u@h/db?sslmode=no-verify", {}, "postgresql://u@h/db?sslmode=require", "u", "db"),
        (
            "postgresql://u@h/db?schema=x&pgbouncer=true&connection_limit=5&options=-cjit%3Doff&sslmode=require"
            "&application_name=a&connect_timeout=3&channel_binding=require",
            {},
            "postgresql://u@h/db?sslmode=require",
            "u",
            "db",
        ),
        ("postgresql://u@h", {"PGDATABASE": "e"}, "postgresql://u@h", "u", "e"),
    ],
)
def test_the_server_gets_what_reaches_it(url, environ, dsn, user, name):
    assert parse_url(url, environ) == DatabaseAddress(dsn or url, user, name)


@pytest.mark.parametrize(
    ("url", "tls", "shown"),
    [
        ("postgresql://u:p@h:5/db", False, "postgresql://u:PW@127.0.0.1:6432/db"),
        ("postgres://u:p@h/db?sslmode=require", False, "postgres://u:PW@127.0.0.1:6432/db?sslmode=disable"),
        ("postgresql+asyncpg://u@h/db?ssl=require", False, "postgresql+asyncpg://u:PW@127.0.0.1:6432/db?ssl=disable"),
        ("postgresql://u@h/db?ssl=true", False, "postgresql://u:PW@127.0.0.1:6432/db?ssl=false"),
        (
            "postgresql://u@h/db?schema=x&sslmode=verify-full&sslrootcert=/a&channel_binding=require&connection_limit=5",
            True,
            "postgresql://u:PW@127.0.0.1:6432/db?schema=x&sslmode=require&connection_limit=5",
        ),
        (
            "postgresql://u@h/db?options=-c%20search_path%3Da&application_name=b&host=elsewhere&password=x",
            False,
            "postgresql://u:PW@127.0.0.1:6432/db?options=-c%20search_path%3Da&application_name=b",
        ),
        ("postgresql://a%40b@h/d%2Fb", False, "postgresql://a%40b:PW@127.0.0.1:6432/d%2Fb"),
        ("postgresql:///db?user=x", False, "postgresql://x:PW@127.0.0.1:6432/db"),
    ],
)
def test_the_app_gets_its_own_address_with_our_place_in_it(url, tls, shown):
    assert rewrite_url(url, "127.0.0.1", 6432, "PW", parse_url(url, {}), tls=tls) == shown


def test_every_variable_gets_its_part_and_no_variable_the_real_password():
    url = "postgresql://u:real@h/db"
    policy = Postgres(
        url=url,
        env={"DATABASE_URL": "url", "ASYNC_URL": "url", "DB_HOST": "host", "DB_PORT": "port", "DB_USER": "user",
             "DB_PASSWORD": "password", "DB_NAME": "database"},
    )  # fmt: skip
    had = {"ASYNC_URL": "postgresql+asyncpg://u:real@h/db?ssl=require"}
    env = app_variables(policy, "0.0.0.0", 6432, "PW", parse_url(url, {}), had)
    assert env == {
        "DATABASE_URL": "postgresql://u:PW@127.0.0.1:6432/db",
        "ASYNC_URL": "postgresql+asyncpg://u:PW@127.0.0.1:6432/db?ssl=disable",
        "DB_HOST": "127.0.0.1",
        "DB_PORT": "6432",
        "DB_USER": "u",
        "DB_PASSWORD": "PW",
        "DB_NAME": "db",
    }


@pytest.mark.parametrize(
    "url", ["postgresql://u@a:1,b:2/db", "postgresql+psycopg2://u@h/db", "postgres:///db?host=/run/pg", ""]
)
def test_a_policy_takes_every_spelling(url):
    assert load_policy(PolicySource("p.yaml", None, f"postgres: {{url: '{url}'}}"), {}).postgres.url == (url or None)
