"""Which request a connection to the gateway's pool works for, so that an abandoned one takes its queries along.

Told by datagram, just before a statement leaves, and only when it is another request than last time on that
connection; `-` where it is none. Nothing in the statement or the connection changes. psycopg2's own classes are
C and cannot be hooked: what goes through Django or SQLAlchemy is.
"""

from __future__ import annotations

from .finder import replace
from .outbound import before, before_async

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from .shim import Shim

MOST = 1000  # connections that are remembered


def _works(shim: Shim, local: Any, peer: Any) -> None:
    """Both are addresses as sockets have them; a connection to anything but the pool is not spoken of."""
    if tuple(peer[:2]) != shim.database:
        return
    port, token = local[1], shim.current.get() or "-"
    if shim.told.get(port, "-") != token:
        if len(shim.told) >= MOST:
            shim.told.clear()
        shim.told[port] = token
        shim.tell("works", str(port), token)


def _on_file(shim: Shim, number: int) -> None:
    """The same for an open file that is the connection's socket, which stays as it is."""
    import _socket

    sock = _socket.socket(fileno=number)
    try:
        _works(shim, sock.getsockname(), sock.getpeername())
    finally:
        sock.detach()


def asyncpg(shim: Shim, module: ModuleType) -> None:
    def mark(connection: Any, *_: Any) -> None:
        transport = connection._transport
        _works(shim, transport.get_extra_info("sockname"), transport.get_extra_info("peername"))

    names = ("execute", "_execute", "_executemany", "_prepare", "_copy_in", "_copy_out")
    for name, original in {name: module.Connection.__dict__[name] for name in names}.items():
        replace(module.Connection, name, before_async(mark), original)


def asyncpg_prepared(shim: Shim, module: ModuleType) -> None:
    def mark(statement: Any, *_: Any) -> None:
        transport = statement._connection._transport
        _works(shim, transport.get_extra_info("sockname"), transport.get_extra_info("peername"))

    replace(module.PreparedStatement, "_PreparedStatement__do_execute", before_async(mark))


def psycopg(shim: Shim, module: ModuleType) -> None:
    """Version 3: every statement of its cursors, async ones too, starts there. 3.0 and 3.1 have it elsewhere."""
    cursor = getattr(module, "BaseCursor", None)
    if cursor is not None:
        replace(cursor, "_start_query", before(lambda cursor, *_: _on_file(shim, cursor._conn.fileno())))


def django(shim: Shim, module: ModuleType) -> None:
    def mark(wrapper: Any, *_: Any) -> None:
        _on_file(shim, wrapper.db.connection.fileno())

    for name in ("_execute", "_executemany"):
        replace(module.CursorWrapper, name, before(mark))


def sqlalchemy(shim: Shim, module: ModuleType) -> None:
    def mark(dialect: Any, cursor: Any, *_: Any) -> None:
        _on_file(shim, cursor.connection.fileno())

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        replace(module.DefaultDialect, name, before(mark))
