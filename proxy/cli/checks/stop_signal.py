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
from proxy.policy.schema import Policy

_QUITS_IN_ORDER = "cuts its connections at SIGTERM, and ends in order at SIGQUIT"
# By program: the signal that ends it in order, and what it does otherwise.
STOP_SIGNALS: Mapping[str, tuple[str, str]] = {
    "nginx": ("SIGQUIT", _QUITS_IN_ORDER),
    "php-fpm": ("SIGQUIT", _QUITS_IN_ORDER),
    "unicorn": ("SIGQUIT", _QUITS_IN_ORDER),
    "unicorn_rails": ("SIGQUIT", _QUITS_IN_ORDER),
    "apache2": ("SIGWINCH", "cuts its connections at SIGTERM, and ends in order at SIGWINCH"),
    "httpd": ("SIGWINCH", "cuts its connections at SIGTERM, and ends in order at SIGWINCH"),
    "uwsgi": ("SIGQUIT", "with a master reloads at SIGTERM, unless it is told to die-on-term"),
}
_DIES_ON_TERM = "told to die-on-term ends at SIGTERM, and reloads at SIGQUIT"
MAX_CONFIG_BYTES = 1024 * 1024  # bytes of a configuration that is looked into


def check_stop_signal(policy: Policy, line: str, environ: Mapping[str, str], cwd: Path) -> list[Finding]:
    """Whether `app.stop_signal` fits the server that the command starts; nothing if it starts none of these."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quote that nothing closes
        return []
    # The first word that names one; variables, `exec` and wrappers may stand before it.
    name = next((name for name in (Path(word).name for word in words) if name in STOP_SIGNALS), None)
    if name is None:
        return []
    fitting, why = STOP_SIGNALS[name]
    signal = policy.app.stop_signal
    if name == "uwsgi" and _is_option_set("die-on-term", words, environ, cwd):  # the two change places
        fits, why, fix = signal in ("SIGINT", "SIGTERM"), _DIES_ON_TERM, "write app.stop_signal: SIGTERM"
    elif name == "uwsgi":
        # Without a master there is nothing to reload, so SIGTERM ends it as well.
        ends = ("SIGINT", "SIGQUIT") if _has_master(words, environ) else ("SIGINT", "SIGQUIT", "SIGTERM")
        fits, fix = signal in ends, f"add --die-on-term to it, or write app.stop_signal: {fitting}"
    else:
        fits, fix = signal == fitting, f"write app.stop_signal: {fitting}"
    if fits:
        return [Finding("ok", "app stop", f"{name} ends at {signal} (app.stop_signal)")]
    return [Finding("warning", "app stop", f"{name} {why}; it would get {signal} (app.stop_signal)", fix)]


def _has_master(words: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether uWSGI may have a master, the only one to reload; what files and variables say is not looked at."""
    named = re.compile(r"-M|--master(=true)?|(--)?(ini|xml|ya?ml|json)\b.*|.*\.(ini|xml|ya?ml|json)")
    others = (name for name in environ if name.startswith("UWSGI_") and name != "UWSGI_DIE_ON_TERM")
    return any(named.fullmatch(word) for word in words) or any(others)


def _is_option_set(option: str, words: Sequence[str], environ: Mapping[str, str], cwd: Path) -> bool:
    """Whether uWSGI has an option: on its command line, by a variable (UWSGI_…), or in a file that it names."""
    if any(word.lstrip("-") in (option, f"{option}=true") for word in words):
        return True
    if environ.get(f"UWSGI_{option.upper().replace('-', '_')}", "false") not in ("", "0", "false"):
        return True
    for word in words:
        file = cwd / word.partition("=")[2] if word.startswith("--") and "=" in word else cwd / word
        if file.suffix in (".ini", ".yaml", ".yml", ".json", ".xml") and os.path.isfile(file):
            with open(file, errors="replace") as config:
                # Not if it is behind the mark of a comment, which is ; or # in these files.
                if re.search(rf"^[^#;\n]*\b{option}\b", config.read(MAX_CONFIG_BYTES), re.MULTILINE):
                    return True
    return False
