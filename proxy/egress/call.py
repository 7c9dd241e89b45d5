"""The record of one call out: what every step of the pipeline reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from proxy.egress.body import Body
from proxy.egress.dialects import RequestInfo, Usage
from proxy.egress.headers import Fields
from proxy.observe.request_registry import Attribution
from proxy.observe.reserved_users import UNATTRIBUTED

if TYPE_CHECKING:
    from proxy.egress.billing.charge import Charge
    from proxy.errors import CallRefused

Outcome = Literal["ok", "error", "refused", "cached", "fallback", "gone"]
Cache = Literal["hit", "miss", "coalesced", "stale", "off"]


class Call:
    """Times are the loop's clock, in seconds."""

    __slots__ = (
        "answered_by",
        "ask",
        "attempts",
        "began",
        "bills",
        "body",
        "cache",
        "duration",
        "ended",
        "endpoint",
        "fallback",
        "fields",
        "first_byte_at",
        "followed",
        "is_sdk_retry",
        "is_shared",
        "left_to_caller",
        "method",
        "outcome",
        "owner",
        "reason",
        "refusal",
        "reported_cost",
        "rest",
        "row_id",
        "started_at",
        "status",
        "target",
        "tier",
        "upstream",
        "usage",
        "user",
    )

    ask: RequestInfo
    body: Body

    def __init__(self, upstream: str, method: str, rest: str, fields: Fields, began: float, at: float = 0.0) -> None:
        self.row_id = ""  # in the ledger, where no bill has one
        self.upstream = upstream  # the one that was called, whoever answered in the end
        self.answered_by = upstream
        self.method = method
        self.rest = rest  # path and query below the upstream, as the app sent them
        self.target = rest  # as they go on: the real key may stand in them, so they are shown to nobody
        self.fields = fields  # what goes on
        self.began = began
        self.started_at = at  # began, by the wall clock
        self.endpoint: str | None = None
        self.followed: str | None = None  # the reference that it asks after, of what the vendor goes on with
        self.owner: Attribution | None = None
        self.user = UNATTRIBUTED
        self.tier = ""
        self.is_sdk_retry = False  # the SDK tries again by itself: none of ours on top
        # set on the way
        self.left_to_caller = False  # another attempt makes sense and is not ours to make
        self.attempts = 0
        self.bills: list[Charge] = []  # of each upstream and model that were asked, in order
        self.cache: Cache = "off"
        self.fallback: str | None = None
        self.first_byte_at: float | None = None
        self.outcome: Outcome = "gone"
        self.status = 0
        self.usage: Usage | None = None
        self.refusal: CallRefused | None = None
        self.ended = False
        self.reported_cost = 0  # nano-dollars that its request was told of
        self.duration = 0.0  # seconds, once it is over
        self.is_shared = False  # others read its answer too: what it costs is known when that ends
        self.reason: str | None = None  # in words, where something failed

    def adopt_result(self, copy: Call) -> None:
        """It was answered as a copy of it that went to another model or upstream (a fallback)."""
        self.status, self.usage, self.first_byte_at = copy.status, copy.usage, copy.first_byte_at
        self.fallback, self.answered_by, self.ask = copy.fallback, copy.answered_by, copy.ask

    @property
    def path(self) -> str:
        return self.rest.partition("?")[0]

    @property
    def cost(self) -> int | None:
        """Nano-dollars, once it is known; None before, and where the call has no price."""
        if self.cache in ("hit", "stale", "coalesced"):
            return 0
        if not self.bills or not all(bill.closed for bill in self.bills):
            return None
        return sum(bill.cost for bill in self.bills)

    @property
    def model(self) -> str | None:
        if self.usage is not None and self.usage.model:
            return self.usage.model
        return self.ask.model
