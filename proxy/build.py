"""From a policy and a command line to a running gateway."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aiohttp import http_parser

from proxy import __version__
from proxy.app import AppController
from proxy.app.command import Command, parse_command
from proxy.app.external_app import ExternalApp
from proxy.app.file_limit import raise_file_limit
from proxy.app.reaper import OrphanReaper, become_subreaper
from proxy.app.supervisor import Supervisor
from proxy.egress.service import Egress
from proxy.errors import BindError, OutriggerError
from proxy.gateway import Gateway
from proxy.ledger.ledger import Ledger
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.recent_errors import RecentErrors
from proxy.observe.request_registry import RequestRegistry
from proxy.observe.sentry import connect_sentry
from proxy.operations.health import resolve_memory_limit
from proxy.operations.launch_environment import LaunchEnvironment
from proxy.operations.reloader import Reloader
from proxy.policy.loading import PolicySource
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.server import Address
from proxy.process.listen_sockets import ListenSockets, find_free_port
from proxy.process.service_manager import ServiceNotifier
from proxy.process.socket_activation import assign_sockets, close_sockets, receive_sockets

if TYPE_CHECKING:
    from proxy.gateway import Gateway


async def serve(
    source: PolicySource, policy: Policy, words: Sequence[str], environ: Mapping[str, str], log: EventLog
) -> int:
    """The status to exit with. Raises BindError, and OutriggerError where aiohttp lacks its C parser."""
    require_c_parser()
    raise_file_limit()
    log.emit("gateway.start", f"Outrigger {__version__}, policy {policy.source}.", version=__version__)
    for warning in policy.warnings:
        log.emit("policy.warning", warning, level="warning")
    if policy.app.memory.recycle is not None and resolve_memory_limit(policy) is None:
        text = "app.memory.recycle has nothing to go by: no limit is to be seen here; name one by app.memory.limit."
        log.emit("policy.warning", text, level="warning")
    loop = asyncio.get_running_loop()
    sentry = connect_sentry(policy.sentry, version=__version__, clock=loop.time)
    if sentry is None:
        return await _serve(source, policy, words, environ, log)
    log.on_error = sentry.capture_event
    loop.set_exception_handler(sentry.handle_loop_exception)
    try:
        return await _serve(source, policy, words, environ, log)
    except OutriggerError:
        raise  # said in a sentence: an operator's to mend
    except Exception as error:
        sentry.capture_exception(error)
        raise
    finally:
        log.on_error = None
        await asyncio.to_thread(sentry.close)


async def _serve(
    source: PolicySource, policy: Policy, words: Sequence[str], environ: Mapping[str, str], log: EventLog
) -> int:
    metrics = Metrics(policy.metrics, version=__version__)
    sockets = open_sockets(policy, environ, log)
    notifier = ServiceNotifier(environ)
    notifier.notify_starting(policy.app.start_timeout)
    try:
        recent = RecentErrors(log.redact_target)
        requests = RequestRegistry(asyncio.get_running_loop().time)
        ledger = Ledger(policy.ledger, emit=log.emit, metrics=metrics, clock=asyncio.get_running_loop().time)
        egress = Egress(
            policy, requests=requests, metrics=metrics, log=log, ledger=ledger, environ=environ, recent=recent
        )
        database = None
        if sockets.postgres is not None:
            from proxy.postgres.service import PostgresService  # it brings asyncpg, which nothing else needs

            database = PostgresService(policy.postgres, requests=requests, metrics=metrics, log=log, environ=environ)
            egress.notices.works = database.assign_request
        command, private = resolve_command(policy, words, sockets, log)
        outfit = LaunchEnvironment(
            environ, command=command, private=private, sockets=sockets, egress=egress, database=database, log=log
        )
        app = build_app(policy, command, private, outfit, sockets, metrics, log, requests)
        gateway = Gateway(
            policy,
            app,
            sockets,
            log=log,
            metrics=metrics,
            reloader=Reloader(source, policy, environ, emit=log.emit, metrics=metrics, ours=command is not None),
            egress=egress,
            ledger=ledger,
            database=database,
            requests=requests,
            recent=recent,
            environ=environ,
            outfit=outfit,
            notifier=notifier,
        )
        freeze_startup_objects()
        return await gateway.run()
    finally:
        sockets.close()
        notifier.close()


def open_sockets(policy: Policy, environ: Mapping[str, str], log: EventLog) -> ListenSockets:
    """Those that a service manager hands over, and the others bound. Raises BindError."""
    handed = receive_sockets(environ)
    try:
        placed = assign_sockets(policy, handed)
        sockets = ListenSockets.bind(policy, placed)
    except BindError:
        close_sockets(handed)
        raise
    for key, sock in placed.items():
        address = Address(*sock.getsockname()[:2])
        log.emit("gateway.socket", f"{key} is {address}, handed over by the service manager.", key=key)
    pid = environ.get("LISTEN_PID")
    if pid is not None and not handed and environ.get("LISTEN_FDS"):
        text = f"LISTEN_PID names process {pid}, and not us: its sockets are not taken. Start outrigger by `exec`."
        log.emit("gateway.socket", text, level="warning")
    return sockets


def resolve_command(
    policy: Policy, words: Sequence[str], sockets: ListenSockets, log: EventLog
) -> tuple[Command | None, int]:
    """What the command line says is to be started, and the port that it gets; None where something else runs it."""
    if not words:
        return None, 0
    private = find_free_port() if policy.app.port == "auto" else policy.app.port
    public = sockets.public.getsockname()[1] if sockets.public is not None else None
    command = parse_command(words, public, private)
    for change in command.replaced_words:
        log.emit("app.port", f"The app gets its own port: {change}.", port=private)
    return command, private


def build_app(
    policy: Policy,
    command: Command | None,
    private: int,
    outfit: LaunchEnvironment,
    sockets: ListenSockets,
    metrics: Metrics,
    log: EventLog,
    requests: RequestRegistry,
) -> AppController:
    """The app that the command line names, or else the policy."""
    clock = asyncio.get_running_loop().time
    if command is None:
        outfit.build(policy)  # whoever starts it is told what it needs
        return ExternalApp(policy.app, emit=log.emit, clock=clock)
    return Supervisor(
        policy.app,
        command,
        {},  # made at each start
        port=private,
        emit=log.emit,
        tell=log.emit_unclipped,
        on_restart=lambda reason: metrics.app_restarts_total.labels(reason).inc(),
        find=requests.find,
        worker=sockets.public is None,
        orphans=OrphanReaper() if become_subreaper() else None,
        clock=clock,
    )


def freeze_startup_objects() -> None:
    """What was made until now lives as long as the process: the collector need not look at it again, and
    a request's own objects die by reference counting."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def require_c_parser() -> None:
    """aiohttp's Python parser is a fallback that has had holes of its own: it never faces the network."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise OutriggerError(
            "aiohttp was installed without its C parser; install it from a wheel, or with a C compiler and"
            " without AIOHTTP_NO_EXTENSIONS"
        )
