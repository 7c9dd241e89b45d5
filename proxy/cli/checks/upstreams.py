"""Whether upstreams and webhooks can be reached, and whether keys are accepted: by a GET of the list of models, or by a
connection alone, so that nothing costs money."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from proxy.cli.detect.app import detect_app
from proxy.cli.detect.project_files import Folder
from proxy.cli.output import Finding
from proxy.egress.api_keys import KEY_VARIABLES
from proxy.egress.url_mapping import join_url
from proxy.policy.schema import Policy, Upstream, default_upstreams

REQUEST_TIMEOUT = 5.0  # seconds
# Variables from which apps and SDKs take the address of a vendor of models.
_ADDRESS_VARIABLE = re.compile(
    r"(?:OPENAI|AZURE_OPENAI|ANTHROPIC|GROQ|TOGETHER|MISTRAL|COHERE|CO|GEMINI|GOOGLE_GEMINI|DEEPSEEK|OPENROUTER|OLLAMA|"
    r"PERPLEXITY|FIREWORKS|XAI|LLM|LITELLM|VLLM)_(?:API_)?(?:BASE_URL|BASE|URL|HOST|ENDPOINT|API_BASE|API_BASE_URL)S?"
)
_REACH_FIX = "see that this machine may call out, or mend its base_url"


async def check_upstreams(policy: Policy, environ: Mapping[str, str], cwd: Path) -> list[Finding]:
    wanted = dict(policy.upstreams)
    found = list(_find_bypassing_variables(policy, environ))
    for name, one in default_upstreams().items():
        if wanted.get(name) == one and not _seems_called(one, environ, cwd):
            del wanted[name]
            text = "nothing here calls it: no key in the environment, no package of the app's"
            found.append(Finding("ok", f"upstream {name}", text, f"write `{name}: off` to be rid of it"))
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=True, auto_decompress=False) as session:
        found += await asyncio.gather(*(_check_upstream(session, name, one, environ) for name, one in wanted.items()))
    return found


def _seems_called(upstream: Upstream, environ: Mapping[str, str], cwd: Path) -> bool:
    """Whether the app seems to call a vendor that the policy does not name, by its key or by a package. An app whose
    packages are not known may."""
    app = detect_app(Folder(cwd))
    return bool(environ.get(KEY_VARIABLES.get(upstream.kind, ""))) or not app.packages or upstream.kind in app.vendors


def _find_bypassing_variables(policy: Policy, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Environment variables that lead to a vendor and that no upstream names: Outrigger does not see these calls."""
    known = {variable for upstream in policy.upstreams.values() for variable in upstream.env}
    for variable, value in environ.items():
        host = urlsplit(value).hostname if _ADDRESS_VARIABLE.fullmatch(variable) and value.startswith("http") else None
        if host is None or variable in known:
            continue
        fix = f"name it: upstreams: {{NAME: {{kind: openai, env: [{variable}]}}}}, with the kind that it speaks"
        text = f"{variable} leads to {host}, and no upstream names that variable: its calls pass by"
        yield Finding("warning", "upstreams", text, fix)


async def _check_upstream(
    session: aiohttp.ClientSession, name: str, upstream: Upstream, environ: Mapping[str, str]
) -> Finding:
    what = f"upstream {name}"
    key = upstream.api_key or environ.get(KEY_VARIABLES.get(upstream.kind, ""), "")
    headers = {}
    if upstream.kind == "anthropic":
        headers = {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}
    elif upstream.kind == "openai" and key:
        headers = {"Authorization": f"Bearer {key}"}
    # The list of models costs nothing, and still needs a key that is valid.
    url = join_url(upstream.base_url, "/v1/models") if upstream.kind != "http" else URL(upstream.base_url, encoded=True)
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            status = answer.status
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Nobody asked for a default without a key, so that it cannot be reached is no error.
        if upstream == default_upstreams().get(name) and not key:
            fix = "where the app calls it, see that this machine may; where it does not, write `openai: off`"
            return Finding("warning", what, f"{url.host} cannot be reached: {describe_error(error)}", fix)
        return Finding("error", what, f"{url.host} cannot be reached: {describe_error(error)}", _REACH_FIX)
    shown = f"{url.host} answers ({status})"
    if status >= 500:
        return Finding("warning", what, shown, "it is unwell; look at its status page")
    # Without a key a refusal is what one expects, and `http` has no key that is known here.
    if status in (401, 403) and key and upstream.kind != "http":
        whose = "api_key" if upstream.api_key else KEY_VARIABLES[upstream.kind]
        return Finding("error", what, f"{shown}: the key is refused", f"mend {whose}")
    if status == 404 and upstream.kind != "http":
        return Finding("warning", what, f"{shown} and has no list of models", "see that its base_url is right")
    return Finding("ok", what, shown + (", the key is taken" if key and status < 300 else ""))


def describe_error(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {REQUEST_TIMEOUT:g} s"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
