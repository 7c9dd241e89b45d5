"""Alerts as plain JSON, for whatever else listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.observe.alerts.notification import Notice


def message(notices: Sequence[Notice], app: str, version: str) -> dict[str, Any]:
    return {"alerts": [notice.facts() for notice in notices], "app": app, "version": version}
