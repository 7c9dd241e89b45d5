"""Ports for servers that bind one later. Those the system gives away for port 0 and for outgoing connections may be
taken in between; these lie below that range (32768 on Linux), a stretch of them for each worker of pytest-xdist."""

from __future__ import annotations

import itertools
import os
import random
import socket

FIRST, EACH = 12_000, 2_500

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_start = random.SystemRandom().randrange(EACH)
_ports = (FIRST + _worker * EACH + (_start + n) % EACH for n in itertools.count())


def free_port() -> int:
    for port in itertools.islice(_ports, EACH):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no port of 127.0.0.1 is free from {FIRST + _worker * EACH} up")
