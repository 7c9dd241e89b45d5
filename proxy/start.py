"""From a policy and a command line to a running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from aiohttp import http_parser

from proxy import __version__
from proxy.app import AppFace
from proxy.app.command import Command
from proxy.app.environment import build
from proxy.app.external import External
from proxy.app.supervisor import Supervisor
from proxy.bind import free_port
from proxy.errors import OutriggerError
from proxy.gateway import Gateway, Sockets
from proxy.observe.log import Log
from proxy.observe.metrics import Metrics
from proxy.policy.load import PolicySource
from proxy.policy.policy import Policy
from proxy.reload import Reloader


async def serve(
    source: PolicySource, policy: Policy, words: Sequence[str], environ: Mapping[str, str], log: Log
) -> int:
    """The status to exit with. Raises BindError, and OutriggerError where aiohttp lacks its C parser."""
    require_c_parser()
    log.emit("gateway.start", f"Outrigger {__version__}, policy {policy.source}.", version=__version__)
    for warning in policy.warnings:
        log.emit("policy.warning", warning, level="warning")
    metrics = Metrics(policy.metrics, version=__version__)
    sockets = Sockets.bind(policy)
    try:
        app = make_app(policy, words, environ, sockets, metrics, log)
        reloader = Reloader(source, policy, environ, emit=log.emit, metrics=metrics)
        gateway = Gateway(
            policy, app, sockets, log=log, metrics=metrics, reloader=reloader, environ=environ
        )
        return await gateway.run()
    finally:
        sockets.close()


def require_c_parser() -> None:
    """aiohttp's Python parser is a fallback that has had holes of its own: it never faces the network."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise OutriggerError(
            "aiohttp was installed without its C parser; install it from a wheel, or with a C compiler and"
            " without AIOHTTP_NO_EXTENSIONS"
        )
