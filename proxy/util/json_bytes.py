"""JSON that is written again: an app's body with another model, a response or an error event of the gateway's own.

A file of its own because each dialect needs it, and nothing else is in its room to go with it.
"""

from __future__ import annotations

import json


def json_bytes(value: object) -> bytes:
    """A JSON text in UTF-8, with letters as themselves.

    Half of a surrogate pair, which JSON may escape (RFC 8259 section 8.2) and JavaScript's `slice` makes of an emoji,
    stays the escape that it came as, since UTF-8 cannot encode it.
    """
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
