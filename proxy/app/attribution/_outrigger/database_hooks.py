"""Hooks of database drivers: the gateway learns which request a connection to its pool works for, so that it can
cancel the queries of an abandoned one.

It is reported by datagram just before a statement leaves, and only if the request is another one than last time on
that connection; `-` means no request. Nothing in the statement or the connection changes. The classes of psycopg2 are
written in C and cannot be hooked; what uses it through Django or SQLAlchemy is.
"""

from __future__ import annotations

from .patching import replace_function, run_before, run_before_async

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from .shim import Shim

MAX_CONNECTIONS = 1000  # connections whose last token is remembered


def _report_work(shim: Shim, local: Any, peer: Any) -> None:
    """`local` and `peer` are socket addresses; a connection to anything but the pool is not reported."""
    if tuple(peer[:2]) != shim.database:
        return
    port, token = local[1], shim.current.get() or "-"
    if shim.reported_work.get(port, "-") != token:
        # Forgetting costs a datagram per connection, keeping would grow with every port ever used.
        if len(shim.reported_work) >= MAX_CONNECTIONS:
            shim.reported_work.clear()
        shim.reported_work[port] = token
        shim.send_report("works", str(port), token)


def _report_work_of_file(shim: Shim, number: int) -> None:
    """As `_report_work`, by the descriptor of the connection's socket, which stays open and unchanged."""
    import _socket

    sock = _socket.socket(fileno=number)
    try:
        _report_work(shim, sock.getsockname(), sock.getpeername())
    finally:
        sock.detach()


def hook_asyncpg(shim: Shim, module: ModuleType) -> None:
    def report_work(connection: Any, *_: Any) -> None:
        transport = connection._transport
        _report_work(shim, transport.get_extra_info("sockname"), transport.get_extra_info("peername"))

    names = ("execute", "_execute", "_executemany", "_prepare", "_copy_in", "_copy_out")
    for name, original in {name: module.Connection.__dict__[name] for name in names}.items():
        replace_function(module.Connection, name, run_before_async(report_work), original)


def hook_asyncpg_prepared(shim: Shim, module: ModuleType) -> None:
    def report_work(statement: Any, *_: Any) -> None:
        transport = statement._connection._transport
        _report_work(shim, transport.get_extra_info("sockname"), transport.get_extra_info("peername"))

    replace_function(module.PreparedStatement, "_PreparedStatement__do_execute", run_before_async(report_work))


def hook_psycopg(shim: Shim, module: ModuleType) -> None:
    """psycopg 3: every statement of its cursors, also async ones, starts at this method. 3.0 and 3.1 have it in
    another module."""
    cursor = getattr(module, "BaseCursor", None)
    if cursor is not None:
        replace_function(
            cursor, "_start_query", run_before(lambda cursor, *_: _report_work_of_file(shim, cursor._conn.fileno()))
        )


def hook_django(shim: Shim, module: ModuleType) -> None:
    def report_work(wrapper: Any, *_: Any) -> None:
        _report_work_of_file(shim, wrapper.db.connection.fileno())

    for name in ("_execute", "_executemany"):
        replace_function(module.CursorWrapper, name, run_before(report_work))


def hook_sqlalchemy(shim: Shim, module: ModuleType) -> None:
    def report_work(dialect: Any, cursor: Any, *_: Any) -> None:
        _report_work_of_file(shim, cursor.connection.fileno())

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        replace_function(module.DefaultDialect, name, run_before(report_work))
