"""The likely cause of an alert and the first step to take, one sentence each, by the kind of its condition."""

from __future__ import annotations

from dataclasses import dataclass

from proxy import __repository__
from proxy.policy import alert_condition as when
from proxy.policy.alert_condition import Condition


@dataclass(frozen=True, slots=True)
class RunbookHint:
    likely_cause: str
    first_step: str


_APP = RunbookHint(
    "the app crashed, hangs, or cannot start: its own last lines in the log say why",
    "read the app's last lines before event app.exit; roll back the last deploy if there was one",
)
_BREAKER = RunbookHint(
    "the vendor is unwell, or its key or network is",
    "look at the vendor's status page; the breaker closes by itself when a probe succeeds",
)
_ERRORS = RunbookHint(
    "a fault in the app since a deploy, or something that it needs is away",
    "find the requests with status 500 and above in the log; roll back if it began with a deploy",
)
_CALLS = RunbookHint(
    "the vendor limits you or the account has no credit left (429), the key is wrong (401), or it is unwell",
    "look at the results of the attempts, then at the vendor's usage page; `upstreams.NAME.pace` asks for less at once",
)
_REFUSALS = RunbookHint(
    "one user's script or loop, or a limit that is too tight for how the app is used",
    'see who it is under "Who was refused" on the dashboard; block one with `ctl block USER`, or raise the limit',
)
_POLICY = RunbookHint(
    "a typing error, a value that does not fit, or a variable of the environment that is not set",
    "`outrigger check` names every fault with its line; mend the file and save it",
)
_SLOW = RunbookHint(
    "a slow vendor or database behind the route, or too little CPU",
    "compare duration_ms with app_ms, calls and cost of the route's requests in the log",
)
_MEMORY = RunbookHint(
    "the app leaks, or loads more than the instance has",
    "see which route grows in the status (memory_delta_mb); restart the app with `ctl restart-app`",
)
_COST = RunbookHint(
    "more use than the caps were made for, or one user running wild",
    "see who spends with `report --by user`; block one with `ctl block USER`, or raise the cap",
)
_POOL = RunbookHint(
    "transactions are held open while something slow is waited for, or queries are slow",
    "look at idle_in_transaction in the status; set postgres.timeout.idle_in_transaction, or raise postgres.pool.max",
)
_THROTTLED = RunbookHint(
    "the instance has less CPU than the app needs",
    "take a larger instance, or fewer workers; overload.mode: adaptive sheds what is too much",
)
_TASK_WAIT = RunbookHint(
    "more tasks than `background.concurrency` gets done, tasks that hang until their time-out, or an app that is away",
    "see which route waits and what runs with `ctl tasks`; raise `background.concurrency`, or cancel what hangs",
)
_TASKS_FAIL = RunbookHint(
    "a fault in the app since a deploy, or something that the tasks need is away",
    "see why with `ctl tasks --status failed`; when it is mended, `ctl task ID retry` runs one again",
)
_BYPASS = RunbookHint(
    "a base_url stands in the app's code, or a client was made before the environment was read",
    "look for base_url in the app's code and take it out, or let it read the upstream's variable",
)
_PARTS = {
    "upstreams": _BREAKER,
    "postgres": RunbookHint(
        "the database is away, or its address or password changed",
        "look at the database's own page; `doctor` tries the address",
    ),
    "store": RunbookHint(
        "the store is away", "look at the store's own page; until then each instance counts for itself"
    ),
    "ledger": RunbookHint(
        "the disk is full or read-only, or the ledger's database is away",
        "free the disk, or look at the database; rows wait in memory until then",
    ),
    "tasks": RunbookHint(
        "the tasks' database is away, or its disk is full or read-only",
        "look at the database, or free the disk; until then no task is accepted, and results wait in memory",
    ),
    "memory": _MEMORY,
    "connections": RunbookHint(
        "more clients than there are places or file descriptors, or one who opens connections without end",
        "bound one address by listen.connections.per_address, or raise the descriptor limit (ulimit -n)",
    ),
    "app": _APP,
}


def runbook_hint(condition: Condition) -> RunbookHint:
    match condition:
        case when.ComponentIs(part=part):
            return _PARTS[part]
        case when.BreakerOpen():
            return _BREAKER
        case when.ErrorRateAbove():
            return _ERRORS
        case when.CallErrorRateAbove():
            return _CALLS
        case when.RefusalRateAbove():
            return _REFUSALS
        case when.PolicyRefused():
            return _POLICY
        case when.LatencyAbove():
            return _SLOW
        case when.MemoryAbove():
            return _MEMORY
        case when.CapSpentAbove() | when.SpentTodayAbove():
            return _COST
        case when.PoolWaitAbove():
            return _POOL
        case when.ThrottledAbove():
            return _THROTTLED
        case when.TaskWaitAbove():
            return _TASK_WAIT
        case when.FailedTasksAbove():
            return _TASKS_FAIL
        case when.CallsBypass():
            return _BYPASS


def runbook_url(rule: str) -> str:
    """The address of the runbook; it has a heading for each rule."""
    return f"{__repository__}/blob/main/deploy/INCIDENTS.md#{rule}"
