"""`schedules`: requests of the policy's own that are put into the queue by the clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from proxy.policy import value_types
from proxy.policy.cron import CRON, CronExpression
from proxy.policy.values import Label, Period


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """What is asked of the app: `path` may have a query."""

    method: Annotated[str, value_types.METHOD]
    path: Annotated[str, value_types.REQUEST_TARGET]


@dataclass(frozen=True, slots=True)
class Schedule:
    """`timeout` is for one try, in seconds; `catch_up`: one run for all that were missed while nobody was there."""

    name: Label
    cron: Annotated[CronExpression, CRON]
    request: ScheduledRequest
    timezone: Annotated[str, value_types.TIME_ZONE] = "UTC"
    timeout: Period = 900.0
    catch_up: bool = False
