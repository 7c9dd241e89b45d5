"""Where a call goes: from the path that the app called to the upstream's URL, byte for byte."""

from __future__ import annotations

from functools import lru_cache

from yarl import URL

from proxy.egress.dialects import Dialect
from proxy.egress.dialects.path_normalization import normalize_path, path_below, path_suffixes
from proxy.observe.redact import Redactor
from proxy.policy.schema import REDACT

_SECRETS = Redactor((*REDACT, "secret", "signature", "sig", "auth", "credential", "session", "code", "jwt", "sas"))
MAX_BASES = 64  # base_urls whose paths are remembered
MAX_PATHS, MAX_REMEMBERED_PATH = 256, 256  # paths of calls that are, and how many characters they may have
_QUESTION_PARAMETERS = frozenset(("api-version", "beta"))  # members of a model call's query that say what is asked for


def split_target(target: str) -> tuple[str, str]:
    """The upstream's name and the rest, query included, of `/openai/v1/models?limit=2`."""
    name, slash, rest = target[1:].partition("/")
    if not slash:
        name, mark, query = name.partition("?")
        return name, mark + query
    return name, slash + rest


def join_url(base_url: str, rest: str) -> URL:
    """The upstream's URL. A base that ends in /v1 and a rest that begins with it share one /v1."""
    look = _join_url if len(rest) <= MAX_REMEMBERED_PATH and "?" not in rest else _join_url.__wrapped__
    return look(base_url, rest)


# An app calls few paths, and a URL keeps what it has worked out of itself (host, port, path): 3 µs a call.
@lru_cache(maxsize=MAX_PATHS)
def _join_url(base_url: str, rest: str) -> URL:
    return URL(_join_text(base_url.rstrip("/"), rest), encoded=True)


def _join_text(base: str, rest: str) -> str:
    if base.endswith("/v1") and (rest == "/v1" or rest.startswith(("/v1/", "/v1?"))):
        rest = rest[3:]
    return base + rest


def find_endpoint(dialect: Dialect, method: str, rest: str, base_url: str) -> tuple[str | None, str | None]:
    """Which inference endpoint a call goes to, however its path is spelled, and the model if the path names it."""
    path = rest.partition("?")[0]
    look = _find_endpoint if len(path) <= MAX_REMEMBERED_PATH else _find_endpoint.__wrapped__
    return look(dialect, method, path, base_url)


@lru_cache(maxsize=MAX_PATHS)
def _find_endpoint(dialect: Dialect, method: str, rest: str, base_url: str) -> tuple[str | None, str | None]:
    path = _upstream_path(rest, base_url)
    tails = _endpoint_spellings(path, base_url)
    found = next((known for tail in tails if (known := dialect.endpoint(method, tail)) is not None), None)
    return found, dialect.deployment(path) if found is not None else None


def find_followed(dialect: Dialect, method: str, rest: str, base_url: str) -> str | None:
    """The reference of what a call asks after, however its path is spelled."""
    tails = _endpoint_spellings(_upstream_path(rest, base_url), base_url)
    return next((found for tail in tails if (found := dialect.background_reference(method, tail)) is not None), None)


def _upstream_path(rest: str, base_url: str) -> str:
    """The path of the upstream's URL, plain."""
    return normalize_path(_join_text(_base_path(base_url)[0], rest.partition("?")[0]))


def _endpoint_spellings(path: str, base_url: str) -> list[str]:
    rest = path_below(path, _base_path(base_url)[1])
    return path_suffixes(path) if rest is None else [rest]


@lru_cache(maxsize=MAX_BASES)
def _base_path(base_url: str) -> tuple[str, str]:
    """The path of a base, without the slash at its end, and the same plain."""
    path = URL(base_url, encoded=True).raw_path
    return path.rstrip("/"), normalize_path(path)


def portable_target(rest: str, *, inference: bool) -> str | None:
    """The target as another upstream may see it; None if a secret stands in its path. A model call says nothing in
    its query but what is known here; elsewhere the query is the question, less what is named like a secret."""
    path, mark, query = rest.partition("?")
    if _SECRETS.redact_path(path) != path:
        return None
    names = [(pair, pair.partition("=")[0]) for pair in query.split("&") if pair]
    kept = [
        pair for pair, name in names if (name in _QUESTION_PARAMETERS if inference else not _SECRETS.is_secret(name))
    ]
    return f"{path}{mark}{'&'.join(kept)}" if kept else path


def app_base_url(base_url: str, address: str, name: str, kind: str, *, adopted: bool) -> str:
    """The value that a variable of `env` gets for the app.

    The OpenAI SDK appends to a base that ends in /v1, Anthropic's to one that does not. A base that the app
    brought along itself (`adopted`) keeps its own ending, so that what is appended ends up where it did.
    """
    if kind == "openai" and (not adopted or base_url.rstrip("/").endswith("/v1")):
        return f"http://{address}/{name}/v1"
    return f"http://{address}/{name}"
