"""Which vendors of models an app calls, and which environment variables have their addresses."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from proxy.cli.detect.env_reads import EnvRead
from proxy.cli.detect.project_files import Folder, location_of

# By kind: the variables that the vendor's own SDK reads, and its host.
BASE_URL_VARIABLES = {"openai": ("OPENAI_BASE_URL", "OPENAI_API_BASE"), "anthropic": ("ANTHROPIC_BASE_URL",)}
HOSTS = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}
# Packages that bring a vendor's own, and programs that call it.
_VENDOR_PACKAGES = {
    "openai": {"langchain-openai", "litellm", "llama-index", "llama-index-llms-openai", "pydantic-ai", "instructor",
               "open-webui", "@ai-sdk/openai", "@langchain/openai"},
    "anthropic": {"langchain-anthropic", "@anthropic-ai/sdk", "@ai-sdk/anthropic", "@langchain/anthropic"},
}  # fmt: skip
# Variables that programs read whose code is not in the folder.
_PROGRAM_VARIABLES = {"openai": {"open-webui": ("OPENAI_API_BASE_URL",)}}
MAX_NOTES = 5
# A variable whose name says that it has an address.
_BASE_URL_NAME = re.compile(r"_(?:API_)?(?:BASE|BASE_?URLS?|ENDPOINT|API_URL|URL|HOST)$")
# What a client is given as its address: a variable that stands there leads to the vendor, whatever its name.
_BASE_URL_ARGUMENT = re.compile(r"\b(?:base_?url|api_base|baseURL)\s*[=:]\s*([^,\n)}]+)", re.IGNORECASE)
# An address that is written out: no variable can lead these calls elsewhere.
_BASE_URL_LITERAL = re.compile(
    r"\b(?:base_?url|api_base|baseURL)\s*[=:]\s*['\"](https?://[^'\"\s]+)['\"]", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Vendor:
    """An entry of `upstreams`. `reason` and `base_url_reason` are comments on it; `env` is None if the dialect's own
    variables suffice."""

    name: str
    kind: str
    reason: str
    base_url: str = ""
    base_url_reason: str = ""
    env: tuple[str, ...] | None = None


def find_vendors(folder: Folder, packages: Collection[str], reads: Sequence[EnvRead]) -> tuple[list[Vendor], list[str]]:
    """The vendors, and a sentence on each call that no variable leads through the gateway."""
    sources = list(folder.source_files(".py", ".js", ".ts", ".mjs", ".cjs"))
    arguments = " ".join(one for _, text in sources for one in _BASE_URL_ARGUMENT.findall(text))
    found: list[Vendor] = []
    notes: list[str] = []
    for kind, usual in BASE_URL_VARIABLES.items():
        by_package = kind in packages or bool(_VENDOR_PACKAGES[kind] & set(packages))
        by_address = next((name for name, text in sources if HOSTS[kind] in text), "")
        bases = [one for one in reads if _names_vendor_address(one, kind, arguments)]
        if not by_package and not by_address and not any(kind.upper() in one.name for one in bases):
            continue
        programs = _PROGRAM_VARIABLES.get(kind, {})
        of_programs = [name for program in programs.keys() & set(packages) for name in programs[program]]
        env = tuple(dict.fromkeys([*usual, *(one.name for one in bases), *of_programs]))
        found.append(_make_vendor(kind, bases, env if env != usual else None))
        if not by_package and not bases:
            goes_round = f"{by_address} names {HOSTS[kind]} itself, so its calls go round the gateway"
            notes.append(f"{goes_round}: read the address from {usual[0]}")
    if found:
        notes += _find_literal_addresses(sources)
    return found, list(dict.fromkeys(notes))[:MAX_NOTES]


def _make_vendor(kind: str, bases: Sequence[EnvRead], env: tuple[str, ...] | None) -> Vendor:
    """An entry for a vendor; calls that already lead to another host by default go on leading there."""
    reason = "the app's calls come through here by an environment variable"
    other = next((one for one in bases if _is_other_host(one.default, kind)), None)
    if other is None:
        return Vendor(kind, kind, reason, env=env)
    where = f"where {other.location} leads without it"
    return Vendor(kind, kind, reason, f"${{{other.name}:-{other.default}}}", where, env)


def _find_literal_addresses(sources: Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, text in sources:
        for hit in _BASE_URL_LITERAL.finditer(text):
            if not re.match(r"https?://(?:localhost|127\.)", hit[1]):
                where = location_of(name, text, hit)
                yield f"{where} names {hit[1]} itself, so these calls go round the gateway: read it from a variable"


def _names_vendor_address(one: EnvRead, kind: str, handed: str) -> bool:
    """Whether a variable has this vendor's address."""
    if _BASE_URL_NAME.search(one.name) is None or (one.default and not one.default.startswith("http")):
        return False
    if kind.upper() in one.name:
        return "AZURE" not in one.name and not one.name.endswith("URLS")
    others = [other.upper() for other in BASE_URL_VARIABLES if other != kind]
    named = any(other in one.name for other in others)
    spoken = re.search(rf"\b{re.escape(one.name)}\b", handed, re.IGNORECASE)
    return kind == "openai" and not named and spoken is not None


def _is_other_host(default: str, kind: str) -> bool:
    return default.startswith("http") and HOSTS[kind] not in default
