"""Checks that the app listens on the port that it was given, and that nobody but the gateway reaches it there."""

from __future__ import annotations

from collections.abc import Callable

from proxy.app.listening_sockets import Listener, find_listeners
from proxy.app.memory_usage import process_family
from proxy.observe.emit import EmitEvent

WRONG_PORT_AFTER = 5.0  # seconds from a start until another port is reported; helpers may listen before the app does


class PortCheck:
    """Logs each of the two faults once. `find` gives the listeners of a process with its family."""

    def __init__(
        self,
        port: int,
        emit: EmitEvent,
        find: Callable[[int], list[Listener]] = lambda pid: find_listeners(process_family(pid)),
    ) -> None:
        self._port = port
        self._emit = emit
        self._find_listeners = find
        self._warned_wrong_port = False
        self._warned_exposed = False

    def find_wrong_port(self, pid: int) -> str:
        """A sentence if it listens, but not on its port; empty otherwise."""
        found = self._find_listeners(pid)
        if not found or any(one.port == self._port for one in found):
            return ""
        # One that others can reach is more likely the app's own than one on loopback, which a helper may have.
        likeliest = min(found, key=lambda one: (not one.is_exposed, one.port))
        others = ", ".join(str(one) for one in found if one != likeliest)
        beside = f" (and on {others})" if others else ""
        text = (
            f"it listens on port {likeliest.port}{beside}, not on {self._port}, which it was given as PORT:"
            f" write app.port: {likeliest.port}, or let it ask PORT"
        )
        if not self._warned_wrong_port:
            self._warned_wrong_port = True
            self._emit("app.elsewhere", f"The app is not where it was told to be: {text}.", level="warning", pid=pid)
        return text

    def warn_if_exposed(self, pid: int) -> None:
        """Warn if others can reach the private port: their requests would have no limits and could claim any
        address."""
        if self._warned_exposed:
            return
        wide = next((one for one in self._find_listeners(pid) if one.port == self._port and one.is_exposed), None)
        if wide is not None:
            self._warned_exposed = True
            text = (
                f"The app listens on {wide}, so whoever reaches that port of this machine goes round the gateway: bind"
                " it to 127.0.0.1 (with OUTRIGGER=off it has to be 0.0.0.0 again), or see that no network leads there."
            )
            self._emit("app.exposed", text, level="warning", pid=pid, address=str(wide))
