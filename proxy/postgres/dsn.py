"""The database's address: what of it is for the server, and what the app gets in its place.

An app's address may hold what only its own driver understands (`schema`, `pgbouncer`, `connection_limit`,
`postgresql+asyncpg://`); the server gets what libpq knows about reaching it, and nothing else.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from proxy.policy.schema import Postgres

# Parameters of a query that say how the server is reached (libpq's and asyncpg's); the rest are settings and options
# of the app's own connections.
CONNECT_PARAMETERS = frozenset(
    (
        *("host", "hostaddr", "port", "user", "password", "dbname", "database", "passfile", "service", "sslmode"),
        *("ssl", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname", "gsslib"),
    )
)
# Of these the app's copy keeps none: they are about a TLS that it does not speak with us.
_TLS_PARAMETERS = frozenset(
    ("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation", "channel_binding", "gssencmode")
)
# And these would lead it past us.
_ADDRESS_PARAMETERS = frozenset(
    ("host", "hostaddr", "port", "user", "password", "dbname", "database", "passfile", "service")
)
_SSL_OFF_SPELLINGS = {"true": "false", "1": "0", "on": "off", "yes": "no"}
# If all addresses are listened on, the app comes by loopback.
_WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """`dsn` is for asyncpg. `user` and `name` (of the database) are what the server's start-up packet says."""

    dsn: str
    user: str
    name: str


def parse_url(url: str, environ: Mapping[str, str]) -> DatabaseAddress:
    """What a database's URL means, in libpq's order: the query, the address itself, the environment."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    connecting = {name: value for name, value in query.items() if name in CONNECT_PARAMETERS}
    # `ssl` is how asyncpg, JDBC and node-postgres spell it, and `no-verify` is node-postgres's own word.
    if "ssl" in connecting:
        word = connecting.pop("ssl").lower()
        connecting.setdefault("sslmode", {"true": "require", "1": "require", "false": "disable"}.get(word, word))
    if connecting.get("sslmode") == "no-verify":
        connecting["sslmode"] = "require"
    connecting.pop("hostaddr", None)
    user = query.get("user") or unquote(parts.username or "") or environ.get("PGUSER") or _login_name()
    name = (
        query.get("dbname")
        or query.get("database")
        or unquote(parts.path.removeprefix("/"))
        or environ.get("PGDATABASE")
        or user
    )
    tail = f"?{urlencode(connecting)}" if connecting else ""
    return DatabaseAddress(f"postgresql://{parts.netloc}{parts.path}{tail}", user, name)


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return "postgres"


def rewrite_url(url: str, host: str, port: int, password: str, address: DatabaseAddress, *, tls: bool) -> str:
    """The address that the app gets in its own one's place: its scheme and the parameters of its driver stay."""
    parts = urlsplit(url)
    kept: list[str] = []
    for pair in parts.query.split("&") if parts.query else []:
        name, equals, value = pair.partition("=")
        if name in _TLS_PARAMETERS or name in _ADDRESS_PARAMETERS:
            continue
        if name in ("sslmode", "ssl"):
            kept.append(f"{name}{equals}{_ssl_mode_for_app(name, unquote(value), tls=tls)}")
        else:
            kept.append(pair)
    shown = f"[{host}]" if ":" in host else host
    query = f"?{'&'.join(kept)}" if kept else ""
    user = quote(address.user, safe="")
    return f"{parts.scheme}://{user}:{password}@{shown}:{port}/{quote(address.name, safe='')}{query}"


def _ssl_mode_for_app(name: str, value: str, *, tls: bool) -> str:
    if tls:  # the certificate is one made at start, which nobody vouches for
        return re.sub(r"^verify-(ca|full)$", "require", value)
    if name == "ssl":
        return _SSL_OFF_SPELLINGS.get(
            value.lower(), value if value.lower() in _SSL_OFF_SPELLINGS.values() else "disable"
        )
    return "disable"


def reachable_host(host: str) -> str:
    """A listener's host as the app can reach it."""
    return _WILDCARD_HOSTS.get(host, host)


def app_variables(
    policy: Postgres, host: str, port: int, password: str, address: DatabaseAddress, environ: Mapping[str, str]
) -> dict[str, str]:
    """The environment with which the app's connections come this way. A variable that holds a URL keeps the spelling
    and the parameters that it had; the policy's own URL stands in for one that the app does not have yet."""
    assert policy.url is not None
    host = reachable_host(host)
    parts = {"host": host, "port": str(port), "user": address.user, "password": password, "database": address.name}
    env: dict[str, str] = {}
    for variable, part in policy.env.items():
        if part == "url":
            had = environ.get(variable) or policy.url
            env[variable] = rewrite_url(had, host, port, password, address, tls=policy.tls == "on")
        else:
            env[variable] = parts[part]
    return env
