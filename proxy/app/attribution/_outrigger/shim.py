"""What every hook needs: the current request's token, the gateway's address, and what to tell the gateway."""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

HEADER = "X-Outrigger-Request"
DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
# Servers and clients that no hook knows: named in the report where they are in use.
STRANGERS = ("uwsgi", "granian", "daphne", "cheroot", "tornado", "sanic", "twisted.web", "pycurl", "niquests")


class Shim:
    """`metered` are the upstreams' own addresses, HOST:PORT with commas between; None: nothing is told.
    `database` is the address of the gateway's pool, if there is one."""

    def __init__(self, egress: str, metered: str | None = None, database: str | None = None) -> None:
        self.current: ContextVar[str | None] = ContextVar("outrigger_request", default=None)
        self.address = _address(egress.partition("//")[2] or egress)
        self._tells = metered is not None
        self._metered = {_address(one) for one in (metered or "").split(",") if one}
        self.database = _address(database) if database and self._tells else None
        self.told: dict[int, str] = {}  # by the port of a connection to it: what it was last said to work for
        self._hooked: list[str] = []
        self._missed: list[str] = []
        self._unreported = True

    # ── the token ────────────────────────────────────────────────────────────────────────────

    def enter(self, find: Callable[..., Any], *where: Any) -> str | None:
        """A request begins: its token is the current one. What was is returned, to be set again at its end."""
        before = self.current.get()
        try:
            token = find(*where)
            if isinstance(token, bytes):
                token = token.decode("ascii")
            if not (isinstance(token, str) and token.isalnum() and token.isascii()):
                token = None
        except Exception:
            token = None
        self.current.set(token)
        if token is not None and self._unreported:
            self.report()
        return before

    def token_for(self, host: str | None, port: int | None, by: tuple[str, int] | None = None) -> str | None:
        """The token that a call to this address carries: only one to the gateway itself does.

        `by` is the proxy that the call goes through, if any. A call that goes straight to a metered upstream
        is told of, unless it goes through the gateway as a proxy, which sees it then.
        """
        if host is None or port is None:
            return None
        address = (host.lower().rstrip("."), port)
        if address == self.address and by is None:
            if self._unreported:
                self.report()
            return self.current.get()
        if address in self._metered and by != self.address:
            self.tell("bypass", f"{address[0]}:{address[1]}")
        return None

    # ── what the gateway is told ─────────────────────────────────────────────────────────────

    def hooked(self, name: str) -> None:
        if name not in self._hooked:
            self._hooked.append(name)
            self._unreported = True

    def missed(self, name: str, module: str) -> None:
        version = getattr(sys.modules.get(module.partition(".")[0]), "__version__", "")
        self._missed.append(f"{name} {version}".strip() if isinstance(version, str) else name)
        self._unreported = True

    def report(self) -> None:
        """Say what is hooked, at the first request and whenever that has grown since."""
        self._unreported = False
        missed = self._missed + [name for name in STRANGERS if name in sys.modules]
        version = ".".join(str(number) for number in sys.version_info[:3])
        self.tell("hooked", str(os.getpid()), version, ",".join(self._hooked) or "-", ",".join(missed) or "-")

    def tell(self, *words: str) -> None:
        """One datagram to the gateway, never waited for. By _socket, which nothing patches."""
        if not self._tells:
            return
        try:
            import _socket

            family = _socket.AF_INET6 if ":" in self.address[0] else _socket.AF_INET
            sock = _socket.socket(family, _socket.SOCK_DGRAM)
            try:
                sock.setblocking(False)
                line = " ".join(word.replace(" ", "_") for word in words)
                sock.sendto(line.encode("ascii", "replace"), self.address)
            finally:
                sock.close()
        except Exception:
            return


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.partition("/")[0].rpartition(":")
    return host.strip("[]").lower(), int(port)
