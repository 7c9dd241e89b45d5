"""The replies that a server owes, in the order in which it owes them, and what of them its client gets.

Every message that the server will answer is expected when it is sent: pipelined messages are answered in their order
(PostgreSQL documentation, 54.2.4 Pipelining). In the extended protocol an error makes the server skip everything up to
the next Sync (54.2.3), so that is dropped here too; a Query sent in that time is skipped as well, and answered by
nothing. A COPY swallows the Syncs that were sent before its end (54.2.6).

================  ================================  =================================================================
state             attributes                        goes on to
================  ================================  =================================================================
idle              `idle`                            busy (a message was sent that is answered)
busy              `queue` holds what is owed        idle (the last ReadyForQuery), skipping, copying,
                                                    waiting for a Sync (all answered, and no Sync was sent yet)
skipping to Sync  `skipping_to_sync`: an error      busy (a Sync was sent)
                  came, and no Sync was sent yet
copying           `copying`: the server reads COPY  busy (CopyDone or CopyFail was sent), skipping (an error)
                  data
================  ================================  =================================================================

Each of them ends when the server says its last words (`server_ended`).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from proxy.postgres import wire
from proxy.postgres.session_state import LOCAL_SETTING, RESET, SETTING, TAG_FLAGS
from proxy.postgres.statement_registry import PreparedStatement
from proxy.postgres.wire import (
    COMMAND_COMPLETE,
    EXECUTE,
    HEADER_SIZE,
    READY_FOR_QUERY,
    read_header,
)

MAX_MESSAGE_BYTES = 1 << 30
STREAM_BYTES = 64 * 1024  # a row longer than this passes before it is whole
MAX_ENDING_BYTES = 64  # of an answer, after its rows
FATAL_FIELD = b"VFATAL\0"  # of an ErrorResponse: the connection ends with it

# Kinds of expected replies that are no message's.
LOCAL_REPLY = 0  # a reply that we give in the server's place
COPY_END = 1  # CopyDone or CopyFail: it has no reply, but Syncs before it are swallowed by a COPY

ASYNCHRONOUS_KINDS = frozenset((wire.PARAMETER_STATUS, wire.NOTICE, wire.NOTIFICATION))  # they answer nothing
ROW_KINDS = frozenset((wire.DATA_ROW, wire.COPY_DATA))
SHAPE_KINDS = frozenset((wire.DATA_ROW, wire.ROW_DESCRIPTION, wire.NO_DATA))  # they say nothing of the server's state
ENDED_BY_READY = frozenset((wire.QUERY, wire.SYNC, wire.FUNCTION_CALL))
# Which reply is the last one to which message.
REPLY_ENDS = {
    wire.PARSE_COMPLETE: wire.PARSE,
    wire.BIND_COMPLETE: wire.BIND,
    wire.CLOSE_COMPLETE: wire.CLOSE,
    wire.ROW_DESCRIPTION: wire.DESCRIBE,
    wire.NO_DATA: wire.DESCRIBE,
    wire.EMPTY_QUERY: wire.EXECUTE,
    wire.PORTAL_SUSPENDED: wire.EXECUTE,
}


class ExpectedReply:
    """One reply owed, or several up to ReadyForQuery.

    `kind` is that of the message that is answered; `hidden`: the client does not get it; `local_reply` is given without
    the server; `error_instead` replaces an error; `statement` and `client_name`: what an error may name, and how the
    client calls it; `flags` of the text (`session_state`). `on_reply` gets the hidden replies and gives what the client
    gets in their place, or is told (by b"") that a command has completed; `on_undone` is called if the reply never
    comes, because this or something before it failed. `passes_unread`: nothing of the reply is to be known.

    With `plain_size` it is the first of so many that are the whole of a request of the usual kind, up to its
    ReadyForQuery; an answer of the usual kind begins with `plain_start` (`OutstandingReplies.pass_plain_answer`).
    """

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
        "plain_size",
        "plain_start",
        "statement",
    )

    def __init__(
        self,
        kind: int,
        *,
        hidden: bool = False,
        local_reply: bytes = b"",
        error_instead: bytes = b"",
        statement: PreparedStatement | None = None,
        client_name: bytes = b"",
        flags: int = 0,
        on_reply: Callable[[bytes], bytes] | None = None,
        on_undone: Callable[[], None] | None = None,
        plain_size: int = 0,
        plain_start: bytes = b"",
    ) -> None:
        self.kind = kind
        self.plain_size = plain_size
        self.plain_start = plain_start
        self.passes_unread = (
            kind > COPY_END
            and not hidden
            and on_reply is None
            and (kind != wire.DESCRIBE or statement is None)  # the shape of a statement's result is kept
        )
        self.hidden = hidden
        self.local_reply = local_reply
        self.error_instead = error_instead
        self.statement = statement
        self.client_name = client_name
        self.flags = flags
        self.on_reply = on_reply
        self.on_undone = on_undone

    def __repr__(self) -> str:
        return f"<ExpectedReply {chr(self.kind)}{' hidden' if self.hidden else ''}>"


# What has nothing of its own is shared by all that expect it.
COPY_END_REPLY = ExpectedReply(COPY_END)
QUERY_REPLY = ExpectedReply(wire.QUERY, plain_size=1)
SYNC_REPLY = ExpectedReply(wire.SYNC)
FUNCTION_REPLY = ExpectedReply(wire.FUNCTION_CALL)
PARSE_REPLY = ExpectedReply(wire.PARSE)
BIND_REPLY = ExpectedReply(wire.BIND)
CLOSE_REPLY = ExpectedReply(wire.CLOSE)
DESCRIBE_REPLY = ExpectedReply(wire.DESCRIBE)
EXECUTE_REPLY = ExpectedReply(wire.EXECUTE)


@lru_cache(maxsize=1000)
def read_plain_ending(data: bytes) -> int:
    """The status that an answer ends with, if this is its end: the CommandComplete of a command that leaves nothing
    behind, and ReadyForQuery; 0 if it is not. Nearly all answers have one of a few ends, so they are remembered."""
    ready_at = len(data) - HEADER_SIZE - 1
    if data[HEADER_SIZE : HEADER_SIZE + 3] in TAG_FLAGS or read_header(data)[1] + 1 != ready_at:
        return 0
    return data[-1] if read_header(data, ready_at) == (READY_FOR_QUERY, 5) else 0


class ReplyObserver(Protocol):
    """Who hears what the server says besides the replies that it owes: the session."""

    def on_parameter_status(self, name: bytes, value: bytes, *, shown: bool, by_reset: bool) -> bytes:
        """What the client gets in the message's place, if anything; `by_reset`: a RESET did it."""
        ...

    def rewrite_notification(self, message: bytes) -> bytes:
        """The message as the client gets it."""
        ...

    def on_command_tag(self, flags: int, tag: bytes) -> None: ...
    def on_stale_plan(self, statement: PreparedStatement) -> None: ...

    def translate_error(self, error: bytes) -> bytes:
        """The body of an ErrorResponse as the client gets it; the same object if nothing in it changes."""
        ...


class OutstandingReplies:
    """`process_replies` takes what the server sent and gives what the client gets.

    `queue` holds what is owed; `status` is that of the last ReadyForQuery; `error_count` counts errors until somebody
    sets it back; `undoing_skipped`: what is being undone was skipped, else it is what has failed; `cancel_error` is
    what the client is told when a cancel of ours arrives. The other attributes are in the table above.
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

    def __init__(self, observer: ReplyObserver) -> None:
        self._observer = observer
        self.queue: deque[ExpectedReply] = deque()
        self.status = wire.STATUS_IDLE
        self.idle = True
        self.skipping_to_sync = False
        self.copying = False
        self.error_count = 0
        self.undoing_skipped = True
        self.server_ended = False
        self.cancel_error = b""
        self._partial = b""  # the begin of a message, if that is all that came
        self._bytes_to_stream = 0  # of a long message that are still to come
        self._hidden_replies: list[bytes] = []

    def __repr__(self) -> str:
        skipping = ", skipping to Sync" if self.skipping_to_sync else ""
        return f"<OutstandingReplies {chr(self.status)}, {len(self.queue)} owed{skipping}>"

    @property
    def mid_message(self) -> bool:
        """Whether the client has half a message."""
        return self._bytes_to_stream > 0

    # ── what was sent ────────────────────────────────────────────────────────────────────────

    def expect(self, entry: ExpectedReply) -> None:
        """A message was sent that the server answers, unless it skips to the next Sync."""
        self.idle = False
        if not self.skipping_to_sync or entry.kind == wire.SYNC:
            self.queue.append(entry)
        elif entry.on_undone is not None:
            entry.on_undone()

    def expect_sync(self) -> None:
        """A Sync is about to be sent; while the server reads COPY data, it does not answer it."""
        if not self.copying:
            self.idle = self.skipping_to_sync = False
            self.queue.append(SYNC_REPLY)

    def on_copy_end(self) -> None:
        """CopyDone or CopyFail was sent, perhaps before the server has said that it reads COPY data."""
        # A driver may send data and their end along with the COPY; whether the server reads them is not known yet.
        if self.copying:
            self.copying = False
        elif self.queue:
            self.queue.append(COPY_END_REPLY)

    def pop_local_replies(self) -> bytes:
        """What is due to the client though nothing more is to come from the server before it."""
        queue = self.queue
        due = b""
        while queue and queue[0].kind <= COPY_END:
            entry = queue.popleft()
            due += entry.local_reply + (entry.on_reply(b"") if entry.on_reply is not None else b"")
        return due

    # ── what came ────────────────────────────────────────────────────────────────────────────

    def process_replies(self, data: bytes) -> bytes:
        """What the client gets. Raises ValueError if the server does not speak the protocol."""
        queue = self.queue
        head = queue[0] if queue else None
        if self._partial:
            data = self._partial + data
            self._partial = b""
        elif self.pass_plain_answer(data):
            return data
        size = len(data)
        out: list[bytes] = []
        start = pos = 0
        if self._bytes_to_stream:
            pos = min(self._bytes_to_stream, size)
            self._bytes_to_stream -= pos
        # Replies that are hidden are looked at one by one, rows too; others pass in one piece from `start` to `pos`.
        hidden = head is not None and head.hidden
        while pos + HEADER_SIZE <= size:
            kind, length = read_header(data, pos)
            end = pos + 1 + length
            if kind in ROW_KINDS and not hidden:
                if end > size:
                    # A long row passes as it comes, and is never whole in memory.
                    if length > STREAM_BYTES:
                        self._bytes_to_stream = end - size
                        pos = size
                    break
                pos = end
                continue
            # Out of step with the server nobody knows whose the next reply is: the connection is worth nothing then.
            if kind not in wire.BACKEND_KINDS or not 4 <= length < MAX_MESSAGE_BYTES:
                raise ValueError("the database sent what is no message of its protocol")
            if end > size:
                break
            if head is None or not head.passes_unread or not self._pass_unread(head, kind, data, pos):
                replaced = self._process_message(kind, data, pos, end)
                if replaced is not None:
                    out += (data[start:pos], replaced)
                    start = end
            head = queue[0] if queue else None
            hidden = head is not None and head.hidden
            pos = end
        if pos < size:
            self._partial = data[pos:]
        tail = self.pop_local_replies() if queue else b""
        if not out and not tail:
            return data[start:pos]  # `data` itself, if that is all of it
        return b"".join((*out, data[start:pos], tail))

    def pass_plain_answer(self, data: bytes) -> int:
        """The whole answer of the usual kind to all that is owed, in which nothing counts but how it ends: the status
        that it ends with; 0 if it is anything else, and then nothing has come of it."""
        queue = self.queue
        if not queue or self._partial or self._bytes_to_stream:
            return 0
        head = queue[0]
        start = head.plain_start
        if head.plain_size != len(queue) or (start and not data.startswith(start)):
            return 0
        pos = len(start)
        try:
            kind, length = read_header(data, pos)
            while kind in SHAPE_KINDS:
                pos += 1 + length
                kind, length = read_header(data, pos)
        except struct.error:
            return 0  # the rest of it has not come yet
        if kind != COMMAND_COMPLETE or len(data) - pos > MAX_ENDING_BYTES:
            return 0
        status = read_plain_ending(data[pos:])
        if status:
            self._end_last(status)
        return status

    def _pass_unread(self, head: ExpectedReply, kind: int, data: bytes, pos: int) -> bool:
        """A reply to `head` that is usual, and of which nothing is to be known: whether it was one."""
        queue = self.queue
        ended = REPLY_ENDS.get(kind)
        if ended is not None:
            if ended == head.kind:
                queue.popleft()
            return True
        if kind == COMMAND_COMPLETE and data[pos + 5 : pos + 8] not in TAG_FLAGS:
            # A Query may hold several commands, so that only ReadyForQuery ends it; an Execute is one.
            if head.kind == EXECUTE:
                queue.popleft()
            return True
        if kind == READY_FOR_QUERY and len(queue) == 1 and head.kind in ENDED_BY_READY:
            self._end_last(data[pos + HEADER_SIZE])
            return True
        return False

    def _end_last(self, status: int) -> None:
        """The ReadyForQuery after which nothing is owed."""
        self.queue.clear()
        self.status = status
        self.idle = True
        self.skipping_to_sync = self.copying = False

    def _process_message(self, kind: int, data: bytes, pos: int, end: int) -> bytes | None:
        """What the client gets in the place of one message, None if that is the message itself."""
        queue = self.queue
        due, keep, instead = b"", True, b""
        if kind in ASYNCHRONOUS_KINDS:
            keep, instead = self._process_asynchronous(kind, data, pos, end)
        else:
            due = self.pop_local_replies()
            if queue:
                keep, instead = self._process_reply(kind, queue[0], data, pos, end)
        if kind == wire.ERROR and FATAL_FIELD in data[pos:end]:
            # The client hears why its server goes, even if what failed was a query of ours.
            self.server_ended = keep = True
        if keep and not instead:
            return due + data[pos:end] if due else None
        return due + instead

    def _process_asynchronous(self, kind: int, data: bytes, pos: int, end: int) -> tuple[bool, bytes]:
        """Whether the client gets it, and what it gets instead."""
        queue = self.queue
        hidden = bool(queue) and queue[0].hidden
        # These three may come at any time (54.2.7 Asynchronous Operations), and count for no reply.
        if kind == wire.PARAMETER_STATUS:
            name, _, value = data[pos + HEADER_SIZE : end - 1].partition(b"\0")
            by_reset = bool(queue) and bool(queue[0].flags & RESET)
            instead = self._observer.on_parameter_status(name, value, shown=not hidden, by_reset=by_reset)
            return not hidden and not instead, instead
        if kind == wire.NOTIFICATION:
            return False, self._observer.rewrite_notification(data[pos:end])
        return not hidden, b""

    def _process_reply(self, kind: int, head: ExpectedReply, data: bytes, pos: int, end: int) -> tuple[bool, bytes]:
        """One message that answers `head`: whether the client gets it, and what it gets instead."""
        if head.hidden and head.on_reply is not None:
            self._hidden_replies.append(data[pos:end])
        keep = not head.hidden
        if kind == READY_FOR_QUERY:
            self.status = data[pos + HEADER_SIZE]
            return keep, self._process_ready()
        if kind == wire.ERROR:
            return self._process_error(head, data, pos, end)
        if kind == COMMAND_COMPLETE:
            if keep:
                self._process_command_tag(head, data[pos + HEADER_SIZE : end - 1])
            if head.kind == EXECUTE:
                self.queue.popleft()
        elif kind == wire.COPY_IN:
            self._begin_copy_in()
        elif kind in REPLY_ENDS and head.kind == REPLY_ENDS[kind]:
            if keep and head.statement is not None and kind in (wire.ROW_DESCRIPTION, wire.NO_DATA):
                head.statement.result_shape = wire.result_shape(data[pos:end])
            self.queue.popleft()
            return keep, self._finish_hidden(head) if head.hidden else b""
        return keep, b""

    def _process_command_tag(self, head: ExpectedReply, tag: bytes) -> None:
        flags = TAG_FLAGS.get((tag + b"\0")[:3])
        if flags is not None and (flags != SETTING or not head.flags & LOCAL_SETTING):
            self._observer.on_command_tag(flags, tag)
        if head.on_reply is not None:
            head.on_reply(b"")

    def _process_ready(self) -> bytes:
        """ReadyForQuery ends what it answers; what is owed before that was skipped."""
        queue = self.queue
        while queue:
            head = queue.popleft()
            if head.kind in ENDED_BY_READY:
                self.skipping_to_sync = self.copying = False
                while queue and queue[0].kind == COPY_END:
                    queue.popleft()  # the end of a COPY that was refused
                self.idle = not queue
                return self._finish_hidden(head) if head.hidden else b""
            if head.on_undone is not None:
                head.on_undone()
        return b""

    def _finish_hidden(self, head: ExpectedReply) -> bytes:
        replies, self._hidden_replies = self._hidden_replies, []
        return head.on_reply(b"".join(replies)) if head.on_reply is not None else b""

    def _process_error(self, head: ExpectedReply, data: bytes, pos: int, end: int) -> tuple[bool, bytes]:
        body = data[pos + HEADER_SIZE : end]
        # In the simple protocol the ReadyForQuery follows by itself; in the extended one only after a Sync.
        extended = head.kind not in (wire.QUERY, wire.FUNCTION_CALL)
        if not head.hidden or extended:
            self.error_count += 1
        if extended:
            self._undo_batch(head)
        elif head.hidden:
            return False, b""
        if head.error_instead:
            return True, head.error_instead
        if self.cancel_error and b"\0C57014\0" in body:
            instead, self.cancel_error = self.cancel_error, b""
            return True, instead
        if head.statement is not None:
            # "cached plan must not change result type": whoever prepares the text next shall get a fresh one.
            if b"\0C0A000\0" in body and b"cached plan" in body:
                self._observer.on_stale_plan(head.statement)
            return True, wire.message(wire.ERROR, body.replace(head.statement.name, head.client_name))
        if (translated := self._observer.translate_error(body)) is not body:
            return True, wire.message(wire.ERROR, translated)
        return True, b"" if not head.hidden else data[pos:end]

    def _undo_batch(self, failed: ExpectedReply) -> None:
        """An error in the extended protocol: the server skips everything up to the next Sync."""
        self._hidden_replies = []
        queue = self.queue
        dropped: list[ExpectedReply] = []
        while queue and queue[0].kind != wire.SYNC:
            dropped.append(queue.popleft())
        for undone in reversed(dropped):  # what has failed is undone last
            # What has failed is known to the server as failed; what was skipped it has never seen.
            self.undoing_skipped = undone is not failed
            if undone.on_undone is not None:
                undone.on_undone()
        self.undoing_skipped = True
        self.skipping_to_sync = not queue  # else the Sync that ends the skipping is on its way already
        self.copying = False

    def _begin_copy_in(self) -> None:
        """The server reads COPY data now, and answers no Sync that was sent before their end."""
        queue = self.queue
        head = queue.popleft()  # what has begun the COPY: it is answered when that has ended
        while queue and queue[0].kind == wire.SYNC:
            queue.popleft()
        if queue and queue[0].kind == COPY_END:
            queue.popleft()
        else:
            self.copying = True
        queue.appendleft(head)
