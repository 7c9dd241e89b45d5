"""OpenAI's API, which many other hosts offer too (platform.openai.com/docs/api-reference)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from proxy.egress.dialects.base import (
    NO_REQUEST_INFO,
    BackgroundStatus,
    Dialect,
    Json,
    RequestInfo,
    StreamObserver,
    StreamState,
    SyntheticResponse,
    Usage,
    as_mapping,
    as_text,
    model_name,
    to_count,
)
from proxy.egress.dialects.endpoints import OPENAI, EndpointTable
from proxy.egress.dialects.media_stream import MediaStream
from proxy.egress.dialects.openai_chat_stream import ChatStream, classify_error, size_of_choices
from proxy.egress.dialects.openai_responses_stream import ResponsesStream, background_status_of, size_of_output
from proxy.egress.dialects.openai_usage import image_usage, openai_usage, video_usage
from proxy.egress.dialects.output_size import OutputSize
from proxy.egress.dialects.synthetic_response import openai_response
from proxy.util.json_bytes import json_bytes, read_again

_REQUIRED_KEYS = {
    "chat": frozenset(("choices",)),
    "completions": frozenset(("choices",)),
    "responses": frozenset(("id", "output")),
    "compact": frozenset(("id", "output")),
    "decisions": frozenset(("answers",)),
    "embeddings": frozenset(("data",)),
    "moderations": frozenset(("results",)),
}
_USAGE_READERS: Mapping[str, Callable[[Json], Usage | None]] = {"images": image_usage, "videos": video_usage}
_ENDPOINTS = EndpointTable(OPENAI)
_AZURE_ROOT = re.compile(r"^/openai(?:/deployments/[^/]+)?(?=/)|^/deployments/[^/]+(?=/)", re.IGNORECASE)
_DEPLOYMENT = re.compile(r"/deployments/([^/]{1,200})/", re.IGNORECASE)
_RESPONSE = re.compile(r"/responses/([^/]{1,200})(/cancel)?")
_BACKGROUND_REQUESTS = {
    ("GET", False),
    ("DELETE", False),
    ("POST", True),
}  # method, and whether the path ends in /cancel
_OUT_OF_MONEY = re.compile(r"insufficient_quota|credit_balance_exhausted|billing_hard_limit_reached|spend_limit")


class OpenAI(Dialect):
    """OpenAI's API, and the hosts whose API resembles it."""

    def endpoint(self, method: str, path: str) -> str | None:
        # Only a POST starts an inference; GET and DELETE of the same paths read or delete what is stored.
        if method != "POST":
            return None
        return _ENDPOINTS.find(_below_api_root(path))

    def background_reference(self, method: str, path: str) -> str | None:
        """The id of a response that a call polls, cancels or deletes (developers.openai.com/docs/guides/background)."""
        lower = _below_api_root(path.lower())
        found = _RESPONSE.fullmatch(lower)
        if found is None or (method, found[2] is not None) not in _BACKGROUND_REQUESTS:
            return None
        start = len(path) - len(lower) + found.start(1)  # ids have a case
        return path[start : start + len(found[1])]

    def background_status(self, answer: object) -> BackgroundStatus | None:
        return background_status_of(answer)

    def deployment(self, path: str) -> str | None:
        """The deployment in an Azure path (learn.microsoft.com/azure/foundry/openai/reference).

        The body needs no `model`, and Azure ignores one that it has.
        """
        found = _DEPLOYMENT.search(path)
        return found[1] if found is not None else None

    def required_keys(self, endpoint: str) -> frozenset[str]:
        return _REQUIRED_KEYS.get(endpoint, frozenset())

    def error_status(self, error: object) -> int:
        said = as_mapping(error)
        code = said.get("code")
        if isinstance(code, int) and 400 <= code <= 599:  # OpenRouter's are statuses
            return code
        status, again = classify_error(said)
        return status if again or status == 429 or "invalid" in str(said.get("type")) else 502

    def is_repeatable(self, endpoint: str, body: Json | None) -> bool:
        if endpoint == "videos":
            return False  # each one orders, and bills, another video
        return not (endpoint == "responses" and body is not None and body.get("background"))

    def parse_request(self, endpoint: str | None, body: Json | None) -> RequestInfo:
        if endpoint is None or body is None:
            return NO_REQUEST_INFO
        most = next((body[key] for key in _MAX_TOKENS_KEYS if isinstance(body.get(key), int | float)), None)
        temperature = body.get("temperature")
        exact = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
        return RequestInfo(
            model=model_name(body.get("model")),
            stream=body.get("stream") is True,
            user=as_text(body.get("safety_identifier")) or as_text(body.get("user")),
            deterministic=endpoint == "embeddings" or exact or body.get("seed") is not None,
            max_tokens=None if most is None else to_count(most),
            choices=_choices(body),
            background=endpoint == "responses" and body.get("background") is True,
        )

    def with_usage_option(self, endpoint: str, raw: bytes, body: Json) -> bytes | None:
        if endpoint not in ("chat", "completions") or body.get("stream") is not True:
            return None
        # The raw bytes are kept if possible, so that the app's own JSON goes out as it was written.
        options = body.get("stream_options")
        if options is None and "stream_options" not in body:
            at = raw.index(b"{") + 1
            comma = b"" if raw[at:].lstrip().startswith(b"}") else b","
            return raw[:at] + b'"stream_options":{"include_usage":true}' + comma + raw[at:]
        asked = as_mapping(options)
        if asked.get("include_usage") is True or not isinstance(options, dict | None):
            return None
        changed = {**read_again(raw), "stream_options": {**asked, "include_usage": True}}
        return json_bytes(changed)

    def usage(self, endpoint: str, answer: object) -> Usage | None:
        return _USAGE_READERS.get(endpoint, openai_usage)(as_mapping(answer))

    def output_size(self, endpoint: str, answer: object) -> OutputSize:
        if endpoint in ("responses", "compact"):
            return size_of_output(as_mapping(answer))
        if endpoint == "audio":
            written = OutputSize()
            written.add_text(as_mapping(answer).get("text"))
            return written
        return size_of_choices(as_mapping(answer)) if endpoint in ("chat", "completions") else OutputSize()

    def is_permanent(self, status: int, answer: object) -> bool:
        error = as_mapping(as_mapping(answer).get("error"))
        return status == 429 and any(_OUT_OF_MONEY.search(str(error.get(key) or "")) for key in ("code", "type"))

    def stream_state(self, endpoint: str, *, strip_usage: bool) -> StreamState | None:
        if endpoint in ("chat", "completions"):
            return ChatStream(strip_usage=strip_usage)
        return ResponsesStream() if endpoint == "responses" else None

    def media_stream(self, endpoint: str) -> StreamObserver | None:
        if endpoint == "images":
            return MediaStream(lambda drawn: image_usage({**drawn, "data": [None]}))
        return MediaStream(openai_usage) if endpoint == "audio" else None

    def synthetic_response(
        self, endpoint: str, body: Json, text: str, *, id: str, created: int
    ) -> SyntheticResponse | None:
        return openai_response(endpoint, body, text, id=id, created=created)


def _below_api_root(path: str) -> str:
    """The path below the API's root, whichever of those that Azure and OpenAI have."""
    return _AZURE_ROOT.sub("", path, count=1).removeprefix("/v1")


def _choices(body: Json) -> int:
    """`n`, and of legacy completions `best_of`, each of which is paid."""
    asked = [to_count(body[key]) for key in ("n", "best_of") if isinstance(body.get(key), int | float)]
    return min(128, max([1, *asked]))


_MAX_TOKENS_KEYS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
