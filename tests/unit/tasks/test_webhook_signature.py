"""Signatures of callbacks are what the package of Standard Webhooks verifies."""

from __future__ import annotations

import base64
import json
import time

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from proxy.tasks.webhook_signature import sign_webhook


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_receiver_with_the_secret_verifies_it(size: int) -> None:
    secret = "whsec_" + base64.b64encode(bytes(range(size))).decode()
    body = json.dumps({"type": "task.succeeded", "data": {"id": "ä"}}, ensure_ascii=False).encode()
    fields = dict(sign_webhook(secret, "msg_1", int(time.time()), body))
    assert Webhook(secret).verify(body, fields) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", fields)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, {**fields, "webhook-id": "msg_2"})
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"o" * 32).decode()).verify(body, fields)


def test_the_specifications_own_example_comes_out() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    fields = sign_webhook(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert fields["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
