"""Signatures of callbacks: Standard Webhooks, symmetric (standard-webhooks/spec, "Verifying webhook authenticity").

Three fields go with a body, `webhook-id`, `webhook-timestamp` and `webhook-signature`. What is signed is

    ID.TIMESTAMP.BODY          HMAC-SHA-256 with the secret's bytes, in base64, after "v1,"

The id is the same at each delivery of one event, so that a receiver knows one that it had already; the timestamp is of
the delivery (Unix seconds), so that a receiver can refuse one that was recorded and sent again later.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping

KEY_PREFIX = "whsec_"  # the word that such secrets begin with


def decode_secret(secret: str) -> bytes:
    """The key of a secret that the policy took (`value_types.WEBHOOK_SECRET`)."""
    return base64.b64decode(secret.removeprefix(KEY_PREFIX))


def sign_webhook(secret: str, webhook_id: str, timestamp: int, body: bytes) -> Mapping[str, str]:
    """The header fields that go with a body; `timestamp` in Unix seconds."""
    signed = b"%s.%d.%s" % (webhook_id.encode(), timestamp, body)
    digest = hmac.new(decode_secret(secret), signed, hashlib.sha256).digest()
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
