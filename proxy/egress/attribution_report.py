"""What the app's Python processes said of themselves: what carries a request's token in each, and what was left alone.

Each process reports once what is hooked, and again when that has grown (`attribution_listener.py`). The last report of
each is kept, of MAX_PROCESSES at most; processes that have ended are not shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_PROCESSES = 50  # whose reports are kept
NO_HOOK_MARK = "?"  # before the name of a module that no hook knows

NO_HOOK = "there is no hook for it: pass X-Outrigger-Request on from the request to the call"
UNEXPECTED = "it does not look as its hook expects, so nothing of it was replaced"


@dataclass(frozen=True, slots=True)
class HookReport:
    """One process's report. `left_alone` has a name, with its version if that is known, and why."""

    pid: int
    python: str
    hooked: tuple[str, ...]
    left_alone: tuple[tuple[str, str], ...]

    @classmethod
    def from_names(cls, pid: int, python: str, hooked: Sequence[str], missed: Sequence[str]) -> HookReport:
        """`missed` are names as the app's Python sends them: NO_HOOK_MARK before one that no hook knows."""
        left = tuple(
            (name.removeprefix(NO_HOOK_MARK), NO_HOOK if name.startswith(NO_HOOK_MARK) else UNEXPECTED)
            for name in missed
        )
        return cls(pid, python, tuple(hooked), left)

    @property
    def not_hooked(self) -> list[str]:
        return [name for name, _ in self.left_alone]


@dataclass(slots=True)
class AttributionReport:
    """Whether attribution is on, why, and what the processes said.

    `state` is `on`, `off`, or `elsewhere` for an app that has to carry the token itself; `reason` is a sentence.
    """

    state: str = "off"
    reason: str = ""
    _reports: dict[int, HookReport] = field(default_factory=dict)

    def set_state(self, state: str, reason: str) -> None:
        self.state, self.reason = state, reason

    def record(self, report: HookReport) -> None:
        """Keep a process's newest report; the oldest process is forgotten if there are too many."""
        self._reports.pop(report.pid, None)
        self._reports[report.pid] = report
        while len(self._reports) > MAX_PROCESSES:
            del self._reports[next(iter(self._reports))]

    def status(self) -> Mapping[str, object]:
        """For /status: the state, and each process that still runs."""
        self._reports = {pid: report for pid, report in self._reports.items() if _is_running(pid)}
        return {
            "state": self.state,
            "reason": self.reason,
            "processes": [
                {
                    "pid": report.pid,
                    "python": report.python,
                    "hooked": list(report.hooked),
                    "left_alone": [{"name": name, "why": why} for name, why in report.left_alone],
                }
                for report in self._reports.values()
            ],
        }


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; or no process's number at all
        return True
    return True
