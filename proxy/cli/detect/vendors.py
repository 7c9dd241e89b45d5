"""Which vendors an app calls, and by which variables of its environment it can be told where they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from proxy.cli.detect.env_reads import Setting
from proxy.cli.detect.project_files import Folder

KINDS = {"openai": ("OPENAI_BASE_URL", "OPENAI_API_BASE"), "anthropic": ("ANTHROPIC_BASE_URL",)}
HOSTS = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}
# Packages that bring a vendor's own, and programs that call it.
_BRING = {
    "openai": {"langchain-openai", "litellm", "llama-index", "llama-index-llms-openai", "pydantic-ai", "instructor",
               "open-webui", "@ai-sdk/openai", "@langchain/openai"},
    "anthropic": {"langchain-anthropic", "@anthropic-ai/sdk", "@ai-sdk/anthropic", "@langchain/anthropic"},
}  # fmt: skip
_OWN = {"open-webui": ("OPENAI_API_BASE_URL",)}  # variables that a program reads, whose code is not here
_BASE = re.compile(r"_(?:API_)?(?:BASE|BASE_?URLS?|ENDPOINT|API_URL|URL|HOST)$")
_HANDED = re.compile(r"\b(?:base_?url|api_base|baseURL)\s*[=:]\s*([^,\n)}]+)", re.IGNORECASE)
_WRITTEN = re.compile(r"\b(?:base_?url|api_base|baseURL)\s*[=:]\s*['\"](https?://[^'\"\s]+)['\"]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Vendor:
    """As an entry of `upstreams`; `env` is None where the dialect's own variables suffice."""

    name: str
    kind: str
    why: str
    base_url: str = ""
    base_why: str = ""
    env: tuple[str, ...] | None = None


def find_vendors(folder: Folder, needs: Collection[str], settings: Sequence[Setting]) -> tuple[list[Vendor], list[str]]:
    """The vendors, and a sentence on each call that no variable leads here."""
    sources = list(folder.sources(".py", ".js", ".ts", ".mjs", ".cjs"))
    handed = " ".join(one for _, text in sources for one in _HANDED.findall(text))
    found, notes = [], []
    for kind, own in KINDS.items():
        by_package = kind in needs or bool(_BRING[kind] & set(needs))
        by_address = next((name for name, text in sources if HOSTS[kind] in text), "")
        bases = [one for one in settings if _leads(one, kind, handed)]
        if not by_package and not by_address and not any(kind.upper() in one.name for one in bases):
            continue
        names = {name: None for program in _OWN.keys() & set(needs) if kind == "openai" for name in _OWN[program]}
        env = tuple(dict.fromkeys([*own, *(one.name for one in bases), *names]))
        elsewhere = next((one for one in bases if _is_other(one.default, kind)), None)
        base = f"${{{elsewhere.name}:-{elsewhere.default}}}" if elsewhere is not None else ""
        found.append(
            Vendor(
                kind,
                kind,
                "the app's calls come through here by an environment variable",
                base,
                f"where {elsewhere.where} leads without it" if elsewhere is not None else "",
                env if env != own else None,
            )
        )
        if not by_package and not bases:
            round_it = f"{by_address} names {HOSTS[kind]} itself, so its calls go round the gateway"
            notes.append(f"{round_it}: read the address from {own[0]}")
    for name, text in sources:
        for hit in _WRITTEN.finditer(text):
            where = f"{name}:{text.count(chr(10), 0, hit.start()) + 1}"
            if found and not re.match(r"https?://(?:localhost|127\.)", hit[1]):
                notes.append(
                    f"{where} names {hit[1]} itself, so these calls go round the gateway: read it from a variable"
                )
    return found, list(dict.fromkeys(notes))[:5]


def _leads(one: Setting, kind: str, handed: str) -> bool:
    """Whether a variable says where this vendor is."""
    if _BASE.search(one.name) is None or (one.default and not one.default.startswith("http")):
        return False
    if kind.upper() in one.name:
        return "AZURE" not in one.name and not one.name.endswith("URLS")
    others = [other.upper() for other in KINDS if other != kind]
    named = any(other in one.name for other in others)
    spoken = re.search(rf"\b{re.escape(one.name)}\b", handed, re.IGNORECASE)
    return kind == "openai" and not named and spoken is not None


def _is_other(default: str, kind: str) -> bool:
    return default.startswith("http") and HOSTS[kind] not in default
