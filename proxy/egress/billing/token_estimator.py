"""Tokens where none are reported: bytes by a factor a model, learnt from the usage that was.

No tokenizer: they take 65 to 160 MB. English text has about 4 bytes a token, JSON and other languages fewer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

from proxy.egress.dialects import Usage
from proxy.egress.dialects.base import to_count

MODELS = 500  # remembered, the least used is forgotten first
SEEN = 64  # answers whose length is remembered, a model
FIRST_BYTES = 4.0  # a token, until usage tells
LEAST, LARGEST = 0.5, 64.0  # bytes a token that are believed
WEIGHT = 0.2  # of the newest, in the moving average
TYPICAL = 0.95
IMAGE_BYTES = 4_000  # an image counts as a thousand tokens: 85 to 1,600 are usual
DATA = 8  # bytes of base64 of other kinds (audio, PDF) for one of text
AUDIO_BYTES = 235  # of an upload, for a token: 4 kB/s, 17 tokens/s


class _Learnt:
    __slots__ = ("input", "inputs", "output", "outputs", "thoughts")

    def __init__(self) -> None:
        self.input = FIRST_BYTES
        self.output = FIRST_BYTES
        self.inputs: deque[int] = deque(maxlen=SEEN)  # of calls that read more than their bodies have
        self.outputs: deque[int] = deque(maxlen=SEEN)
        self.thoughts: deque[int] = deque(maxlen=SEEN)  # tokens of them that answers reported


class TokenEstimator:
    """One an upstream."""

    def __init__(self) -> None:
        self._learnt: OrderedDict[str, _Learnt] = OrderedDict()

    def __repr__(self) -> str:
        return f"<TokenEstimator {len(self._learnt)} models>"

    def input_tokens(
        self, model: str | None, body_bytes: int, *, endpoint: str | None = None, elsewhere: bool = False
    ) -> int:
        """`body_bytes`: of text (see text_bytes_of); for an upload of audio, its length and the endpoint.
        `elsewhere`: the model reads more than the body has (see context), as much as it usually does then."""
        if endpoint == "audio":
            return _tokens(body_bytes, AUDIO_BYTES)
        known = self._learnt.get(model or "")
        if known is None:
            return _tokens(body_bytes, FIRST_BYTES)
        found = _tokens(body_bytes, known.input)
        return max(found, _typical(known.inputs) or 0) if elsewhere else found

    def output_tokens(self, model: str | None, text_bytes: int) -> int:
        known = self._learnt.get(model or "")
        return _tokens(text_bytes, known.output if known is not None else FIRST_BYTES)

    def learn(
        self, model: str | None, *, body_bytes: int, usage: Usage, text_bytes: int | None, elsewhere: bool = False
    ) -> None:
        """`text_bytes`: of the answer, as the stream counted them; None where nobody did. `elsewhere`: the model read
        more than the body had, so that its length says nothing."""
        key = model or ""
        known = self._learnt.get(key)
        if known is None:
            known = self._learnt[key] = _Learnt()
            if len(self._learnt) > MODELS:
                self._learnt.popitem(last=False)
        else:
            self._learnt.move_to_end(key)
        before, after = to_count(usage.input), to_count(usage.output)
        if elsewhere:
            known.inputs.append(before)
        else:
            known.input = _moved(known.input, body_bytes, before)
        if text_bytes is not None:
            # What it thought is not in the text, so it says nothing about the text.
            known.output = _moved(known.output, text_bytes, after - min(after, to_count(usage.reasoning)))
        if after > 0:
            known.outputs.append(after)
            known.thoughts.append(min(after, to_count(usage.reasoning)))

    def usual_reasoning_tokens(self, model: str | None) -> int:
        """The median of the tokens that its last answers were thought over, before a word of them was said."""
        known = self._learnt.get(model or "")
        return sorted(known.thoughts)[len(known.thoughts) // 2] if known is not None and known.thoughts else 0

    def typical_output_tokens(self, model: str | None) -> int | None:
        """The 95th percentile of the tokens of its last answers; None: none was seen."""
        known = self._learnt.get(model or "")
        return None if known is None else _typical(known.outputs)


def count_text_bytes(body: Mapping[str, Any]) -> int:
    """The bytes of a request's text, for `Estimator.input_tokens`: what is data counts by what it holds.

    A base64 image costs tokens by its size in pixels, not by its length, so each image is IMAGE_BYTES. Other data
    count an eighth, and lists of tokens (embeddings take them) as many tokens as there are.
    """
    total = 0
    left: list[Any] = [body]
    while left:
        one = left.pop()
        if isinstance(one, str):
            total += len(one) if one.isascii() else len(one.encode("utf-8", "replace"))
            if one.startswith("data:"):
                total += _data(one) - len(one)
        elif isinstance(one, dict):
            if one.get("type") in ("image_url", "input_image", "image"):
                total += IMAGE_BYTES
                continue
            total += 6 * len(one)  # quotes, colons, commas, and a short name
            for key, value in one.items():
                if key == "file_data" or (key == "data" and ("format" in one or "media_type" in one)):
                    total += len(value) // DATA if isinstance(value, str) else 0
                else:
                    left.append(value)
        elif isinstance(one, list):
            if one and isinstance(one[0], int):
                total += int(FIRST_BYTES) * len(one)
            else:
                left.extend(one)
        else:
            total += 4
    return total


def _typical(seen: deque[int]) -> int | None:
    if not seen:
        return None
    lengths = sorted(seen)
    return lengths[min(len(lengths) - 1, int(len(lengths) * TYPICAL))]


def _data(url: str) -> int:
    return IMAGE_BYTES if url.startswith("data:image/") else len(url) // DATA


def _tokens(size: int, factor: float) -> int:
    return int(max(0, size) / factor + 0.999) if size < 10**12 else int(10**12 / factor)


def _moved(factor: float, size: int, tokens: int) -> float:
    if size <= 0 or tokens <= 0:
        return factor
    seen = min(LARGEST, max(LEAST, size / tokens))
    return factor + WEIGHT * (seen - factor)
