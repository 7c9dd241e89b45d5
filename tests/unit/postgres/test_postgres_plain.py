"""What most clients send goes in one step: it comes out, and leaves behind, what it does message by message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from postgres_script import (
    DP,
    E,
    H,
    S,
    Talk,
    bind_message,
    bound,
    copy_in,
    done,
    err,
    nothing,
    parse_message,
    parsed,
    query_message,
    ready,
    rows,
    server,
)

from proxy.postgres import wire
from proxy.postgres.session_state import ADVISORY_LOCK

ROW = wire.data_row([b"1"])
SET_ROW = wire.data_row([b"s", b"a.b", b"1"])
LOCK_ROW = wire.data_row([b"%d" % ADVISORY_LOCK, b"", b""])
NOTICE = wire.error_response("00000", "hi", kind=wire.NOTICE)

# What clients send; the begins of some are the begins of others.
REQUESTS = {
    "query": query_message("select 1"),
    "query that sets": query_message("set a.b = 1"),
    "query that sets by a function": query_message("select set_config('a.b', '1', false)"),
    "query that pins": query_message("select pg_advisory_lock(1)"),
    "unnamed": parse_message("", "select $1", 23) + bind_message("", value=b"7") + DP + E + S,
    "unnamed, not described": parse_message("", "select $1", 23) + bind_message("", value=b"7") + E + S,
    "unnamed, another text": parse_message("", "select 2") + bind_message("") + DP + E + S,
    "unnamed that sets": parse_message("", "set a.b = 1") + bind_message("") + E + S,
    "unnamed that sets by a function": parse_message("", "select set_config('a.b', '1', false)") + bind_message("") + E + S,
    "unnamed again": bind_message("") + DP + E + S,
    "unnamed to a portal": parse_message("", "select 1") + bind_message("", "x") + DP + E + S,
    "unnamed, another bound": parse_message("", "select 1") + bind_message("p") + DP + E + S,
    "some rows": parse_message("", "select 1") + bind_message("") + wire.message(wire.EXECUTE, b"\0\0\0\0\5") + S,
    "no Sync": parse_message("", "select 1") + bind_message("") + E + H,
    "Sync": S,
    "named": parse_message("p", "select $1", 23) + S,
    "named, two": parse_message("p", "select $1", 23) + parse_message("q", "select 2") + S,
    "bound": bind_message("p", value=b"7") + DP + E + S,
    "bound, not described": bind_message("q") + E + S,
    "bound to a portal": bind_message("p", "x") + DP + E + S,
    "named that gives up another": parse_message("d", "deallocate p") + bind_message("d") + E + S,
    "two batches": (bind_message("p") + E + S) * 2,
    "query and batch": query_message("select 1") + parse_message("", "select 1") + bind_message("") + DP + E + S,
}  # fmt: skip


class Server:
    """What a server says to what it gets: `failing` is the kind of message that fails, of the first batch."""

    def __init__(self, failing="", *, shape=rows, between=b"", status="I"):
        self.failing, self.shape, self.between, self.status = failing, shape, between, status
        self.skipping = False

    def answer(self, sent):
        out, self.between = self.between, b""
        for number, body in wire.split_messages(sent):
            kind = chr(number)
            if self.skipping and kind != "S":
                continue
            self.skipping = False
            if kind == self.failing:
                self.failing = ""
                out += err() + (ready(self.status) if kind == "Q" else b"")
                self.skipping = kind != "Q"
                continue
            if b"pg_catalog." in body:
                # One of our own queries: what is set, and a lock that somebody holds, of what is asked about.
                out += rows + (SET_ROW if b"pg_settings" in body else LOCK_ROW if b"pg_locks" in body else b"")
                out += done() + ready(self.status)
                continue
            replies = {"P": parsed, "B": bound, "D": self.shape, "E": ROW + done(), "S": ready(self.status), "H": b""}
            out += replies.get(kind, rows + ROW + done() + ready(self.status))
        return out


def state(talk):
    frontend, outstanding, backend = talk.session.frontend, talk.session.outstanding, talk.session.backend
    names = {name: statement.body for name, statement in frontend.statements.items()}
    found = [
        names, frontend.unnamed.body, frontend.unnamed.hints, frontend.unsynced, frontend.state_flags, frontend.blocked,
        frontend.remainder, frontend.statements.may_have_failed, frontend.statements.discard_pending,
        [bool(frontend.statements.is_uncertain(name, None)) for name in ("", b"", b"p", b"q", b"d")],
        list(map(repr, outstanding.queue)), outstanding.status, outstanding.idle, outstanding.skipping_to_sync,
        sorted(frontend.tracked_portals), frontend.has_pin, talk.session.pinned, talk.given_up, outstanding.error_count, talk.session.releasable, talk.session.failed, talk.session.needs_attention,
    ]  # fmt: skip
    if backend is not None:
        found += [backend.unnamed_body, [statement.body for statement in backend.prepared]]
    return found


class ShortTalk(Talk):
    """A client that is served the short way where there is one, as its link does."""

    def client(self, data):
        frontend = self.session.frontend
        kind, length = wire.read_header(data) if len(data) > wire.HEADER_SIZE else (0, len(data))
        if length < len(data) and (requests := frontend.forward_plain(data, kind, length)):
            return requests
        return super().client(data)

    def server(self, data):
        session = self.session
        if session.ordinary and (status := session.outstanding.pass_plain_answer(data)):
            session.releasable = session.needs_attention = status == wire.STATUS_IDLE
            return data
        return super().server(data)


class Pair:
    """Two clients that send the same, the one whole, the other in two pieces."""

    def __init__(self):
        self.talks = [ShortTalk(), Talk()]
        self.servers = [[server(), server()] for _ in self.talks]
        self.at = 0
        self._link()

    def _link(self):
        for talk, mine in zip(self.talks, self.servers, strict=True):
            ahead, _ = talk.link(mine[self.at])
            if ahead:
                talk.server(Server().answer(ahead))

    def exchange(self, data, cut, **how):
        cut = 1 + cut % (len(data) - 1)
        outcomes = []
        for talk, pieces in zip(self.talks, ([data], [data[:cut], data[cut:]]), strict=True):
            database, sent, shown, states = Server(**how), b"", b"", []
            for piece in pieces:
                if talk.session.blocked:
                    talk.session.frontend.remainder += piece
                else:
                    sent += talk.client(talk.session.frontend.remainder + piece)
            states.append(state(talk))
            more = sent
            while more:
                shown += talk.server(database.answer(more))
                more = talk.behind()
                if talk.session.frontend.remainder and not talk.session.blocked:
                    more += talk.client(talk.session.frontend.remainder)
                sent += more
            outcomes.append((sent.replace(talk.statements.prefix, b"outrigger_"), shown, states, state(talk)))
        assert outcomes[0] == outcomes[1]

    def move(self, to):
        """To another server, if this one may go."""
        if all(talk.session.releasable for talk in self.talks):
            for talk in self.talks:
                talk.release()
            self.at = to
            self._link()


STEPS = st.tuples(
    st.sampled_from(sorted(REQUESTS)),
    st.integers(0, 1000),
    st.sampled_from(["", "", "", "P", "B", "D", "E", "Q"]),
    st.sampled_from([rows, nothing]),
    st.sampled_from([b"", b"", NOTICE]),
    st.sampled_from("IIIT"),
    st.integers(0, 1),
)


@pytest.mark.parametrize("first", REQUESTS)
@pytest.mark.parametrize("status", ["I", "T"])
def test_one_request_after_the_other_is_the_same_whole_and_in_pieces(first, status):
    for failing in ("", "P", "B", "D", "E", "Q"):
        for second in REQUESTS:
            pair = Pair()
            pair.exchange(REQUESTS["named, two"], 5)
            pair.move(0)
            pair.exchange(REQUESTS["query"], 5, status=status)
            pair.move(0)
            pair.exchange(REQUESTS[first], len(REQUESTS[first]) // 2, failing=failing, status=status)
            pair.move(1)
            pair.exchange(REQUESTS[second], len(REQUESTS[second]) - 6)


@given(st.lists(STEPS, min_size=1, max_size=8))
def test_whole_and_in_pieces_are_the_same(steps):
    pair = Pair()
    for name, cut, failing, shape, between, status, to in steps:
        if any(talk.session.blocked for talk in pair.talks):
            break
        pair.exchange(REQUESTS[name], cut, failing=failing, shape=shape, between=between, status=status)
        pair.move(to)


@pytest.mark.parametrize("name", ["unnamed", "unnamed, not described", "bound", "bound, not described"])
def test_a_batch_that_is_copied_into_is_answered_when_the_copy_has_ended(name):
    talk = Talk()
    talk.link()
    talk.client(REQUESTS["named, two"])
    talk.server(parsed + ready())
    sent = talk.client(REQUESTS[name])
    begun = Server().answer(sent).replace(ROW + done() + ready(), b"").replace(rows, nothing)
    assert talk.server(begun + copy_in) == begun + copy_in
    assert not talk.session.releasable
    talk.client(wire.message(wire.COPY_DATA, b"1\n") + wire.message(wire.COPY_DONE) + S)
    assert talk.server(done("COPY 1") + ready()) == done("COPY 1") + ready()
    assert talk.session.releasable


def test_an_answer_in_pieces_is_that_of_the_batch():
    for size in range(1, 40):
        talk = Talk()
        talk.link()
        answer = Server().answer(talk.client(REQUESTS["unnamed"]))
        out = b"".join(talk.server(answer[at : at + size]) for at in range(0, len(answer), size))
        assert out == answer
        assert talk.session.releasable
