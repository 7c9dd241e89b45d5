"""Base URLs that a policy leaves open: taken over from the app's environment, else the vendor's own.

An app that already calls OpenRouter, Azure or a local model says so in a variable such as OPENAI_BASE_URL; the
gateway then calls that address in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from proxy.policy.reader import PolicyReader
from proxy.policy.schema.upstream import NAMED_AFTER_THEIR_KIND, Upstream
from proxy.policy.urls import HTTP_URL


def adopt_base_urls(
    reader: PolicyReader, upstreams: Mapping[str, Upstream]
) -> tuple[Mapping[str, Upstream], tuple[str, ...]]:
    """The upstreams, each with a base URL, and warnings.

    A variable of the upstream's `env` that already has a value is the base URL. If two of them disagree, neither is
    rewritten for the app, so `env` is empty then.
    """
    adopted: dict[str, Upstream] = {}
    warnings: list[str] = []
    for name, upstream in upstreams.items():
        key = f"upstreams.{name}"
        if f"{key}.base_url" not in reader.lines:
            upstream, warning = _adopt_base_url(reader, key, upstream)
            warnings.extend(warning)
        adopted[name] = upstream
    return MappingProxyType(adopted), tuple(warnings)


def _adopt_base_url(reader: PolicyReader, key: str, upstream: Upstream) -> tuple[Upstream, list[str]]:
    values = {name: reader.environ[name] for name in upstream.env if reader.environ.get(name)}
    named = " and ".join(values)
    # Which one the app's SDK would use is its own business, so both keep their values.
    if len(set(values.values())) > 1:
        return replace(upstream, env=()), [f"{key}: {named} disagree, so neither is touched; make them one"]
    if values:
        # The value is the app's, not the operator's: one that does not fit is warned of and no fault.
        try:
            return replace(upstream, base_url=HTTP_URL.parse(next(iter(values.values())))), []
        except ValueError as error:
            return replace(upstream, env=()), [f"{key}: {named} is no URL ({error}), so it is left alone"]
    dialect = NAMED_AFTER_THEIR_KIND.get(upstream.kind)
    if dialect is None and upstream.base_url:  # openai, passed on without being metered
        return upstream, []
    if dialect is None:
        reader.add_fault(key, "base_url is missing", "write base_url: https://…")
        return upstream, []
    return replace(upstream, base_url=dialect.base_url), []
