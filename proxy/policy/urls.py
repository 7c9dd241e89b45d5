"""URLs that a policy may name, each with the schemes that make sense in its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qsl, urlsplit

from proxy.policy.value_types import ValueType


def split_url(text: str) -> SplitResult:
    """The parts of a URL with a host; ValueError in one clause otherwise."""
    if re.fullmatch(r"[!-~]+", text) is None:
        raise ValueError("it has a space or a letter that no URL may have as it is")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("its host or port cannot be read") from None
    # A listener may have port 0, any free one; nobody can connect to it.
    if port == 0:
        raise ValueError("its port is 0")
    if not _is_readable(parts.hostname or ""):
        raise ValueError("its host is none that can be looked up")
    return parts


def _is_readable(host: str) -> bool:
    """Whether clients can make a name of it: labels in Punycode have to say something (RFC 5891 section 4.2)."""
    # Browsers and SDKs read a backslash as a slash, so they would connect to another host than we.
    if "\\" in host:
        return False
    try:
        for label in host.split("."):
            if label.startswith("xn--"):
                label.encode("ascii").decode("idna")
    except UnicodeError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """For a host without port, an IPv6 address with or without brackets. No name is looked up."""
    host = host.strip("[]").lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(authority: str) -> str:
    """The host of HOST or HOST:PORT, in lower case; an IPv6 address keeps its brackets."""
    if authority.startswith("["):
        return authority.partition("]")[0]
    return authority.partition(":")[0].lower()


def _parse_web_url(text: str) -> str:
    parts = split_url(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is not https:// and a host")
    return text


def _parse_sentry_dsn(text: str) -> str:
    # https://PUBLIC@HOST/PROJECT (develop.sentry.dev/sdk/overview): without these nothing can be sent.
    parts = split_url(_parse_web_url(text))
    if not parts.username or not parts.path.rpartition("/")[2].isdecimal():
        raise ValueError("it has no public key before its host, or no project's number at its end")
    return text


def _parse_database_url(text: str) -> str:
    # The host may be left out: libpq then uses a socket or PGHOST. SQLAlchemy adds its driver: postgresql+asyncpg.
    if re.fullmatch(r"postgres(?:ql)?(?:\+[a-z0-9_]+)?", _scheme_of(text)) is None:
        raise ValueError("it does not begin with postgresql://")
    _check_libpq_words(text)
    return text


SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full", "no-verify")
SESSION_ATTRIBUTES = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")


def _check_libpq_words(text: str) -> None:
    """What drivers refuse of an address when they connect: ports that are none, words that libpq does not know."""
    parts = urlsplit(text)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    # libpq takes several hosts with a port each, which urlsplit cannot split.
    hosts = parts.netloc.rpartition("@")[2].split(",")
    ports = [host.rpartition(":")[2] for host in hosts if ":" in host.rpartition("]")[2]]
    for port in [*ports, *query.get("port", "").split(",")]:
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("its port is none")
    for name, words in (("sslmode", SSL_MODES), ("target_session_attrs", SESSION_ATTRIBUTES)):
        if query.get(name, words[0]).replace("_", "-") not in words:  # asyncpg accepts both spellings
            raise ValueError(f"its {name} is none of {', '.join(words)}")


def _scheme_of(text: str) -> str:
    """The scheme of an address whose hosts may be several, each with a port (libpq), which is no URL to others."""
    if re.fullmatch(r"[!-~]+", text) is None:
        raise ValueError("it has a space or a letter that no URL may have as it is")
    return urlsplit(text).scheme


def _parse_app_url(text: str) -> str:
    # Connections to the app are plain HTTP on loopback, and the path is the client's.
    parts = split_url(text)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("it is not http:// and a host")
    # The client's own path and query are passed on, so there is no place for others.
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("it has more than a host and a port")
    return text.rstrip("/")


def _parse_store_url(text: str) -> str:
    if text == "memory://":
        return text
    return _parse_shared_store_url(text, "it is neither memory:// nor the address of Valkey, Redis or PostgreSQL")


def _parse_shared_store_url(text: str, refusal: str = "it is no address of Valkey, Redis or PostgreSQL") -> str:
    scheme = _scheme_of(text)
    if scheme in ("postgresql", "postgres"):
        _check_libpq_words(text)
        return text
    if "sentinel" in scheme or "cluster" in scheme:
        raise ValueError("it asks for Sentinel or Cluster, and only a single server can decide")
    if scheme not in ("redis", "rediss"):
        raise ValueError(refusal)
    if "," in text.partition("://")[2].partition("/")[0]:
        raise ValueError("it names several servers, and only a single one can decide")
    parts = split_url(text)
    if not parts.hostname:
        raise ValueError("it has no host")
    if re.fullmatch(r"/?[0-9]{0,4}", parts.path) is None:
        raise ValueError("its database is no number")
    return text


def _parse_ledger_url(text: str) -> str:
    # SQLAlchemy's form: three slashes and a relative path, or four and an absolute one.
    if re.fullmatch(r"sqlite:///[ -~]+", text) and not text.endswith("/"):
        return text
    parts = split_url(text)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("it is neither an SQLite file nor a PostgreSQL address")
    _check_libpq_words(text)
    return text


def sqlite_path(url: str) -> str | None:
    """The file of a ledger: `sqlite:///var/x.db` is relative, `sqlite:////var/x.db` is not; None for another."""
    return url.removeprefix("sqlite:///") if url.startswith("sqlite:///") else None


def mask_password(url: str) -> str:
    """The URL with `***` in place of its password, if it has one."""
    # In the authority (user:password@), and as libpq's parameter.
    masked = re.sub(r"(?<=://)([^/@?#:]*):[^/?#]*@", r"\1:***@", url)
    return re.sub(r"(?<=[?&]password=)[^&#]*", "***", masked)


def without_foreign_options(url: str) -> str:
    """A PostgreSQL URL without the options of other drivers, which the server would refuse as unknown settings."""
    head, mark, options = url.partition("?")
    kept = [option for option in options.split("&") if not _FOREIGN_OPTION.match(option)]
    return head + (mark + "&".join(kept) if any(kept) else "")


_FOREIGN_OPTION = re.compile(r"(channel_binding|pgbouncer|connection_limit|pool_timeout|schema|prepareThreshold)=")


def _url_type(parse: Callable[[str], str], write: str, pattern: str, *, mask: str | None = None) -> ValueType:
    """`pattern` is for editors; `mask` of a URL that is a secret as a whole, since who knows it may post to it."""
    secret = mask is not None
    return ValueType(parse, mask_password, write, secret=secret, mask=mask or "", quoted=False, pattern=pattern)


_WEB = "https?://[!-~]+"
_POSTGRES = r"postgres(ql)?(\+[a-z0-9_]+)?:[!-~]*"


APP_URL = _url_type(_parse_app_url, "an address such as http://127.0.0.1:8002", r"http://[^\s/?#@]+/?")
HTTP_URL = _url_type(_parse_web_url, "a URL such as https://api.example.com/v1", _WEB)
WEBHOOK = _url_type(_parse_web_url, "a URL such as https://hooks.example.com/…", _WEB, mask="https://***")
SENTRY_DSN = _url_type(
    _parse_sentry_dsn, "the DSN that Sentry shows", rf"{_WEB}@[!-~]*/[0-9]+([?#][!-~]*)?", mask="https://***@***/0"
)
DATABASE = _url_type(
    _parse_database_url, "an address such as postgresql://user@host/name, best as ${DATABASE_URL:-}", _POSTGRES
)
_SHARED_STORE = rf"rediss?://[!-~]+|{_POSTGRES}"
STORE = _url_type(_parse_store_url, "memory://, redis://…, rediss://… or postgresql://…", f"memory://|{_SHARED_STORE}")
SHARED_STORE = _url_type(_parse_shared_store_url, "redis://…, rediss://… or postgresql://…", _SHARED_STORE)
LEDGER = _url_type(
    _parse_ledger_url, "sqlite:///var/outrigger.db or postgresql://…", f"sqlite:///[ -~]*[^/]|{_POSTGRES}"
)
