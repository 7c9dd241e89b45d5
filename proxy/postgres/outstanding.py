"""The replies a server owes, in the order it owes them: what of them its client gets, and what it does not.

Every message that the server will answer is expected when it is sent. An error in the extended protocol makes
the server skip everything up to the next Sync, so that is dropped here too; a Query sent in that time is
skipped as well, and answered by nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from proxy.postgres import wire
from proxy.postgres.session_state import LOCAL, RESETS, SETTINGS, TAGS
from proxy.postgres.statement_registry import Statement
from proxy.postgres.wire import COMPLETE, HEAD_SIZE, READY, read_head
from proxy.postgres.wire import EXECUTE as EXECUTED

# [merged from postgres/expect] What a server owes: one entry for each message that it will answer.
FAKE = 0  # the kind of a reply that we give in the server's place
MARK = 1  # CopyDone or CopyFail: it has no reply, but Syncs before it are swallowed by a COPY


class Expect:
    """One reply owed, or several up to ReadyForQuery. `skip`: the client does not get it; `fake` is given
    without the server; `instead` replaces an error; `done` gets what was skipped and gives what the client gets in
    its place, or is told that a command has completed; `undo` is called where the reply never came, because this or
    something before it failed."""

    __slots__ = ("done", "fake", "flags", "instead", "kind", "name", "plain", "skip", "statement", "undo")

    def __init__(
        self,
        kind: int,
        *,
        skip: bool = False,
        fake: bytes = b"",
        instead: bytes = b"",
        statement: Statement | None = None,
        name: bytes = b"",
        flags: int = 0,
        done: Callable[[bytes], bytes] | None = None,
        undo: Callable[[], None] | None = None,
    ) -> None:
        self.kind = kind
        # Its answer passes unread.
        self.plain = not skip and done is None and (kind != wire.DESCRIBE or statement is None)
        self.skip = skip
        self.fake = fake
        self.instead = instead
        self.statement = statement
        self.name = name
        self.flags = flags
        self.done = done
        self.undo = undo

    def __repr__(self) -> str:
        return f"<Expect {chr(self.kind)}{' skipped' if self.skip else ''}>"


COPIED = Expect(MARK)
QUERY, SYNC, FUNCTION = Expect(wire.QUERY), Expect(wire.SYNC), Expect(wire.FUNCTION)
PARSE, BIND, CLOSE, DESCRIBE, EXECUTE = (
    Expect(wire.PARSE),
    Expect(wire.BIND),
    Expect(wire.CLOSE),
    Expect(wire.DESCRIBE),
    Expect(wire.EXECUTE),
)

# What answers nothing, what is answered by ReadyForQuery, and which reply ends which message's.
ASIDE = frozenset((wire.PARAMETER, wire.NOTICE, wire.NOTIFICATION))
READIES = frozenset((wire.QUERY, wire.SYNC, wire.FUNCTION))
ANSWERS = {
    wire.PARSED: wire.PARSE,
    wire.BOUND: wire.BIND,
    wire.CLOSED: wire.CLOSE,
    wire.ROW_DESCRIPTION: wire.DESCRIBE,
    wire.NO_DATA: wire.DESCRIBE,
    wire.EMPTY_QUERY: wire.EXECUTE,
    wire.SUSPENDED: wire.EXECUTE,
}


# [merged from postgres/owner] Whom a pipeline tells of what its server said beside the replies that it owes.
class Owner(Protocol):
    """`parameter` gives what the client gets in the message's place, if anything; `resets`: a RESET did it."""

    def parameter(self, name: bytes, value: bytes, *, shown: bool, resets: bool) -> bytes: ...

    def notification(self, message: bytes) -> bytes:
        """The message as the client gets it."""
        ...

    def tagged(self, hint: int, tag: bytes) -> None: ...
    def outdated(self, statement: Statement) -> None: ...
    def translated(self, error: bytes) -> bytes: ...


HUGE = 1 << 30
LONG = 64 * 1024  # bytes; a row longer than this passes before it is whole


class Pipeline:
    """`replies` takes what the server sent and gives what the client gets.

    `status` is that of the last ReadyForQuery; `rested`: nothing was sent since it that counts; `failed`: the
    server skips to the next Sync; `copying`: it reads COPY data.
    """

    __slots__ = (
        "_inside",
        "_owner",
        "_part",
        "_skipped",
        "cancelled",
        "copying",
        "ended",
        "errors",
        "failed",
        "queue",
        "rested",
        "skips",
        "status",
    )

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.queue: deque[Expect] = deque()
        self.status = wire.IDLE
        self.rested = True
        self.failed = False
        self.copying = False
        self.errors = 0
        self.skips = True  # what is undone was skipped; else it is what has failed
        self.ended = False  # the server has said its last words
        self.cancelled = b""  # what the client is told when a cancel of ours arrives
        self._part = b""  # the begin of a message, where that is all that came
        self._inside = 0  # bytes of a long message that are still to come
        self._skipped: list[bytes] = []

    def __repr__(self) -> str:
        return f"<Pipeline {chr(self.status)}, {len(self.queue)} owed{', skipping to Sync' if self.failed else ''}>"

    @property
    def inside(self) -> bool:
        """Whether the client has half a message."""
        return self._inside > 0

    def expect(self, entry: Expect) -> None:
        """A message was sent that the server answers, unless it skips to the next Sync."""
        self.rested = False
        if not self.failed or entry.kind == wire.SYNC:
            self.queue.append(entry)
        elif entry.undo is not None:
            entry.undo()

    def synced(self) -> None:
        """A Sync is about to be sent: whether the server will answer it."""
        if not self.copying:
            self.rested = self.failed = False
            self.queue.append(SYNC)

    def copied(self) -> None:
        """CopyDone or CopyFail was sent."""
        if self.copying:
            self.copying = False
        elif self.queue:
            self.queue.append(COPIED)

    def fakes(self) -> bytes:
        """What is due to the client though nothing more is to come from the server before it."""
        queue = self.queue
        if not queue or queue[0].kind > MARK:
            return b""
        due = b""
        while queue and queue[0].kind <= MARK:
            due += self._given(queue.popleft())
        return due

    def replies(self, data: bytes) -> bytes:
        """Raises ValueError where the server does not speak the protocol."""
        queue = self.queue
        if self._part:
            data = self._part + data
            self._part = b""
        elif len(queue) == 1 and queue[0] is QUERY and not self._inside and self._whole(data):
            return data
        size = len(data)
        out: list[bytes] | None = None
        start = pos = 0
        if self._inside:
            pos = min(self._inside, size)
            self._inside -= pos
        skipping = bool(queue) and queue[0].skip
        while pos + HEAD_SIZE <= size:
            kind, length = read_head(data, pos)
            end = pos + 1 + length
            if (kind == 68 or kind == 100) and not skipping:  # DataRow, CopyData
                if end > size:
                    if length > LONG:
                        self._inside = end - size
                        pos = size
                    break
                pos = end
                continue
            if end > size:
                if length >= HUGE or kind not in wire.BACKEND:
                    raise ValueError("the database sent what is no message of its protocol")
                break
            if queue and (head := queue[0]).plain and head.kind > MARK and length >= 4:  # what is usual
                answered = ANSWERS.get(kind)
                if answered is not None:
                    if answered == head.kind:
                        queue.popleft()
                        skipping = bool(queue) and queue[0].skip
                    pos = end
                    continue
                if kind == COMPLETE and data[pos + 5 : pos + 8] not in TAGS:
                    if head.kind == EXECUTED:
                        queue.popleft()
                        skipping = bool(queue) and queue[0].skip
                    pos = end
                    continue
                if kind == READY and len(queue) == 1 and head.kind in READIES:
                    queue.clear()
                    self.status = data[pos + HEAD_SIZE]
                    self.rested = True
                    self.failed = self.copying = skipping = False
                    pos = end
                    continue
            if length < 4 or kind not in wire.BACKEND:
                raise ValueError("the database sent what is no message of its protocol")
            keep, extra = True, b""
            if kind not in ASIDE:
                while queue and queue[0].kind <= MARK:
                    out = out or []
                    out += (data[start:pos], self._given(queue.popleft()))
                    start = pos
                if queue:
                    keep, extra = self._reply(kind, queue[0], data, pos, end)
                    skipping = bool(queue) and queue[0].skip
            elif kind == wire.PARAMETER:
                name, _, value = data[pos + HEAD_SIZE : end - 1].partition(b"\0")
                resets = bool(queue) and bool(queue[0].flags & RESETS)
                extra = self._owner.parameter(name, value, shown=not skipping, resets=resets)
                keep = not skipping and not extra
            elif kind == wire.NOTIFICATION:
                keep, extra = False, self._owner.notification(data[pos:end])
            else:
                keep = not skipping
            if kind == wire.ERROR and b"VFATAL\0" in data[pos:end]:
                self.ended = keep = True
            if not keep or extra:
                out = out or []
                out.append(data[start:pos])
                if extra:
                    out.append(extra)
                start = end
            pos = end
        if pos < size:
            self._part = data[pos:]
        tail = self.fakes() if queue and queue[0].kind <= MARK else b""
        if out is None and not tail:
            return data if start == 0 and pos == size else data[start:pos]
        return b"".join((*(out or ()), data[start:pos], tail))

    def _whole(self, data: bytes) -> bool:
        """A Query's whole answer, in which nothing counts but how it ends."""
        pos, last = 0, len(data) - HEAD_SIZE - 1
        while pos < last:
            kind, length = read_head(data, pos)
            if kind != 68 and kind != 84 and (kind != COMPLETE or data[pos + 5 : pos + 8] in TAGS):
                return False
            pos += 1 + length
        if pos != last or data[pos] != READY:
            return False
        self.queue.clear()
        self.status = data[-1]
        self.rested = True
        self.failed = self.copying = False
        return True

    def _reply(self, kind: int, head: Expect, data: bytes, pos: int, end: int) -> tuple[bool, bytes]:
        """One message that answers `head`: whether the client gets it, and what it gets instead."""
        if head.skip and head.done is not None:
            self._skipped.append(data[pos:end])
        keep = not head.skip
        if kind == wire.READY:
            self.status = data[pos + HEAD_SIZE]
            return keep, self._ready()
        if kind == wire.ERROR:
            return self._error(head, data, pos, end)
        if kind == wire.COMPLETE:
            hint = TAGS.get(data[pos + 5 : pos + 8])
            if hint is not None and not head.skip:
                if hint != SETTINGS or not head.flags & LOCAL:
                    self._owner.tagged(hint, data[pos + HEAD_SIZE : end - 1])
            if head.done is not None and not head.skip:
                head.done(b"")
            if head.kind == wire.EXECUTE:
                self.queue.popleft()
        elif kind == wire.COPY_IN:
            self._copies()
        elif kind in ANSWERS and head.kind == ANSWERS[kind]:
            if kind in (wire.ROW_DESCRIPTION, wire.NO_DATA) and head.statement is not None and not head.skip:
                head.statement.result = wire.shape(data[pos:end])
            return keep, self._answered(head)
        return keep, b""

    def _given(self, entry: Expect) -> bytes:
        """What is said without the server, now that all before it is."""
        return entry.fake + (entry.done(b"") if entry.done is not None else b"")

    def _answered(self, head: Expect) -> bytes:
        self.queue.popleft()
        return self._done(head) if head.skip else b""

    def _ready(self) -> bytes:
        queue = self.queue
        while queue:
            head = queue.popleft()
            if head.kind in READIES:
                self.failed = self.copying = False
                while queue and queue[0].kind == MARK:
                    queue.popleft()  # the end of a COPY that was refused
                self.rested = not queue
                return self._done(head) if head.skip else b""
            if head.undo is not None:
                head.undo()
        return b""

    def _done(self, head: Expect) -> bytes:
        skipped, self._skipped = self._skipped, []
        return head.done(b"".join(skipped)) if head.done is not None else b""

    def _error(self, head: Expect, data: bytes, pos: int, end: int) -> tuple[bool, bytes]:
        body = data[pos + HEAD_SIZE : end]
        extended = head.kind not in (wire.QUERY, wire.FUNCTION)
        if not head.skip or extended:
            self.errors += 1
        if extended:
            self._skipped = []
            queue = self.queue
            dropped: list[Expect] = []
            while queue and queue[0].kind != wire.SYNC:
                dropped.append(queue.popleft())
            for undone in reversed(dropped):  # what has failed is undone last
                self.skips = undone is not head
                if undone.undo is not None:
                    undone.undo()
            self.skips = True
            self.failed = not queue  # else the Sync that ends the skipping is on its way already
            self.copying = False
        elif head.skip:
            return False, b""
        if head.instead:
            return True, head.instead
        if self.cancelled and b"\0C57014\0" in body:
            instead, self.cancelled = self.cancelled, b""
            return True, instead
        if head.statement is not None:
            if b"\0C0A000\0" in body and b"cached plan" in body:
                self._owner.outdated(head.statement)
            return True, wire.message(wire.ERROR, body.replace(head.statement.name, head.name))
        if (translated := self._owner.translated(body)) is not body:
            return True, wire.message(wire.ERROR, translated)
        return True, b"" if not head.skip else data[pos:end]

    def _copies(self) -> None:
        """The server reads COPY data now, and no Sync that was sent before their end."""
        queue = self.queue
        first = queue.popleft()
        held: list[Expect] = []
        while queue and queue[0].kind == wire.SYNC:
            held.append(queue.popleft())
        if queue and queue[0].kind == MARK:
            queue.popleft()
        else:
            self.copying = True
        queue.appendleft(first)
