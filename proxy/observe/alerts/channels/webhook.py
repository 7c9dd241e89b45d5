"""Alerts as plain JSON, for any other receiver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.observe.alerts.notification import Notification


def webhook_message(notices: Sequence[Notification], app: str, version: str) -> dict[str, Any]:
    return {"alerts": [notice.as_dict() for notice in notices], "app": app, "version": version}
