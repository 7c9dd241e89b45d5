"""Where a call goes: from the path that the app called to the upstream's URL, byte for byte."""

from __future__ import annotations

from functools import lru_cache

from yarl import URL

from proxy.egress.dialects import Dialect
from proxy.egress.dialects.path_normalization import normalize_path, path_below, path_suffixes
from proxy.observe.redact import Redactor
from proxy.policy.schema.server import REDACT

_SECRETS = Redactor((*REDACT, "secret", "signature", "sig", "auth", "credential", "session", "code", "jwt", "sas"))
BASES = 64  # base_urls whose paths are remembered
PATHS, USUAL = 256, 256  # paths of calls that are, and how many characters they may have
_ASKED = frozenset(("api-version", "beta"))  # members of a model call's query that say what is asked for


def split(target: str) -> tuple[str, str]:
    """The upstream's name and the rest, query included, of `/openai/v1/models?limit=2`."""
    name, slash, rest = target[1:].partition("/")
    if not slash:
        name, mark, query = name.partition("?")
        return name, mark + query
    return name, slash + rest


def join(base_url: str, rest: str) -> URL:
    """The upstream's URL. A base that ends in /v1 and a rest that begins with it share one /v1."""
    return URL(_joined(base_url.rstrip("/"), rest), encoded=True)


def _joined(base: str, rest: str) -> str:
    if base.endswith("/v1") and (rest == "/v1" or rest.startswith(("/v1/", "/v1?"))):
        rest = rest[3:]
    return base + rest


def endpoint(dialect: Dialect, method: str, rest: str, base_url: str) -> tuple[str | None, str | None]:
    """Which inference endpoint a call goes to, however its path is spelled, and the model where the path names it."""
    path = rest.partition("?")[0]
    look = _endpoint if len(path) <= USUAL else _endpoint.__wrapped__
    return look(dialect, method, path, base_url)


@lru_cache(maxsize=PATHS)
def _endpoint(dialect: Dialect, method: str, rest: str, base_url: str) -> tuple[str | None, str | None]:
    path = _path(rest, base_url)
    tails = _tails(path, base_url)
    found = next((known for tail in tails if (known := dialect.endpoint(method, tail)) is not None), None)
    return found, dialect.deployment(path) if found is not None else None


def follows(dialect: Dialect, method: str, rest: str, base_url: str) -> str | None:
    """The reference of what a call asks after, however its path is spelled."""
    tails = _tails(_path(rest, base_url), base_url)
    return next((found for tail in tails if (found := dialect.follows(method, tail)) is not None), None)


def _path(rest: str, base_url: str) -> str:
    """The path of the upstream's URL, plain."""
    return normalize_path(_joined(_base(base_url)[0], rest.partition("?")[0]))


def _tails(path: str, base_url: str) -> list[str]:
    rest = path_below(path, _base(base_url)[1])
    return path_suffixes(path) if rest is None else [rest]


@lru_cache(maxsize=BASES)
def _base(base_url: str) -> tuple[str, str]:
    """The path of a base, without the slash at its end, and the same plain."""
    path = URL(base_url, encoded=True).raw_path
    return path.rstrip("/"), normalize_path(path)


def portable(rest: str, *, inference: bool) -> str | None:
    """The target as another upstream may see it; None where a secret stands in its path. A model call says nothing in
    its query but what is known here; elsewhere the query is the question, less what is named like a secret."""
    path, mark, query = rest.partition("?")
    if _SECRETS.redact_path(path) != path:
        return None
    names = [(pair, pair.partition("=")[0]) for pair in query.split("&") if pair]
    kept = [pair for pair, name in names if (name in _ASKED if inference else not _SECRETS.is_secret(name))]
    return f"{path}{mark}{'&'.join(kept)}" if kept else path


def shown(base_url: str, address: str, name: str, kind: str, *, adopted: bool) -> str:
    """What a variable of `env` is set to for the app.

    The OpenAI SDK appends to a base that ends in /v1, Anthropic's to one that does not. A base that the app
    brought along itself (`adopted`) keeps its own ending, so that what is appended ends up where it did.
    """
    if kind == "openai" and (not adopted or base_url.rstrip("/").endswith("/v1")):
        return f"http://{address}/{name}/v1"
    return f"http://{address}/{name}"
