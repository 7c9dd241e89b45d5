"""OUTRIGGER=off: the break-glass. The app alone, as if the gateway were not there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from proxy.app.command import SHELL


def exec_untouched(words: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become the app's command, nothing in it changed; exits 127 or 126 where that cannot be."""
    argv = list(words)
    if len(argv) == 1 and re.search(r"\s", argv[0].strip()):
        argv = [SHELL, "-c", argv[0]]
    try:
        os.execvpe(argv[0], argv, dict(environ))
    except OSError as error:
        sys.stderr.write(f"outrigger: {argv[0]} cannot be started: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
