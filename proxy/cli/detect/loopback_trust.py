"""Code that trusts or favours 127.0.0.1, which behind the gateway is everybody's address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from proxy.cli.detect.project_files import Folder

MAX_PLACES = 20  # places that are named


@dataclass(frozen=True, slots=True)
class LoopbackTrust:
    location: str  # FILE:LINE
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.location}: {self.problem}; {self.fix}"


_READ_FORWARDED = "read the client's address from X-Forwarded-For, which the gateway vouches for"
# What is seen in a line of code, what it means behind a proxy on the same machine, and what to do.
_CODE_PATTERNS = (
    (
        re.compile(r"^\s*INTERNAL_IPS\s*[+:=]"),
        "INTERNAL_IPS: Django shows its debug pages to these, and with 127.0.0.1 among them to everybody",
        "leave it empty outside of development",
    ),
    (
        re.compile(r"\bProxyFix\("),
        "ProxyFix takes the client's address from X-Forwarded-For by counting proxies, and the gateway adds none to it",
        "leave its numbers as they were without the gateway",
    ),
    (
        re.compile(r"\b(trusted_hosts|forwarded_allow_ips|trusted_proxy)\s*=\s*\[?['\"]\*"),
        "this believes everybody's X-Forwarded-For",
        "name 127.0.0.1, which is the gateway: it drops what a client made up",
    ),
    (
        re.compile(r"REMOTE_ADDR['\"]?\]?\s*(==|in)\s|remote_addr\s*(==|in)\s|client\.host\s*(==|in)\s"),
        "this compares the address that a request came from, which is 127.0.0.1 for every request now",
        _READ_FORWARDED,
    ),
    (
        re.compile(r"(==|\bin\b|includes)\s*[\[({]*\s*['\"](127\.0\.0\.1|::1)['\"]"),
        "an address is compared with loopback, which is that of every request now",
        _READ_FORWARDED,
    ),
    (
        re.compile(r"\b(req|request)\.(socket|connection)\.remoteAddress|\.ip\s*===?\s*['\"](127|::1)"),
        "this takes the address that a request came from, which is 127.0.0.1 for every request now",
        "use `app.set('trust proxy', 'loopback')` and req.ip",
    ),
)
# The same of the start command.
_COMMAND_PATTERNS = (
    (
        re.compile(r"--forwarded-allow-ips[= ]['\"]?\*"),
        "--forwarded-allow-ips=* believes everybody's X-Forwarded-For",
        "leave it out: the default, 127.0.0.1, is the gateway, which drops what a client made up",
    ),
    (
        re.compile(r"--no-proxy-headers\b"),
        "--no-proxy-headers: the app sees 127.0.0.1 for every client",
        "leave it out: the gateway vouches for X-Forwarded-For",
    ),
)


def find_trust_in_code(folder: Folder) -> Iterator[LoopbackTrust]:
    """At most MAX_PLACES, in the order of the files."""
    count = 0
    for name, text in folder.source_files(".py", ".js", ".ts", ".mjs", ".cjs"):
        for number, line in enumerate(text.splitlines(), 1):
            # Comments say nothing of what runs, and lines this long were made by a bundler.
            if line.lstrip().startswith(("#", "//", "*")) or len(line) > 500:
                continue
            for pattern, what, fix in _CODE_PATTERNS:
                # One finding for a line: the patterns that say more come first.
                if pattern.search(line) and not _assigns_nothing(line):
                    yield LoopbackTrust(f"{name}:{number}", what, fix)
                    count += 1
                    break
            if count >= MAX_PLACES:
                return


def find_trust_in_command(line: str) -> Iterator[LoopbackTrust]:
    for pattern, what, fix in _COMMAND_PATTERNS:
        if pattern.search(line):
            yield LoopbackTrust("the start command", what, fix)


def _assigns_nothing(line: str) -> bool:
    return re.search(r"=\s*(\[\s*\]|\(\s*\)|set\(\))\s*(#.*)?$", line) is not None
