"""Tokens of a generated image: vendors bill by size and quality, and report how many only afterwards.

developers.openai.com/api/docs/guides/image-generation (cost and latency)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PREVIEW_TOKENS = 100  # tokens of a preview (developers.openai.com/api/docs/guides/image-generation)
DEFAULT_SIDE = 1024  # pixels, of an image without a size
MAX_SIDE = 8192  # pixels
DEFAULT_FRAMES = 9  # of a moving image
# Tokens a pixel of the first family: 272, 1056 and 4160 of 1024 by 1024, a little over in the other two sizes.
_FIRST_FAMILY_TOKENS = {"low": 272, "medium": 1056, "standard": 1056, "high": 4160, "hd": 4160}
# The families since: the longer side has so many patches (developers.openai.com's calculator; published for three).
_LATER_FAMILY_PATCHES = {"low": 16, "medium": 48, "standard": 48, "high": 96, "hd": 96, "xhigh": 128, "max": 192}
_SIZE = re.compile(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", re.IGNORECASE)


def image_tokens(model: str | None, size: object, quality: object) -> int:
    """Tokens of one image. A quality that is missing or left to the model (`auto`) counts as high."""
    width, height = _parse_size(size)
    wanted = quality if isinstance(quality, str) else "high"
    name = (model or "").lower()
    if "gpt-image-1" in name or "chatgpt-image" in name:
        if not _has_size(size):
            width, height = DEFAULT_SIDE, 1536
        return -(
            -_FIRST_FAMILY_TOKENS.get(wanted, _FIRST_FAMILY_TOKENS["high"])
            * width
            * height
            // (DEFAULT_SIDE * DEFAULT_SIDE)
        )
    patches = _LATER_FAMILY_PATCHES.get(wanted, _LATER_FAMILY_PATCHES["high"])
    long, short = max(width, height), min(width, height)
    across = max(1, round(patches * short / long))
    return -(-patches * across * (2_000_000 + width * height) // 4_000_000)


def requested_image_tokens(model: str | None, asked: Mapping[str, object]) -> int:
    """Tokens of each image that a request asks for: itself, its previews, the frames of a moving one."""
    tokens = image_tokens(model, asked.get("size"), asked.get("quality"))
    if asked.get("output_format") == "gif":
        tokens *= _bounded(asked.get("frame_count"), DEFAULT_FRAMES, 16)
    return tokens + PREVIEW_TOKENS * _bounded(asked.get("partial_images"), 0, 3)


def _bounded(value: object, otherwise: int, most: int) -> int:
    return int(min(most, max(0, value))) if isinstance(value, int | float) else otherwise


def _has_size(size: object) -> bool:
    return isinstance(size, str) and _SIZE.fullmatch(size) is not None


def _parse_size(size: object) -> tuple[int, int]:
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        return DEFAULT_SIDE, DEFAULT_SIDE
    # A size is what a caller wrote, so it has bounds.
    width, height = (min(MAX_SIDE, max(1, int(side))) for side in found.groups())
    return width, height
