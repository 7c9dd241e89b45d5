"""Servers that do not end in order at SIGTERM, by what their own pages say of signals.

uWSGI: uwsgi-docs.readthedocs.io, Managing; nginx: nginx.org/en/docs/control.html; Apache: httpd.apache.org/docs/2.4,
Stopping and Restarting; Unicorn: yhbt.net/unicorn/SIGNALS.html; PHP-FPM: php-fpm(8).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy.cli.output import Finding
from proxy.policy.schema.policy import Policy

QUITS = "cuts its connections at SIGTERM, and ends in order at SIGQUIT"
SERVERS: Mapping[str, tuple[str, str]] = {
    "nginx": ("SIGQUIT", QUITS),
    "php-fpm": ("SIGQUIT", QUITS),
    "unicorn": ("SIGQUIT", QUITS),
    "unicorn_rails": ("SIGQUIT", QUITS),
    "apache2": ("SIGWINCH", "cuts its connections at SIGTERM, and ends in order at SIGWINCH"),
    "httpd": ("SIGWINCH", "cuts its connections at SIGTERM, and ends in order at SIGWINCH"),
    "uwsgi": ("SIGQUIT", "with a master reloads at SIGTERM, unless it is told to die-on-term"),
}
DIES_ON_TERM = "told to die-on-term ends at SIGTERM, and reloads at SIGQUIT"
LARGEST = 1024 * 1024  # bytes of a configuration that is looked into


def stopping(policy: Policy, line: str, environ: Mapping[str, str], cwd: Path) -> list[Finding]:
    """Whether `app.stop_signal` fits what the command starts; nothing where no such server is seen."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quote that nothing closes
        return []
    name = next((name for name in (Path(word).name for word in words) if name in SERVERS), None)
    if name is None:
        return []
    fitting, why = SERVERS[name]
    signal = policy.app.stop_signal
    if name == "uwsgi" and _told("die-on-term", words, environ, cwd):  # the two change places
        fits, why, mend = signal in ("SIGINT", "SIGTERM"), DIES_ON_TERM, "write app.stop_signal: SIGTERM"
    elif name == "uwsgi":
        ends = ("SIGINT", "SIGQUIT") if _mastered(words, environ) else ("SIGINT", "SIGQUIT", "SIGTERM")
        fits, mend = signal in ends, f"add --die-on-term to it, or write app.stop_signal: {fitting}"
    else:
        fits, mend = signal == fitting, f"write app.stop_signal: {fitting}"
    if fits:
        return [Finding("ok", "app stop", f"{name} ends at {signal} (app.stop_signal)")]
    return [Finding("warning", "app stop", f"{name} {why}; it would get {signal} (app.stop_signal)", mend)]


def _mastered(words: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether it may have a master, which alone reloads: files and variables are not read for it."""
    named = re.compile(r"-M|--master(=true)?|(--)?(ini|xml|ya?ml|json)\b.*|.*\.(ini|xml|ya?ml|json)")
    others = (name for name in environ if name.startswith("UWSGI_") and name != "UWSGI_DIE_ON_TERM")
    return any(named.fullmatch(word) for word in words) or any(others)


def _told(option: str, words: Sequence[str], environ: Mapping[str, str], cwd: Path) -> bool:
    """By an option, a variable (UWSGI_…), or a line of a configuration that the command names."""
    if any(word.lstrip("-") in (option, f"{option}=true") for word in words):
        return True
    if environ.get(f"UWSGI_{option.upper().replace('-', '_')}", "false") not in ("", "0", "false"):
        return True
    for word in words:
        file = cwd / word.partition("=")[2] if word.startswith("--") and "=" in word else cwd / word
        if file.suffix in (".ini", ".yaml", ".yml", ".json", ".xml") and os.path.isfile(file):
            with open(file, errors="replace") as config:
                if re.search(rf"^[^#;\n]*\b{option}\b", config.read(LARGEST), re.MULTILINE):
                    return True
    return False
