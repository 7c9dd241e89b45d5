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
from proxy.postgres.session_state import LOCAL_SETTING, RESET, SETTING, TAG_FLAGS
from proxy.postgres.statement_registry import PreparedStatement
from proxy.postgres.wire import COMMAND_COMPLETE, EXECUTE, HEADER_SIZE, READY_FOR_QUERY, read_header

LOCAL_REPLY = 0  # the kind of a reply that we give in the server's place
COPY_END = 1  # CopyDone or CopyFail: it has no reply, but Syncs before it are swallowed by a COPY


class ExpectedReply:
    """One reply owed, or several up to ReadyForQuery. `skip`: the client does not get it; `fake` is given
    without the server; `instead` replaces an error; `done` gets what was skipped and gives what the client gets in
    its place, or is told that a command has completed; `undo` is called where the reply never came, because this or
    something before it failed."""

    __slots__ = (
        "client_name",
        "error_instead",
        "flags",
        "hidden",
        "kind",
        "local_reply",
        "on_reply",
        "on_undone",
        "passes_unread",
        "statement",
    )

    def __init__(
        self,
        kind: int,
        *,
        skip: bool = False,
        fake: bytes = b"",
        instead: bytes = b"",
        statement: PreparedStatement | None = None,
        name: bytes = b"",
        flags: int = 0,
        done: Callable[[bytes], bytes] | None = None,
        undo: Callable[[], None] | None = None,
    ) -> None:
        self.kind = kind
        # Its answer passes unread.
        self.passes_unread = not skip and done is None and (kind != wire.DESCRIBE or statement is None)
        self.hidden = skip
        self.local_reply = fake
        self.error_instead = instead
        self.statement = statement
        self.client_name = name
        self.flags = flags
        self.on_reply = done
        self.on_undone = undo

    def __repr__(self) -> str:
        return f"<Expect {chr(self.kind)}{' skipped' if self.hidden else ''}>"


COPY_END_REPLY = ExpectedReply(COPY_END)
QUERY_REPLY, SYNC_REPLY, FUNCTION_REPLY = (
    ExpectedReply(wire.QUERY),
    ExpectedReply(wire.SYNC),
    ExpectedReply(wire.FUNCTION_CALL),
)
PARSE_REPLY, BIND_REPLY, CLOSE_REPLY, DESCRIBE_REPLY, EXECUTE_REPLY = (
    ExpectedReply(wire.PARSE),
    ExpectedReply(wire.BIND),
    ExpectedReply(wire.CLOSE),
    ExpectedReply(wire.DESCRIBE),
    ExpectedReply(wire.EXECUTE),
)

# What answers nothing, what is answered by ReadyForQuery, and which reply ends which message's.
ASYNCHRONOUS_KINDS = frozenset((wire.PARAMETER_STATUS, wire.NOTICE, wire.NOTIFICATION))
READY_ENDED = frozenset((wire.QUERY, wire.SYNC, wire.FUNCTION_CALL))
REPLY_ENDS = {
    wire.PARSE_COMPLETE: wire.PARSE,
    wire.BIND_COMPLETE: wire.BIND,
    wire.CLOSE_COMPLETE: wire.CLOSE,
    wire.ROW_DESCRIPTION: wire.DESCRIBE,
    wire.NO_DATA: wire.DESCRIBE,
    wire.EMPTY_QUERY: wire.EXECUTE,
    wire.PORTAL_SUSPENDED: wire.EXECUTE,
}


class ReplyObserver(Protocol):
    """`parameter` gives what the client gets in the message's place, if anything; `resets`: a RESET did it."""

    def on_parameter_status(self, name: bytes, value: bytes, *, shown: bool, resets: bool) -> bytes: ...

    def rewrite_notification(self, message: bytes) -> bytes:
        """The message as the client gets it."""
        ...

    def on_command_tag(self, hint: int, tag: bytes) -> None: ...
    def on_stale_plan(self, statement: PreparedStatement) -> None: ...
    def translate_error(self, error: bytes) -> bytes: ...


MAX_MESSAGE_BYTES = 1 << 30
STREAM_BYTES = 64 * 1024  # bytes; a row longer than this passes before it is whole


class OutstandingReplies:
    """`replies` takes what the server sent and gives what the client gets.

    `status` is that of the last ReadyForQuery; `rested`: nothing was sent since it that counts; `failed`: the
    server skips to the next Sync; `copying`: it reads COPY data.
    """

    __slots__ = (
        "_bytes_to_stream",
        "_hidden_replies",
        "_observer",
        "_partial",
        "cancel_error",
        "copying",
        "error_count",
        "idle",
        "queue",
        "server_ended",
        "skipping_to_sync",
        "status",
        "undoing_skipped",
    )

    def __init__(self, owner: ReplyObserver) -> None:
        self._observer = owner
        self.queue: deque[ExpectedReply] = deque()
        self.status = wire.STATUS_IDLE
        self.idle = True
        self.skipping_to_sync = False
        self.copying = False
        self.error_count = 0
        self.undoing_skipped = True  # what is undone was skipped; else it is what has failed
        self.server_ended = False  # the server has said its last words
        self.cancel_error = b""  # what the client is told when a cancel of ours arrives
        self._partial = b""  # the begin of a message, where that is all that came
        self._bytes_to_stream = 0  # bytes of a long message that are still to come
        self._hidden_replies: list[bytes] = []

    def __repr__(self) -> str:
        skipping = ", skipping to Sync" if self.skipping_to_sync else ""
        return f"<OutstandingReplies {chr(self.status)}, {len(self.queue)} owed{skipping}>"

    @property
    def mid_message(self) -> bool:
        """Whether the client has half a message."""
        return self._bytes_to_stream > 0

    def expect(self, entry: ExpectedReply) -> None:
        """A message was sent that the server answers, unless it skips to the next Sync."""
        self.idle = False
        if not self.skipping_to_sync or entry.kind == wire.SYNC:
            self.queue.append(entry)
        elif entry.on_undone is not None:
            entry.on_undone()

    def expect_sync(self) -> None:
        """A Sync is about to be sent: whether the server will answer it."""
        if not self.copying:
            self.idle = self.skipping_to_sync = False
            self.queue.append(SYNC_REPLY)

    def on_copy_end(self) -> None:
        """CopyDone or CopyFail was sent."""
        if self.copying:
            self.copying = False
        elif self.queue:
            self.queue.append(COPY_END_REPLY)

    def pop_local_replies(self) -> bytes:
        """What is due to the client though nothing more is to come from the server before it."""
        queue = self.queue
        if not queue or queue[0].kind > COPY_END:
            return b""
        due = b""
        while queue and queue[0].kind <= COPY_END:
            due += self._local_reply(queue.popleft())
        return due

    def process_replies(self, data: bytes) -> bytes:
        """Raises ValueError where the server does not speak the protocol."""
        queue = self.queue
        if self._partial:
            data = self._partial + data
            self._partial = b""
        elif len(queue) == 1 and queue[0] is QUERY_REPLY and not self._bytes_to_stream and self._is_plain_answer(data):
            return data
        size = len(data)
        out: list[bytes] | None = None
        start = pos = 0
        if self._bytes_to_stream:
            pos = min(self._bytes_to_stream, size)
            self._bytes_to_stream -= pos
        skipping = bool(queue) and queue[0].hidden
        while pos + HEADER_SIZE <= size:
            kind, length = read_header(data, pos)
            end = pos + 1 + length
            if (kind == 68 or kind == 100) and not skipping:  # DataRow, CopyData
                if end > size:
                    if length > STREAM_BYTES:
                        self._bytes_to_stream = end - size
                        pos = size
                    break
                pos = end
                continue
            if end > size:
                if length >= MAX_MESSAGE_BYTES or kind not in wire.BACKEND_KINDS:
                    raise ValueError("the database sent what is no message of its protocol")
                break
            if queue and (head := queue[0]).passes_unread and head.kind > COPY_END and length >= 4:  # what is usual
                answered = REPLY_ENDS.get(kind)
                if answered is not None:
                    if answered == head.kind:
                        queue.popleft()
                        skipping = bool(queue) and queue[0].hidden
                    pos = end
                    continue
                if kind == COMMAND_COMPLETE and data[pos + 5 : pos + 8] not in TAG_FLAGS:
                    if head.kind == EXECUTE:
                        queue.popleft()
                        skipping = bool(queue) and queue[0].hidden
                    pos = end
                    continue
                if kind == READY_FOR_QUERY and len(queue) == 1 and head.kind in READY_ENDED:
                    queue.clear()
                    self.status = data[pos + HEADER_SIZE]
                    self.idle = True
                    self.skipping_to_sync = self.copying = skipping = False
                    pos = end
                    continue
            if length < 4 or kind not in wire.BACKEND_KINDS:
                raise ValueError("the database sent what is no message of its protocol")
            keep, extra = True, b""
            if kind not in ASYNCHRONOUS_KINDS:
                while queue and queue[0].kind <= COPY_END:
                    out = out or []
                    out += (data[start:pos], self._local_reply(queue.popleft()))
                    start = pos
                if queue:
                    keep, extra = self._process_reply(kind, queue[0], data, pos, end)
                    skipping = bool(queue) and queue[0].hidden
            elif kind == wire.PARAMETER_STATUS:
                name, _, value = data[pos + HEADER_SIZE : end - 1].partition(b"\0")
                resets = bool(queue) and bool(queue[0].flags & RESET)
                extra = self._observer.on_parameter_status(name, value, shown=not skipping, resets=resets)
                keep = not skipping and not extra
            elif kind == wire.NOTIFICATION:
                keep, extra = False, self._observer.rewrite_notification(data[pos:end])
            else:
                keep = not skipping
            if kind == wire.ERROR and b"VFATAL\0" in data[pos:end]:
                self.server_ended = keep = True
            if not keep or extra:
                out = out or []
                out.append(data[start:pos])
                if extra:
                    out.append(extra)
                start = end
            pos = end
        if pos < size:
            self._partial = data[pos:]
        tail = self.pop_local_replies() if queue and queue[0].kind <= COPY_END else b""
        if out is None and not tail:
            return data if start == 0 and pos == size else data[start:pos]
        return b"".join((*(out or ()), data[start:pos], tail))

    def _is_plain_answer(self, data: bytes) -> bool:
        """A Query's whole answer, in which nothing counts but how it ends."""
        pos, last = 0, len(data) - HEADER_SIZE - 1
        while pos < last:
            kind, length = read_header(data, pos)
            if kind != 68 and kind != 84 and (kind != COMMAND_COMPLETE or data[pos + 5 : pos + 8] in TAG_FLAGS):
                return False
            pos += 1 + length
        if pos != last or data[pos] != READY_FOR_QUERY:
            return False
        self.queue.clear()
        self.status = data[-1]
        self.idle = True
        self.skipping_to_sync = self.copying = False
        return True

    def _process_reply(self, kind: int, head: ExpectedReply, data: bytes, pos: int, end: int) -> tuple[bool, bytes]:
        """One message that answers `head`: whether the client gets it, and what it gets instead."""
        if head.hidden and head.on_reply is not None:
            self._hidden_replies.append(data[pos:end])
        keep = not head.hidden
        if kind == wire.READY_FOR_QUERY:
            self.status = data[pos + HEADER_SIZE]
            return keep, self._process_ready()
        if kind == wire.ERROR:
            return self._process_error(head, data, pos, end)
        if kind == wire.COMMAND_COMPLETE:
            hint = TAG_FLAGS.get(data[pos + 5 : pos + 8])
            if hint is not None and not head.hidden:
                if hint != SETTING or not head.flags & LOCAL_SETTING:
                    self._observer.on_command_tag(hint, data[pos + HEADER_SIZE : end - 1])
            if head.on_reply is not None and not head.hidden:
                head.on_reply(b"")
            if head.kind == wire.EXECUTE:
                self.queue.popleft()
        elif kind == wire.COPY_IN:
            self._begin_copy_in()
        elif kind in REPLY_ENDS and head.kind == REPLY_ENDS[kind]:
            if kind in (wire.ROW_DESCRIPTION, wire.NO_DATA) and head.statement is not None and not head.hidden:
                head.statement.result_shape = wire.result_shape(data[pos:end])
            return keep, self._finish_reply(head)
        return keep, b""

    def _local_reply(self, entry: ExpectedReply) -> bytes:
        """What is said without the server, now that all before it is."""
        return entry.local_reply + (entry.on_reply(b"") if entry.on_reply is not None else b"")

    def _finish_reply(self, head: ExpectedReply) -> bytes:
        self.queue.popleft()
        return self._finish_hidden(head) if head.hidden else b""

    def _process_ready(self) -> bytes:
        queue = self.queue
        while queue:
            head = queue.popleft()
            if head.kind in READY_ENDED:
                self.skipping_to_sync = self.copying = False
                while queue and queue[0].kind == COPY_END:
                    queue.popleft()  # the end of a COPY that was refused
                self.idle = not queue
                return self._finish_hidden(head) if head.hidden else b""
            if head.on_undone is not None:
                head.on_undone()
        return b""

    def _finish_hidden(self, head: ExpectedReply) -> bytes:
        skipped, self._hidden_replies = self._hidden_replies, []
        return head.on_reply(b"".join(skipped)) if head.on_reply is not None else b""

    def _process_error(self, head: ExpectedReply, data: bytes, pos: int, end: int) -> tuple[bool, bytes]:
        body = data[pos + HEADER_SIZE : end]
        extended = head.kind not in (wire.QUERY, wire.FUNCTION_CALL)
        if not head.hidden or extended:
            self.error_count += 1
        if extended:
            self._hidden_replies = []
            queue = self.queue
            dropped: list[ExpectedReply] = []
            while queue and queue[0].kind != wire.SYNC:
                dropped.append(queue.popleft())
            for undone in reversed(dropped):  # what has failed is undone last
                self.undoing_skipped = undone is not head
                if undone.on_undone is not None:
                    undone.on_undone()
            self.undoing_skipped = True
            self.skipping_to_sync = not queue  # else the Sync that ends the skipping is on its way already
            self.copying = False
        elif head.hidden:
            return False, b""
        if head.error_instead:
            return True, head.error_instead
        if self.cancel_error and b"\0C57014\0" in body:
            instead, self.cancel_error = self.cancel_error, b""
            return True, instead
        if head.statement is not None:
            if b"\0C0A000\0" in body and b"cached plan" in body:
                self._observer.on_stale_plan(head.statement)
            return True, wire.message(wire.ERROR, body.replace(head.statement.name, head.client_name))
        if (translated := self._observer.translate_error(body)) is not body:
            return True, wire.message(wire.ERROR, translated)
        return True, b"" if not head.hidden else data[pos:end]

    def _begin_copy_in(self) -> None:
        """The server reads COPY data now, and no Sync that was sent before their end."""
        queue = self.queue
        first = queue.popleft()
        held: list[ExpectedReply] = []
        while queue and queue[0].kind == wire.SYNC:
            held.append(queue.popleft())
        if queue and queue[0].kind == COPY_END:
            queue.popleft()
        else:
            self.copying = True
        queue.appendleft(first)
