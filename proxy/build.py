"""The composition root: from a policy and a command line to a running gateway.

Every part is made here and given what it needs, and nothing else; `gateway.py` starts and stops them in order. No
part is started here, but the sockets are bound first, so that an address that is taken costs nothing but a sentence.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import http_parser

from proxy import __version__
from proxy.admin.auth import TokenAuthenticator
from proxy.admin.command_endpoint import CommandEndpoint
from proxy.admin.endpoints import AdminEndpoints, PublicEndpoints
from proxy.admin.listener import AdminListener
from proxy.app import AppController
from proxy.app.command import Command, parse_command
from proxy.app.external_app import ExternalApp
from proxy.app.file_limit import raise_file_limit
from proxy.app.memory_recycler import MemoryRecycler
from proxy.app.memory_usage import MemoryMeter
from proxy.app.metrics_scrape import AppMetricsScraper
from proxy.app.reaper import OrphanReaper, become_subreaper
from proxy.app.supervisor import Supervisor
from proxy.egress.billing.shared_caps import configure_escrow, open_escrow
from proxy.egress.service import Egress
from proxy.errors import BindError, OutriggerError
from proxy.gateway import Gateway
from proxy.ingress.service import IngressService
from proxy.ledger.ledger import Ledger
from proxy.ledger.user_marks import UserMarks
from proxy.observe.alerts.manager import AlertManager
from proxy.observe.health import HealthCheckRegistry
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.process_sampler import ProcessSampler
from proxy.observe.recent_errors import RecentErrors
from proxy.observe.request_ids import IdGenerator
from proxy.observe.request_registry import RequestRegistry
from proxy.observe.sentry import connect_sentry
from proxy.observe.timeseries.history import MetricsHistory
from proxy.operations.alert_inputs import GatewayAlertInputs
from proxy.operations.commands import GatewayCommands
from proxy.operations.health import HealthReport, resolve_memory_limit
from proxy.operations.launch_environment import LaunchEnvironment
from proxy.operations.policy_rollout import PolicyRollout, Prepare
from proxy.operations.reloader import Reloader
from proxy.operations.shared_state import SharedState
from proxy.operations.status import StatusReport
from proxy.operations.task_report import TaskReport
from proxy.parts import Parts, RunState
from proxy.policy import schema
from proxy.policy.loading import PolicySource
from proxy.policy.urls import is_loopback
from proxy.policy.values import Address
from proxy.process.listen_sockets import ListenSockets, find_free_port
from proxy.process.service_manager import ServiceNotifier
from proxy.process.socket_activation import assign_sockets, close_sockets, receive_sockets
from proxy.store.opening import make_member, open_money_store, open_store
from proxy.tasks.switch import TaskSwitch

if TYPE_CHECKING:
    from proxy.postgres.service import PostgresService
    from proxy.tasks.service import TaskService


async def serve(
    source: PolicySource, policy: schema.Policy, words: Sequence[str], environ: Mapping[str, str], log: EventLog
) -> int:
    """Run a gateway until it ends; the status to exit with. `words` is the app's command line, empty if something else
    starts the app. Raises BindError, and OutriggerError if aiohttp lacks its C parser."""
    require_c_parser()
    raise_file_limit()
    log.region = policy.store.region
    log.emit("gateway.start", f"Outrigger {__version__}, policy {policy.source}.", version=__version__)
    for warning in policy.warnings:
        log.emit("policy.warning", warning, level="warning")
    if policy.app.memory.recycle is not None and resolve_memory_limit(policy) is None:
        text = "app.memory.recycle has nothing to go by: no limit is to be seen here; name one by app.memory.limit."
        log.emit("policy.warning", text, level="warning")
    loop = asyncio.get_running_loop()
    sentry = connect_sentry(policy.sentry, version=__version__, clock=loop.time)
    # Sentry is around everything else, so that a failure to start is reported as well.
    if sentry is None:
        return await _build_and_run(source, policy, words, environ, log)
    log.on_error = sentry.capture_event
    loop.set_exception_handler(sentry.handle_loop_exception)
    try:
        return await _build_and_run(source, policy, words, environ, log)
    except OutriggerError:
        raise  # an operator's mistake, said in a sentence: nothing for Sentry
    except Exception as error:
        sentry.capture_exception(error)
        raise
    finally:
        log.on_error = None
        await asyncio.to_thread(sentry.close)


async def _build_and_run(
    source: PolicySource, policy: schema.Policy, words: Sequence[str], environ: Mapping[str, str], log: EventLog
) -> int:
    sockets = open_sockets(policy, environ, log)
    notifier = ServiceNotifier(environ)
    # Before anything slow: a manager's default timeout for a start is shorter than many an app's.
    notifier.notify_starting(policy.app.start_timeout)
    try:
        gateway = build_gateway(source, policy, words, environ, log, sockets, notifier)
        freeze_startup_objects()
        return await gateway.run()
    finally:
        sockets.close()
        notifier.close()


def build_gateway(
    source: PolicySource,
    policy: schema.Policy,
    words: Sequence[str],
    environ: Mapping[str, str],
    log: EventLog,
    sockets: ListenSockets,
    notifier: ServiceNotifier,
) -> Gateway:
    """A gateway that is ready to `run`. Calls and queries come first, the app that makes them next, then the public
    listener in front of it, and last what looks at all of them: health, alerts, status and the operator's commands.
    """
    loop = asyncio.get_running_loop()
    state = RunState(policy)
    metrics = Metrics(policy.metrics, version=__version__, region=policy.store.region)
    recent_errors = RecentErrors(log.redact_target)
    requests = RequestRegistry(loop.time)

    # Calls out, the database and the ledger.
    ledger = Ledger(policy.ledger, emit=log.emit, metrics=metrics, clock=loop.time, region=policy.store.region)
    user_marks = UserMarks(ledger.store, emit=log.emit)
    member = make_member(policy.store.region)
    store = open_store(policy.store, member, emit=log.emit, metrics=metrics, clock=loop.time)
    money_store = open_money_store(policy.store, member, store, emit=log.emit, metrics=metrics, clock=loop.time)
    escrow = open_escrow(policy, money_store, ledger, clock=loop.time)
    egress = Egress(
        policy,
        requests=requests,
        metrics=metrics,
        log=log,
        ledger=ledger,
        environ=environ,
        recent=recent_errors,
        escrow=escrow,
        instance=member.id,
        store=store,
    )
    postgres: PostgresService | None = None
    if sockets.postgres is not None:
        from proxy.postgres.service import PostgresService  # it brings asyncpg, which nothing else needs

        postgres = PostgresService(
            policy.postgres, requests=requests, metrics=metrics, log=log, environ=environ, store=store
        )
        egress.attribution.on_database_connection = postgres.assign_request

    # The app, and what it is started with.
    command, port = resolve_command(policy, words, sockets, log)
    launch_environment = LaunchEnvironment(
        environ, command=command, app_port=port, sockets=sockets, egress=egress, database=postgres, log=log
    )
    if command is None:
        launch_environment.build(policy)  # the log tells whoever starts the app what it needs
    app = build_app(policy, command, port, sockets, metrics, log, requests)
    meter = MemoryMeter()
    process_sampler = ProcessSampler(
        metrics,
        clock=loop.time,
        app_bytes=lambda: meter.measure_bytes(app.pid) if app.pid is not None else None,
        limit_bytes=lambda: resolve_memory_limit(state.policy),
    )

    # Requests in. The public listener answers for the endpoints too, which report on every part, the listener among
    # them: it gets them by a function, and they are made below.
    ingress = IngressService(
        loop,
        policy,
        app,
        own_endpoints=PublicEndpoints(lambda: endpoints),
        metrics=metrics,
        log=log,
        requests=requests,
        budgets=egress.spend,
        blocked=user_marks.blocked_users,
        recent=recent_errors,
        on_render=bool(environ.get("RENDER")),
        app_bytes=lambda: process_sampler.latest.app_bytes or 0,
        find_tasks=lambda: tasks.service,
        store=store,
    )

    # Requests that run later go the way of the others, so the queue is made behind it.
    def make_task_service(new: schema.Policy) -> TaskService:
        from proxy.tasks.service import TaskService  # loaded only if a policy names it

        return TaskService(
            new,
            ingress.task_runs,
            emit=log.emit,
            redact=log.redact_target,
            metrics=metrics,
            clock=loop.time,
            public_host=environ.get("RENDER_EXTERNAL_HOSTNAME", ""),
        )

    tasks = TaskSwitch(policy, make_task_service)

    # What looks at all of them.
    parts = Parts(
        state=state,
        clock=loop.time,
        app=app,
        ingress=ingress,
        egress=egress,
        postgres=postgres,
        ledger=ledger,
        tasks=tasks,
        user_marks=user_marks,
        store=store,
        money_store=money_store,
        log=log,
        metrics=metrics,
        recent_errors=recent_errors,
        health=HealthCheckRegistry(loop.time, version=__version__),
        process_sampler=process_sampler,
        history=MetricsHistory(metrics, clock=loop.time, levels=lambda: health_report.read_levels()),
    )
    health_report = HealthReport(parts)
    register_health_checks(parts, health_report)
    authenticator = TokenAuthenticator(policy.admin.token, clock=loop.time)
    alerts: AlertManager
    preparations: dict[str, Prepare] = {
        "log": lambda new: log.prepare(new.log),
        "metrics": lambda new: partial(metrics.apply, new.metrics),
        "admin": lambda new: partial(authenticator.replace_token, new.admin.token),
        "app": lambda new: partial(app.apply, new.app),
        "tasks": tasks.prepare,  # before the front door, which hands requests over to it
        "ingress": ingress.prepare,
        "egress": egress.prepare,
        "ledger": lambda new: partial(ledger.apply, new.ledger),
        "store": lambda new: partial(store.apply, new.store),
        "money_store": lambda new: partial(money_store.apply, new.store),
        "alerts": lambda new: partial(alerts.apply, new.alerts),
    }
    if escrow is not None:
        preparations["escrow"] = lambda new: partial(configure_escrow, escrow, new.store)
    if postgres is not None:
        preparations["postgres"] = lambda new: partial(postgres.apply, new.postgres)
    rollout = PolicyRollout(state, environ, preparations)
    reloader = Reloader(
        source, policy, environ, rollout, emit=log.emit, metrics=metrics, starts_app=command is not None
    )
    alert_inputs = GatewayAlertInputs(parts, reloader)
    alerts = AlertManager(
        policy.alerts,
        alert_inputs,
        clock=loop.time,
        emit=log.emit,
        metrics=metrics,
        app=environ.get("RENDER_SERVICE_NAME") or socket.gethostname(),
        version=__version__,
    )
    status_report = StatusReport(parts, reloader, alerts)
    task_report = TaskReport(parts)
    commands = GatewayCommands(parts, reloader)
    shared_state: SharedState | None = None
    if store.is_shared:
        shared_state = SharedState(parts, authenticator)
        commands = GatewayCommands(
            parts, reloader, on_block=shared_state.blocks.set, on_breaker=shared_state.breakers.set
        )
    endpoints = AdminEndpoints(
        health=parts.health,
        metrics=metrics,
        authenticator=authenticator,
        check_readiness=health_report.check_readiness,
        build_status=status_report.build_status,
        build_history=status_report.build_history,
        build_policies=status_report.build_policies,
        clock=loop.time,
        version=__version__,
        loopback=is_loopback(policy.listen.admin.host),
        build_tasks=task_report.build_status,
        list_tasks=task_report.list_tasks,
        show_task=task_report.show_task,
        commands=CommandEndpoint(commands, log.emit),
    )

    # The app asks for its environment at each start, after what waited for that start came into force.
    def prepare_app_start() -> tuple[Mapping[str, str], bool]:
        reloader.handle_app_start()
        return launch_environment.build(state.policy)

    app.attach_traffic(ingress.pool, lambda: state.policy.listen.drain, metrics.count_upstream_calls)
    app.set_environment_source(prepare_app_start)

    # Once a second, in this order: the alerts are evaluated on what was recorded before them.
    recycler = MemoryRecycler(
        app,
        lambda: state.policy.app,
        replace=app.start_replacement,
        emit=log.emit,
        clock=loop.time,
        stopping=lambda: state.stopping,
    )
    for listener in (
        health_report.record_sample,
        alert_inputs.sample_pool_holders,
        alerts.update_conditions,
        recycler.check_sample,
        status_report.sample_cpu,
    ):
        process_sampler.on_sample(listener)

    # At each scrape.
    metrics.fetch_app_exposition = AppMetricsScraper(app, lambda: state.policy.metrics.app, emit=log.emit).fetch_metrics
    metrics.on_scrape(health_report.fill_gauges)
    metrics.follow_total(metrics.rate_limit_evicted_total, lambda: ingress.limiter.evicted)
    metrics.follow_total(metrics.log_dropped_total, lambda: log.dropped)

    return Gateway(
        parts,
        sockets,
        admin_listener=AdminListener(endpoints, ids=IdGenerator(), emit=log.emit),
        alerts=alerts,
        reloader=reloader,
        rollout=rollout,
        authenticator=authenticator,
        notifier=notifier,
        shared_state=shared_state,
    )


def open_sockets(policy: schema.Policy, environ: Mapping[str, str], log: EventLog) -> ListenSockets:
    """The sockets that a service manager passes on, and the others bound. Raises BindError."""
    # Sockets that were passed on come first: their addresses must not be bound a second time.
    activated = receive_sockets(environ)
    try:
        assigned = assign_sockets(policy, activated)
        sockets = ListenSockets.bind_all(policy, assigned)
    except BindError:
        close_sockets(activated)
        raise
    for key, sock in assigned.items():
        address = Address(*sock.getsockname()[:2])
        log.emit("gateway.socket", f"{key} is {address}, handed over by the service manager.", key=key)
    pid = environ.get("LISTEN_PID")
    if pid is not None and not activated and environ.get("LISTEN_FDS"):
        text = f"LISTEN_PID names process {pid}, and not us: its sockets are not taken. Start outrigger by `exec`."
        log.emit("gateway.socket", text, level="warning")
    return sockets


def resolve_command(
    policy: schema.Policy, words: Sequence[str], sockets: ListenSockets, log: EventLog
) -> tuple[Command | None, int]:
    """The app's command and the port that the app gets; None and 0 if something else starts the app."""
    if not words:
        return None, 0
    port = find_free_port() if policy.app.port == "auto" else policy.app.port
    public_port = sockets.public.getsockname()[1] if sockets.public is not None else None
    command = parse_command(words, public_port, port)
    for change in command.replaced_words:
        log.emit("app.port", f"The app gets its own port: {change}.", port=port)
    return command, port


def build_app(
    policy: schema.Policy,
    command: Command | None,
    port: int,
    sockets: ListenSockets,
    metrics: Metrics,
    log: EventLog,
    requests: RequestRegistry,
) -> AppController:
    """The app that the command line names, or else the one that the policy says where to find."""
    clock = asyncio.get_running_loop().time
    if command is None:
        return ExternalApp(policy.app, emit=log.emit, clock=clock)
    return Supervisor(
        policy.app,
        command,
        {},  # made at each start
        port=port,
        emit=log.emit,
        emit_output=log.emit_unclipped,
        on_restart=lambda reason: metrics.app_restarts_total.labels(reason).inc(),
        find=requests.find,
        worker=sockets.public is None,
        orphans=OrphanReaper() if become_subreaper() else None,
        clock=clock,
    )


def register_health_checks(parts: Parts, report: HealthReport) -> None:
    parts.health.register("app", report.check_app)
    parts.health.register("memory", report.check_memory)
    parts.health.register("upstreams", parts.egress.health)
    parts.health.register("ledger", parts.ledger.health)
    parts.health.register("tasks", parts.tasks.health)
    parts.health.register("store", report.check_store)
    parts.health.register("connections", report.check_connections)
    if parts.postgres is not None:
        parts.health.register("postgres", parts.postgres.health)


def freeze_startup_objects() -> None:
    """Exempt what was made until now from garbage collection (gc.freeze): it lives as long as the process, and a
    request's own objects are freed by reference counting.

    It is not collected before: there are 1,700 objects of garbage among 59,000 (0.2 MiB, the dataclasses without their
    slots), and looking for them takes a twelfth of a start."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


def require_c_parser() -> None:
    """Raises OutriggerError if aiohttp fell back to its Python parser, which has had security holes of its own and
    must never face the network."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise OutriggerError(
            "aiohttp was installed without its C parser; install it from a wheel, or with a C compiler and"
            " without AIOHTTP_NO_EXTENSIONS"
        )
