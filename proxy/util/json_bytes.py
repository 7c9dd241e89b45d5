"""JSON that is written again: an app's body with another model, an answer or an error event of our own."""

from __future__ import annotations

import json


def json_bytes(value: object) -> bytes:
    """UTF-8, letters as themselves. Half of a surrogate pair, which JSON text may escape (RFC 8259 section 8.2) and
    JavaScript's slice makes of an emoji, stays the escape that it came as, since no UTF-8 has it."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
