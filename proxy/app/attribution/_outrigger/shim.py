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
# Servers and clients that no hook knows: they are named in the report if they are in use.
UNHOOKED_MODULES = ("uwsgi", "granian", "daphne", "cheroot", "tornado", "sanic", "twisted.web", "pycurl", "niquests")


class Shim:
    """The state that the hooks share. One of it per process.

    `current` holds the token of the request that runs now, None outside of one. `address` is the gateway's listener
    for calls out, `database` that of its pool, if there is one. `metered` are the upstreams' own addresses, HOST:PORT
    with commas between; without them nothing is reported to the gateway.
    """

    def __init__(self, egress: str, metered: str | None = None, database: str | None = None) -> None:
        self.current: ContextVar[str | None] = ContextVar("outrigger_request", default=None)
        self.address = _parse_address(egress.partition("//")[2] or egress)
        self._reports_enabled = metered is not None
        self._metered = {_parse_address(one) for one in (metered or "").split(",") if one}
        self.database = _parse_address(database) if database and self._reports_enabled else None
        self.reported_work: dict[int, str] = {}  # by local port of a connection to the pool: the last token
        self._hooked: list[str] = []
        self._missed: list[str] = []
        self._hooks_unreported = True

    # ── the token ────────────────────────────────────────────────────────────────────────────

    def enter_request(self, find: Callable[..., Any], *where: Any) -> str | None:
        """Make a request's token the current one; `find` gets `where` and returns it. Returns the token before it,
        which the caller sets again when the request has ended."""
        before = self.current.get()
        try:
            token = find(*where)
            if isinstance(token, bytes):
                token = token.decode("ascii")
            # The header comes from the gateway, but the app may be asked past it: only what looks like a token is used.
            if not (isinstance(token, str) and token.isalnum() and token.isascii()):
                token = None
        except Exception:
            token = None
        self.current.set(token)
        if token is not None and self._hooks_unreported:
            self.report_hooks()
        return before

    def token_for(self, host: str | None, port: int | None, proxy: tuple[str, int] | None = None) -> str | None:
        """The token that a call to this address carries: only one to the gateway itself does.

        `proxy` is the proxy that the call goes through, if any. A call that goes straight to a metered upstream is
        reported as a bypass, unless it goes through the gateway as its proxy: then the gateway sees it.
        """
        if host is None or port is None:
            return None
        address = (host.lower().rstrip("."), port)
        if address == self.address and proxy is None:
            if self._hooks_unreported:
                self.report_hooks()
            return self.current.get()
        if address in self._metered and proxy != self.address:
            self.send_report("bypass", f"{address[0]}:{address[1]}")
        return None

    # ── reports to the gateway ───────────────────────────────────────────────────────────────

    def add_hooked(self, name: str) -> None:
        if name not in self._hooked:
            self._hooked.append(name)
            self._hooks_unreported = True

    def add_missed(self, name: str, module: str) -> None:
        version = getattr(sys.modules.get(module.partition(".")[0]), "__version__", "")
        self._missed.append(f"{name} {version}".strip() if isinstance(version, str) else name)
        self._hooks_unreported = True

    def report_hooks(self) -> None:
        """Report what is hooked: at the first request, and at the next one after that has grown."""
        self._hooks_unreported = False
        # A mark tells those that no hook knows from those that did not look as expected.
        missed = self._missed + ["?" + name for name in UNHOOKED_MODULES if name in sys.modules]
        version = ".".join(str(number) for number in sys.version_info[:3])
        self.send_report("hooked", str(os.getpid()), version, ",".join(self._hooked) or "-", ",".join(missed) or "-")

    def send_report(self, *words: str) -> None:
        """Send one datagram to the gateway without waiting. gevent and eventlet do not patch `_socket`."""
        if not self._reports_enabled:
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


def _parse_address(text: str) -> tuple[str, int]:
    host, _, port = text.partition("/")[0].rpartition(":")
    return host.strip("[]").lower(), int(port)
