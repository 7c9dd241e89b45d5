"""The context of one call out: what every step of the pipeline reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from proxy.egress.body import Body
from proxy.egress.dialects import RequestInfo, Usage
from proxy.egress.headers import Fields
from proxy.observe.request_registry import Attribution
from proxy.util.user_names import UNATTRIBUTED

if TYPE_CHECKING:
    from proxy.egress.app_response import ResponseWriter
    from proxy.egress.billing.charge import Charge
    from proxy.egress.circuit_breaker import Admission
    from proxy.egress.deadline import Deadline
    from proxy.egress.upstream import Upstream
    from proxy.errors import CallRefused

Outcome = Literal["ok", "error", "refused", "cached", "fallback", "gone"]
Cache = Literal["hit", "miss", "coalesced", "stale", "off"]


class Call:
    """One call, from its head to its line in the log. Times are the loop's clock, in seconds.

    What was asked: `method`, `rest` (path and query below the upstream, as the app sent them), `fields`, `body`, and
    what the dialect reads in it: `endpoint`, `ask`, `followed`. Whose it is: `owner`, `user`, `tier`. How it goes:
    `writer`, `deadline`, `cache_key`, `charge`, `admission`, each set by the step that makes it. What became of it:
    `outcome`, `status`, `usage`, `charges`, `refusal` and `reason`.

    A fallback to another model or upstream is a second Call (`fallback.redirect_call`), whose result the first adopts.
    """

    __slots__ = (
        "admission",
        "answered_by",
        "ask",
        "attempts",
        "began",
        "body",
        "cache",
        "cache_key",
        "charge",
        "charges",
        "deadline",
        "duration",
        "ended",
        "endpoint",
        "fallback",
        "fields",
        "first_byte_at",
        "followed",
        "is_read",
        "is_sdk_retry",
        "is_shared",
        "ledger_id",
        "left_to_caller",
        "method",
        "outcome",
        "owner",
        "reason",
        "refusal",
        "reported_cost",
        "rest",
        "started_at",
        "status",
        "store_seconds",
        "target",
        "tier",
        "upstream",
        "usage",
        "user",
        "writer",
    )

    admission: Admission
    ask: RequestInfo
    body: Body
    deadline: Deadline
    writer: ResponseWriter

    def __init__(
        self, upstream: Upstream, method: str, rest: str, fields: Fields, began: float, started_at: float = 0.0
    ) -> None:
        self.ledger_id = ""  # of its row, if no charge has one
        self.upstream = upstream
        self.answered_by = upstream.name
        self.method = method
        self.rest = rest
        self.target = rest  # as it goes on: the real key may stand in it, so it is shown to nobody
        self.fields = fields  # what goes on
        self.began = began
        self.started_at = started_at  # `began` by the wall clock
        self.endpoint: str | None = None
        self.followed: str | None = None  # the reference that it asks after, of what the vendor goes on with
        self.owner: Attribution | None = None
        self.user = UNATTRIBUTED
        self.tier = ""
        self.is_sdk_retry = False  # the SDK tries again by itself: none of ours on top
        self.is_read = False  # its body has been read, as far as it is kept
        self.cache_key: bytes | None = None  # None if its answer may not be shared
        self.store_seconds = 0.0  # that it has waited for the store of several instances
        self.charge: Charge | None = None  # of the upstream and model that are asked now
        self.charges: list[Charge] = []  # of each upstream and model that were asked, in order
        self.left_to_caller = False  # another attempt makes sense and is not ours to make
        self.attempts = 0
        self.cache: Cache = "off"
        self.fallback: str | None = None
        self.first_byte_at: float | None = None
        self.outcome: Outcome = "gone"
        self.status = 0
        self.usage: Usage | None = None
        self.refusal: CallRefused | None = None
        self.ended = False
        self.reported_cost = 0  # nano-dollars that its request was told of
        self.duration = 0.0  # seconds, once it has ended
        self.is_shared = False  # others read its answer too: what it costs is known when that ends
        self.reason: str | None = None  # in words, if something failed

    def adopt_result(self, copy: Call) -> None:
        """Take over the result of the copy that went to another model or upstream (a fallback)."""
        self.status, self.usage, self.first_byte_at = copy.status, copy.usage, copy.first_byte_at
        self.fallback, self.answered_by, self.ask = copy.fallback, copy.answered_by, copy.ask

    @property
    def path(self) -> str:
        return self.rest.partition("?")[0]

    @property
    def spent(self) -> int:
        """Nano-dollars that it has cost so far."""
        charges = self.charges
        return charges[0].cost if len(charges) == 1 else sum(charge.cost for charge in charges)

    @property
    def cost(self) -> int | None:
        """What it cost in nano-dollars; None until that is known, and if the call has no price."""
        if self.cache in ("hit", "stale", "coalesced"):
            return 0
        for charge in self.charges:
            if not charge.closed:
                return None
        return self.spent if self.charges else None

    @property
    def model(self) -> str | None:
        if self.usage is not None and self.usage.model:
            return self.usage.model
        return self.ask.model
