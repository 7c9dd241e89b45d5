"""What the queue keeps: a request that runs later, how far it is, and the app's answer to it.

    state      event                                         next state
    (none)     accepted                                      queued, or delayed if it is to run later
    delayed    its time has come (Outrigger-Delay, backoff)  queued
    queued     an instance claims it, in its user's turn     running
    queued     cancelled                                     cancelled
    running    the app answered below 500                    succeeded
    running    it failed, and may be tried again             delayed, until its backoff is over
    running    it failed for good                            failed
    running    it was cancelled                              cancelled, once its connection to the app is closed
    running    its instance drains                           queued, not counted against `retry.attempts`
    running    its instance died, for the first two times    queued, not counted either
    running    its instance died for the third time          failed
    failed     an operator tries it again (`ctl task`)       queued

Times are Unix seconds by the database's clock, so that instances whose clocks differ agree. Nobody outside learns of
`delayed`: it is shown as queued.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Literal

TaskState = Literal["delayed", "queued", "running", "succeeded", "failed", "cancelled"]
ENDED = ("succeeded", "failed", "cancelled")
WAITING = ("queued", "delayed")

FieldList = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """A request as it came. `target` is as sent, in bytes; `peer` the address at the other end of its connection.

    `chunked` is how its body was framed: some apps treat the two differently.
    """

    method: str
    target: bytes
    fields: FieldList
    body: bytes
    peer: str
    chunked: bool = False
    request_id: str = ""
    trace_id: str | None = None

    def fingerprint(self) -> str:
        """Tells requests apart that came with one Idempotency-Key: method, target and body."""
        digest = hashlib.sha256(b"%s %s\n" % (self.method.encode(), self.target))
        digest.update(self.body)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task that is to be accepted.

    - `delay`: seconds from now until it may run. `run_at`: the same as a time; the later of the two counts.
    - `key`: its Idempotency-Key, hashed (`hash_key`); None if it has none.
    - `callback`: the address that its end is told to.
    - `max_queued`: how many may wait on its route; None for no bound.
    """

    id: str
    route: str
    user: str
    tier: str
    request: TaskRequest
    delay: float = 0.0
    run_at: float = 0.0
    key: str | None = None
    callback: str | None = None
    max_queued: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A task as its row says, without its request and its result.

    - `attempts`: tries that were begun. `failures`: those of them that count against `retry.attempts`. `kills`: those
      that ended with the death of their instance.
    - `reason`: why it failed, or why its last try did; empty if nothing went wrong.
    - `started`: of its first try. `ended`: None until then. `run_at`: when it may run, at the earliest.
    - `status`: of the app's answer that is its result, None if there is none.
    - `position`: its place among those that wait on its route, from 1; 0 if it was not asked for, or does not wait.
    - `cost` in nano-dollars and `calls` out, of all its tries.
    """

    id: str
    route: str
    user: str
    tier: str
    state: TaskState
    reason: str
    attempts: int
    failures: int
    kills: int
    created: float
    run_at: float
    started: float | None
    ended: float | None
    status: int | None
    cost: int
    calls: int
    fingerprint: str
    callback: str | None
    cancelling: bool
    position: int = 0

    @property
    def shown_state(self) -> str:
        """The state as the outside knows it."""
        if self.cancelling:
            return "cancelled"
        return "queued" if self.state == "delayed" else self.state

    @property
    def has_ended(self) -> bool:
        return self.cancelling or self.state in ENDED


@dataclass(frozen=True, slots=True)
class ClaimedTask:
    """A task that this instance runs now, for the `task.attempts`-th time. `waited`: seconds since it could have."""

    task: Task
    request: TaskRequest
    waited: float


@dataclass(frozen=True, slots=True)
class TaskResponse:
    """The app's answer, whole: end-to-end fields and body as they came."""

    status: int
    reason: bytes
    fields: FieldList
    body: bytes


def new_id() -> str:
    """128 random bits (RFC 4086): whoever has it may ask for the task, and nobody can guess it."""
    return secrets.token_hex(16)


def cut_id(id: str) -> str:
    """What of an id may stand in a log: enough to find a task by it, too little to ask for it."""
    return f"{id[:8]}…"


def hash_key(key: str) -> str:
    """An Idempotency-Key as it is kept: of a known length, and of letters that every database takes."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def pack_fields(fields: FieldList) -> bytes:
    """Header fields as one value of a row, as they stand in a message (RFC 9112 section 5)."""
    return b"".join(b"%s: %s\r\n" % pair for pair in fields)


def unpack_fields(packed: bytes) -> FieldList:
    found = []
    for line in packed.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        found.append((name, value))
    return tuple(found)
