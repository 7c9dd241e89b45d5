"""The environment that the app is started with: its variables lead the app's calls and queries through the gateway.

It is built anew at each start of the app, from the policy that is in force then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy.app import attribution
from proxy.app.command import Command
from proxy.app.environment import build_environment
from proxy.egress.service import Egress
from proxy.observe.log import EventLog
from proxy.policy.schema import Policy
from proxy.policy.values import Address
from proxy.process.listen_sockets import ListenSockets

if TYPE_CHECKING:
    from proxy.postgres.service import PostgresService


class LaunchEnvironment:
    """Builds the app's environment. `command` is None for an app that something else starts; `app_port` is the port
    that the app is given."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        command: Command | None,
        app_port: int,
        sockets: ListenSockets,
        egress: Egress,
        database: PostgresService | None,
        log: EventLog,
    ) -> None:
        self._environ = environ
        self._command = command
        self._app_port = app_port
        self._sockets = sockets
        self._egress = egress
        self._database = database
        self._emit = log.emit
        self._logged: set[str] = set()

    def build(self, policy: Policy) -> tuple[Mapping[str, str], bool]:
        """The app's environment, and whether the lines that it prints are wrapped. Each change is logged once, not at
        every start. If something else starts the app, only the variables that it has to be started with."""
        extra = self._egress.app_environment(policy, self._sockets.egress_address, self._environ)
        pool = ""
        if self._database is not None and self._sockets.postgres is not None:
            # Not at the top: it brings asyncpg, which a gateway without a database does not load.
            from proxy.postgres.dsn import reachable_host

            host, port = self._sockets.postgres.getsockname()[:2]
            extra |= self._database.app_variables(host, port, policy.postgres)
            pool = str(Address(reachable_host(host), port))
        extra |= self._attribution_variables(policy, pool)
        if self._command is None:
            return extra, False
        public = self._sockets.public.getsockname()[1] if self._sockets.public is not None else None
        env, notes = build_environment(
            self._environ, programs=self._command.programs, public=public, private=self._app_port, extra=extra
        )
        for note in notes:
            self._log_once("app.port", f"{note}.", port=self._app_port)
        return env, policy.log.app_output == "wrap"

    def _attribution_variables(self, policy: Policy, pool: str) -> dict[str, str]:
        """The variables that load attribution into an app in Python, so that its calls name the request that they
        belong to; none if no key of the policy needs it. `pool` is HOST:PORT of the database pool, as the app sees it:
        then queries name their request as well."""
        report = self._egress.attribution.report
        if not attribution.is_enabled(policy):
            why = "app.attribution is off"
            if policy.app.attribution == "auto":
                why = "app.attribution is auto, and no key of the policy depends on whose a call is"
            report.set_state("off", f"{why}: nothing is loaded into the app.")
            return {}
        if self._command is not None and not attribution.is_python(self._command.main_program):
            program = self._command.main_program
            text = f"{program} is no Python: its calls have an owner where it passes on X-Outrigger-Request."
            report.set_state("elsewhere", text)
            # Loading it would only be noise in the environment of another runtime.
            self._log_once("app.attribution", text)
            return {}
        # The app's own PYTHONPATH is kept behind ours; an app that something else starts has one that we cannot see.
        before = self._environ.get("PYTHONPATH") if self._command is not None else None
        env = {"PYTHONPATH": attribution.search_path(before)}
        # Calls that bypass the gateway, and queries, are told by datagram: without a socket the app need not send any.
        if self._egress.attribution.bind(*self._sockets.egress.getsockname()[:2]):
            env["OUTRIGGER_METERED"] = ",".join(self._egress.bypass_detector.addresses())
            if pool:
                env["OUTRIGGER_POSTGRES"] = pool
        # We cannot set its environment, but whoever can reads the log of the start.
        if self._command is None:
            everything = {"OUTRIGGER_EGRESS": f"http://{self._sockets.egress_address}", **env}
            shown = " ".join(f"{name}={value}" for name, value in everything.items())
            text = f"The calls of the app have an owner where it is in Python and started with {shown}"
            report.set_state("on", text)
            self._log_once("app.attribution", text)
        else:
            folder = attribution.FOLDER
            report.set_state("on", f"{folder} stands first on the app's PYTHONPATH: each Python of the app loads it.")
        return env

    def _log_once(self, event: str, text: str, **facts: int) -> None:
        if text not in self._logged:
            self._logged.add(text)
            self._emit(event, text, level="info", **facts)
