"""Keeping the gateway's secrets from the app beside it, which runs as the same user.

The vendors' keys and the database's password are in this process's environment and memory, and any process of the same
user may read both (/proc/PID/environ, ptrace), unless this process says that it is not dumpable (prctl(2),
PR_SET_DUMPABLE). Then only a process with CAP_SYS_PTRACE may, which neither a container's root nor a platform's user
has by default.

What else changes by it: no core dumps of this process; its files in /proc are root's, of which it reads none that is
closed to others; gdb, strace and py-spy need that capability. A program that is executed, as the app is, begins anew.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_DUMPABLE = 4  # linux/prctl.h


def disable_memory_access() -> bool:
    """Keep other processes of this user from reading this one; whether that worked. Only Linux can."""
    if sys.platform != "linux":
        return False
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    # The arguments after the second are unused, but the kernel reads them as longs.
    zero = ctypes.c_ulong(0)
    done: int = prctl(ctypes.c_int(PR_SET_DUMPABLE), zero, zero, zero, zero)
    return done == 0


def minimal_environment() -> dict[str, str]:
    """The environment of a helper process of ours, which every process of this user can read: PATH and nothing else."""
    return {"PATH": os.environ.get("PATH") or os.defpath}
