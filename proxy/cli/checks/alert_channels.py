"""Where alerts go: whether each channel's address can be reached, and with `--slack` a test message."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import aiohttp

from proxy.cli.checks.upstreams import REQUEST_TIMEOUT, describe_error
from proxy.cli.output import Finding
from proxy.observe.alerts.channels import CHANNELS
from proxy.policy.schema import Policy


async def check_alert_channels(policy: Policy, *, post: bool) -> list[Finding]:
    """Where alerts go; with `post` a test message goes there."""
    found = []
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
        for name in CHANNELS:
            url: str | None = getattr(policy.alerts, name)
            if url:
                found.append(await _check_webhook(session, f"alerts.{name}", url, post=post and name == "slack"))
    if not policy.alerts.slack:
        text = "alerts are logged only"
        level: Finding = Finding("ok", "alerts.slack", text, "set SLACK_WEBHOOK_URL to be told of them")
        if post:
            level = Finding("error", "alerts.slack", "there is no webhook to post to", "set SLACK_WEBHOOK_URL")
        found.append(level)
    return found


async def _check_webhook(session: aiohttp.ClientSession, subject: str, url: str, *, post: bool) -> Finding:
    parts = urlsplit(url)
    host = parts.hostname or ""
    # Slack accepts connections whatever the path is, so a wrong one would look fine.
    if subject == "alerts.slack" and host == "hooks.slack.com" and not parts.path.startswith("/services/"):
        fix = "copy it from Slack once more: https://hooks.slack.com/services/…"
        return Finding("error", subject, "it is not what Slack's webhooks look like", fix)
    try:
        if post:
            message = {"text": "A test of Outrigger's doctor: alerts will come here."}
            # A redirect would turn the POST into a GET, whose status says nothing of the message.
            async with session.post(url, json=message, allow_redirects=False) as answer:
                if answer.status >= 300:
                    return Finding(
                        "error", subject, f"{host} refuses the message ({answer.status})", "make a new webhook"
                    )
            return Finding("ok", subject, f"a test message went to {host}")
        # A connection alone: every request to a webhook is a message.
        tls = True if parts.scheme == "https" else None
        async with asyncio.timeout(REQUEST_TIMEOUT):
            _, writer = await asyncio.open_connection(host, parts.port or (443 if tls else 80), ssl=tls)
        writer.close()
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Finding(
            "error", subject, f"{host} cannot be reached: {describe_error(error)}", "see that this machine may call out"
        )
    return Finding("ok", subject, f"{host} can be reached; --slack posts a test message")
