"""Tokens by bytes, if no usage reports them: by a factor for each model, learnt from the usage that was reported.

No tokenizer is loaded: they take 65 to 160 MB. English text has about 4 bytes a token, JSON and other languages fewer.
A factor follows what it learns as an exponential moving average; of the lengths of answers the last ones are kept, and
a percentile of them is what an answer usually has.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

from proxy.egress.dialects import Usage
from proxy.egress.dialects.base import to_count

MAX_MODELS = 500  # that are remembered; the least used is forgotten first
MAX_ANSWERS = 64  # of each model, whose lengths are remembered
DEFAULT_BYTES_PER_TOKEN = 4.0  # until usage has been reported
MIN_BYTES_PER_TOKEN, MAX_BYTES_PER_TOKEN = 0.5, 64.0  # a report beyond these is not believed
NEWEST_WEIGHT = 0.2  # in the moving average
TYPICAL_PERCENTILE = 0.95
IMAGE_BYTES = 4_000  # an image counts as a thousand tokens: 85 to 1,600 are usual
DATA_BYTES_PER_TEXT_BYTE = 8  # base64 of other kinds: audio, PDF
AUDIO_BYTES_PER_TOKEN = 235  # of an upload: 4 kB/s, 17 tokens/s


class _ModelStatistics:
    """Factors in bytes a token, and the tokens of the last calls: their output, the reasoning in it, and the input of
    those that read more than their bodies have."""

    __slots__ = ("hidden_inputs", "input_factor", "output_factor", "outputs", "reasonings")

    def __init__(self) -> None:
        self.input_factor = DEFAULT_BYTES_PER_TOKEN
        self.output_factor = DEFAULT_BYTES_PER_TOKEN
        self.hidden_inputs: deque[int] = deque(maxlen=MAX_ANSWERS)
        self.outputs: deque[int] = deque(maxlen=MAX_ANSWERS)
        self.reasonings: deque[int] = deque(maxlen=MAX_ANSWERS)


class TokenEstimator:
    """What one upstream's models have taught."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, _ModelStatistics] = OrderedDict()

    def __repr__(self) -> str:
        return f"<TokenEstimator {len(self._models)} models>"

    def input_tokens(
        self, model: str | None, body_bytes: int, *, endpoint: str | None = None, reads_beyond_body: bool = False
    ) -> int:
        """Tokens of a request. `body_bytes`: its text (`count_text_bytes`); of an upload of audio, its length.

        `reads_beyond_body`: the model reads more than the body has (vendor_context.py): as much as it usually does.
        """
        if endpoint == "audio":
            return _tokens_of(body_bytes, AUDIO_BYTES_PER_TOKEN)
        known = self._models.get(model or "")
        if known is None:
            return _tokens_of(body_bytes, DEFAULT_BYTES_PER_TOKEN)
        found = _tokens_of(body_bytes, known.input_factor)
        return max(found, _typical_length(known.hidden_inputs) or 0) if reads_beyond_body else found

    def output_tokens(self, model: str | None, text_bytes: int) -> int:
        known = self._models.get(model or "")
        return _tokens_of(text_bytes, known.output_factor if known is not None else DEFAULT_BYTES_PER_TOKEN)

    def learn(
        self,
        model: str | None,
        *,
        body_bytes: int,
        usage: Usage,
        text_bytes: int | None,
        reads_beyond_body: bool = False,
    ) -> None:
        """Learn from a call whose usage was reported.

        `text_bytes`: of the answer, as they were counted; None if nobody did. `reads_beyond_body`: the model read more
        than the body had, so that the body's length says nothing.
        """
        key = model or ""
        known = self._models.get(key)
        if known is None:
            known = self._models[key] = _ModelStatistics()
            # Names come from callers, so their number has a bound.
            if len(self._models) > MAX_MODELS:
                self._models.popitem(last=False)
        else:
            self._models.move_to_end(key)
        input_tokens, output_tokens = to_count(usage.input), to_count(usage.output)
        reasoning_tokens = min(output_tokens, to_count(usage.reasoning))
        if reads_beyond_body:
            known.hidden_inputs.append(input_tokens)
        else:
            known.input_factor = _move_factor(known.input_factor, body_bytes, input_tokens)
        if text_bytes is not None:
            # The reasoning is not in the text, so its tokens say nothing about the text.
            known.output_factor = _move_factor(known.output_factor, text_bytes, output_tokens - reasoning_tokens)
        if output_tokens > 0:
            known.outputs.append(output_tokens)
            known.reasonings.append(reasoning_tokens)

    def usual_reasoning_tokens(self, model: str | None) -> int:
        """The median of the reasoning tokens of its last answers."""
        known = self._models.get(model or "")
        return sorted(known.reasonings)[len(known.reasonings) // 2] if known is not None and known.reasonings else 0

    def typical_output_tokens(self, model: str | None) -> int | None:
        """The 95th percentile of the output tokens of its last answers; None if there was none."""
        known = self._models.get(model or "")
        return None if known is None else _typical_length(known.outputs)


def count_text_bytes(body: Mapping[str, Any]) -> int:
    """The bytes of a request's text, for `TokenEstimator.input_tokens`; data count by what they hold.

    A base64 image costs tokens by its size in pixels, not by its length, so each image counts as IMAGE_BYTES. Other
    data count an eighth, and lists of tokens (embeddings take them) as many tokens as there are.
    """
    total = 0
    stack: list[Any] = [body]
    # A stack and no recursion: a hostile body may be nested as deep as the JSON parser lets it be.
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            total += len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
            if value.startswith("data:"):
                # A data URL was counted as text above: take that off again.
                total += _data_url_bytes(value) - len(value)
        elif isinstance(value, dict):
            if value.get("type") in ("image_url", "input_image", "image"):
                total += IMAGE_BYTES
                continue
            total += 6 * len(value)  # quotes, colons, commas, and a short name
            for key, inner in value.items():
                if key == "file_data" or (key == "data" and ("format" in value or "media_type" in value)):
                    total += len(inner) // DATA_BYTES_PER_TEXT_BYTE if isinstance(inner, str) else 0
                else:
                    stack.append(inner)
        elif isinstance(value, list):
            if value and isinstance(value[0], int):
                total += int(DEFAULT_BYTES_PER_TOKEN) * len(value)
            else:
                stack.extend(value)
        else:
            total += 4
    return total


def _typical_length(seen: deque[int]) -> int | None:
    if not seen:
        return None
    lengths = sorted(seen)
    return lengths[min(len(lengths) - 1, int(len(lengths) * TYPICAL_PERCENTILE))]


def _data_url_bytes(url: str) -> int:
    return IMAGE_BYTES if url.startswith("data:image/") else len(url) // DATA_BYTES_PER_TEXT_BYTE


def _tokens_of(size: int, factor: float) -> int:
    return int(max(0, size) / factor + 0.999) if size < 10**12 else int(10**12 / factor)


def _move_factor(factor: float, size: int, tokens: int) -> float:
    # A report of zero measures nothing.
    if size <= 0 or tokens <= 0:
        return factor
    seen = min(MAX_BYTES_PER_TOKEN, max(MIN_BYTES_PER_TOKEN, size / tokens))
    return factor + NEWEST_WEIGHT * (seen - factor)
