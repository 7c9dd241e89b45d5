"""The app's environment: all of the gateway's, except for what is meant for the gateway alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import which

OWN_SECRETS = ("OUTRIGGER_ADMIN_TOKEN",)
# What systemd tells the gateway (sd_listen_fds(3), sd_notify(3)): an app that read it would take the gateway's sockets,
# or report its own state as the gateway's.
SERVICE_MANAGER_VARIABLES = (
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
_BIND = re.compile(r"(?:(?<=\s)|^)(--bind(?:=|\s+)|-b(?:=|\s+|))(\S+)")


def build_environment(
    environ: Mapping[str, str],
    *,
    programs: Sequence[str],
    public: int | None,
    private: int,
    extra: Mapping[str, str] | None = None,
    venv: Path | None = None,
) -> tuple[dict[str, str], list[str]]:
    """The app's environment, and a sentence for each value that was changed.

    `venv` is the gateway's own virtual environment, by default the running one. If it is activated, it is taken out of
    PATH and VIRTUAL_ENV, unless one of the app's `programs` is found nowhere else. `extra` is added at the end.
    """
    env = {
        name: value
        for name, value in environ.items()
        if name not in OWN_SECRETS and name not in SERVICE_MANAGER_VARIABLES
    }
    notes: list[str] = []
    env["PORT"] = str(private)
    # gunicorn reads this too, and would bind the public port, which the gateway has.
    arguments = env.get("GUNICORN_CMD_ARGS")
    if arguments is not None and public is not None:
        changed = _BIND.sub(lambda found: _replace_bind_port(found, public, private), arguments)
        if changed != arguments:
            env["GUNICORN_CMD_ARGS"] = changed
            notes.append(f"GUNICORN_CMD_ARGS bound the public port; the app gets {changed}")
    own = venv if venv is not None else _own_venv()
    if own is not None:
        _leave_own_venv(env, own, programs)
    env.update(extra or {})
    return env, notes


def _replace_bind_port(found: re.Match[str], public: int, private: int) -> str:
    option, value = found.groups()
    return f"{option}127.0.0.1:{private}" if value.rpartition(":")[2] == str(public) else found.group()


def _own_venv() -> Path | None:
    return Path(sys.prefix) if sys.prefix != sys.base_prefix else None


def _leave_own_venv(env: dict[str, str], own: Path, programs: Sequence[str]) -> None:
    bins = {str(own / "bin"), str(own.resolve() / "bin")}
    path = env.get("PATH", "")
    kept = ":".join(entry for entry in path.split(":") if entry.rstrip("/") not in bins)
    if kept != path and any(which(one, path=kept) is None and which(one, path=path) for one in programs):
        return  # app and gateway share one virtual environment: it is the app's own
    if kept != path:
        env["PATH"] = kept
    home = env.get("VIRTUAL_ENV")
    if home is not None and Path(home).resolve() == own.resolve():
        del env["VIRTUAL_ENV"]
        env.pop("VIRTUAL_ENV_PROMPT", None)
