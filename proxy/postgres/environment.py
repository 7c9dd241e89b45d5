"""What the app gets in its environment, so that its database connections come through here."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.policy.schema.stores import Postgres
from proxy.postgres.dsn import Database, rewritten

_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where one listens everywhere, the app comes by loopback


def seen(host: str) -> str:
    """A listener's host as the app sees it."""
    return _EVERY.get(host, host)


def variables(
    policy: Postgres, host: str, port: int, password: str, found: Database, environ: Mapping[str, str]
) -> dict[str, str]:
    """A variable that holds a URL keeps the spelling and the parameters that it had; the policy's own URL stands
    in for one that the app does not have yet."""
    assert policy.url is not None
    host = seen(host)
    parts = {"host": host, "port": str(port), "user": found.user, "password": password, "database": found.name}
    env: dict[str, str] = {}
    for variable, part in policy.env.items():
        if part == "url":
            had = environ.get(variable) or policy.url
            env[variable] = rewritten(had, host, port, password, found, tls=policy.tls == "on")
        else:
            env[variable] = parts[part]
    return env
