"""What the app's Python tells the gateway: datagrams on the number of the egress port, one line of words each.

`hooked PID PYTHON NAMES NAMES`  what carries a request's token in that process, and what does not
`bypass HOST:PORT`               a call is going straight to a metered upstream
`works PORT TOKEN`               the connection to the database pool that comes from that port works for this request

Words of a list have commas between, `-` is none, `_` stands for a space, `?` before a name says that no hook knows it.
They come unasked and unanswered, so
that the app never waits for the gateway; what is lost was no more than a notice. Anything else is dropped.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from proxy.egress.attribution_report import AttributionReport, HookReport
from proxy.egress.bypass_detection import BypassDetector
from proxy.observe.emit import EmitEvent, LogLevel

RECEIVE_BUFFER = 1 << 20  # bytes that may wait while the loop is busy, as far as the kernel allows
MAX_DATAGRAM = 2048  # bytes of one
MAX_REPORTS = 50  # different ones that are logged


class AttributionListener(asyncio.DatagramProtocol):
    """Receives the datagrams, and has each done by whom it concerns.

    Attributes:
        report: what the processes said, for /status.
        on_database_connection: called with the connection's port and the request's token, empty if it has none.
    """

    def __init__(self, bypass: BypassDetector, emit: EmitEvent) -> None:
        self._bypass = bypass
        self._emit = emit
        self._sock: socket.socket | None = None
        self._transport: asyncio.BaseTransport | None = None
        self._started = False
        self._opening: asyncio.Task[None] | None = None  # of one that a later start of the app asked for
        self._logged: set[tuple[object, ...]] = set()
        self.report = AttributionReport()
        self.on_database_connection: Callable[[int, str], object] | None = None

    def bind(self, host: str, port: int) -> bool:
        """Whether the port's number could be had for datagrams as well; if not, nobody is to send any."""
        if self._sock is None:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                sock.bind((host, port))
            except OSError as error:
                # Calls then have no owner, and work all the same: no reason not to start.
                sock.close()
                text = f"What the app's Python tells cannot be heard, datagrams to {host}:{port} being taken: {error}."
                self._emit("app.attribution", text, level="warning")
                return False
            self._sock = sock
            # Bound before the loop reads: what processes of the app say meanwhile waits in the kernel.
            if self._started:
                self._opening = asyncio.get_running_loop().create_task(self._open(sock))
        return True

    async def start(self) -> None:
        self._started = True
        if self._sock is not None:
            await self._open(self._sock)

    async def _open(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=sock)

    def stop(self) -> None:
        """Close the socket, whether it was read from yet or not."""
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            self._transport.close()
        elif self._sock is not None:
            self._sock.close()

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            words = data[:MAX_DATAGRAM].decode("ascii").split(" ")
        except UnicodeDecodeError:
            return
        # Any process of this machine can send here, so a datagram that is not exactly one of these is dropped.
        if words[0] == "bypass" and len(words) == 2:
            self._bypass.record(words[1])
        elif words[0] == "works" and len(words) == 3 and words[1].isdigit():
            if self.on_database_connection is not None:
                self.on_database_connection(int(words[1]), words[2].strip("-"))
        elif words[0] == "hooked" and len(words) == 5 and words[1].isdigit():
            names = _parse_list(words[3]), _parse_list(words[4])
            report = HookReport.from_names(int(words[1]), words[2], *names)
            self.report.record(report)
            self._log_hooks(report)

    def error_received(self, exc: Exception) -> None:
        """Nothing is done: an error can only be that of a datagram that was sent, and none is sent here."""

    def _log_hooks(self, report: HookReport) -> None:
        """Every process says it; it is logged once for all that say the same."""
        said = (report.python, report.hooked, report.left_alone)
        # Bounded, since whoever sends chooses the words.
        if said in self._logged or len(self._logged) >= MAX_REPORTS:
            return
        self._logged.add(said)
        missed = report.not_hooked
        shown = f"Calls say whose they are (Python {report.python}), by {', '.join(report.hooked) or 'nothing'};"
        shown += f" not hooked: {', '.join(missed)}." if missed else " nothing in use is left out."
        level: LogLevel = "warning" if missed else "info"
        facts = {"pid": report.pid, "python": report.python, "hooked": list(report.hooked), "not_hooked": missed}
        self._emit("app.attribution", shown, level=level, **facts)


def _parse_list(word: str) -> list[str]:
    return [] if word == "-" else [one.replace("_", " ") for one in word.split(",")]
