"""Where alerts are sent: one file a channel, with the function that writes its message.

A channel's name here is its key in `alerts` of the policy, which has its address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from proxy.observe.alerts.channels.slack import slack_message
from proxy.observe.alerts.channels.webhook import webhook_message
from proxy.observe.alerts.notification import Notification

# Takes the notifications, the app's name and the gateway's version; gives the JSON that is posted.
FormatMessage = Callable[[Sequence[Notification], str, str], dict[str, Any]]
CHANNELS: Mapping[str, FormatMessage] = MappingProxyType({"slack": slack_message, "webhook": webhook_message})
