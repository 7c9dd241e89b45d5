"""Alerts as a message of Slack's incoming webhooks: Block Kit, in attachments for their colour.

Sources: docs.slack.dev/reference/block-kit/blocks (a header has at most 150 characters, a section's text 3000, a
field 2000) and docs.slack.dev/messaging/formatting-message-text (&, < and > are escaped, nothing else is).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.observe.alerts.notification import Notification

MAX_ALERTS_SHOWN = 8  # in one message, which may have 50 blocks; of the rest only the names are shown
COLOURS = {"critical": "#d72b3f", "warning": "#e8a917", "cleared": "#2e9e5b"}
EMOJI = {"critical": ":red_circle:", "warning": ":large_yellow_circle:", "cleared": ":large_green_circle:"}


def slack_message(notices: Sequence[Notification], app: str, version: str) -> dict[str, Any]:
    shown, rest = notices[:MAX_ALERTS_SHOWN], notices[MAX_ALERTS_SHOWN:]
    attachments = [_make_attachment(notice, app, version) for notice in shown]
    if rest:
        text = f"and {len(rest)} more: {', '.join(_alert_title(notice) for notice in rest)}"
        attachments.append({"fallback": text[:300], "blocks": [_make_section(text)]})
    return {"text": _fallback_text(notices, app), "attachments": attachments}


def _fallback_text(notices: Sequence[Notification], app: str) -> str:
    """The text for the notification on a phone, and for clients that do not know blocks."""
    if len(notices) == 1:
        return escape_mrkdwn(f"{_alert_emoji(notices[0])} {app}: {notices[0].message}")[:3000]
    return escape_mrkdwn(f"{app}: {len(notices)} alerts: {', '.join(_alert_title(notice) for notice in notices)}")[
        :3000
    ]


def _make_attachment(notice: Notification, app: str, version: str) -> dict[str, Any]:
    cleared = notice.state == "cleared"
    fields = [
        f"*Since*\n{notice.since}",
        f"*Severity*\n{notice.severity}",
        f"*Rule*\n{escape_mrkdwn(notice.threshold)}",
        f"*Was*\n{escape_mrkdwn(notice.value)}" if cleared else f"*Now*\n{escape_mrkdwn(notice.value)}",
    ]
    blocks: list[dict[str, Any]] = [
        {
            "type": "header",
            "text": {
                "type": "plain_text",
                "text": f"{_alert_emoji(notice)} {_alert_title(notice)}"[:150],
                "emoji": True,
            },
        },
        _make_section(notice.message),
        {"type": "section", "fields": [{"type": "mrkdwn", "text": text[:2000]} for text in fields]},
    ]
    if not cleared:
        blocks.append(_make_section(f"Likely: {notice.likely_cause}\nFirst: {notice.first_step}"))
    links = f"{escape_mrkdwn(app)} · Outrigger {version} · <{notice.runbook}|what to do about {notice.name}>"
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": links}]})
    return {"color": COLOURS[_colour_key(notice)], "fallback": escape_mrkdwn(notice.message)[:3000], "blocks": blocks}


def _make_section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": escape_mrkdwn(text)[:3000]}}


def _alert_title(notice: Notification) -> str:
    state = {"cleared": "all clear: ", "flapping": "flapping: "}.get(notice.state, "")
    return f"{state}{notice.name}" + (f" ({notice.subject})" if notice.subject else "")


def _colour_key(notice: Notification) -> str:
    return "cleared" if notice.state == "cleared" else notice.severity


def _alert_emoji(notice: Notification) -> str:
    return EMOJI[_colour_key(notice)]


def escape_mrkdwn(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
