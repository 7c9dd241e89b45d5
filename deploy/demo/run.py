"""`make run`: a stand-in for OpenAI, a database, and Outrigger in front of the demo app (or of one's own).

Run by the demo's Python; the gateway runs by its own (`--gateway`), as it would beside any app.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from database import Database

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

HINTS = """
  the app          http://127.0.0.1:{port}/
  dashboard        http://127.0.0.1:9901/
  health           http://127.0.0.1:9901/healthz
  metrics          http://127.0.0.1:9901/metrics
  policy           config/policy.yaml (save it: it is in force within 2 s)

  try: curl -i -X POST http://127.0.0.1:{port}/api/user/ada/ask -H 'Content-Type: application/json' -d '{{}}'
       curl -N -X POST http://127.0.0.1:{port}/api/user/ada/story -H 'Content-Type: application/json' -d '{{}}'
       curl -i -X POST http://127.0.0.1:{port}/api/user/ada/report -H 'Prefer: respond-async'
       curl -X POST http://127.0.0.1:{port}/crash; curl http://127.0.0.1:{port}/api/notes
"""


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--gateway", required=True, help="the Python that has Outrigger's packages")
    options.add_argument("--app", default="", help="a start command in place of the demo app's")
    chosen = options.parse_args()
    port = os.environ.get("PORT", "10000")
    environ = {**os.environ, "PORT": port, "PYTHONPATH": str(ROOT)}

    standin_port = free_port()
    standin = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "openai_standin:app", "--port", str(standin_port), "--log-level", "warning"],
        cwd=HERE,
        process_group=0,
    )
    database = Database(ROOT / "var" / "demo")
    gateway = None
    try:
        try:
            database.start()
            environ.setdefault("DATABASE_URL", database.url)
        except (OSError, RuntimeError) as error:
            print(f"no database, so /api/notes answers 503: {error}", file=sys.stderr)
        environ.setdefault("OPENAI_BASE_URL", f"http://127.0.0.1:{standin_port}/v1")
        environ.setdefault("OPENAI_API_KEY", "sk-demo")
        wait_for(standin_port)
        demo = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(HERE), "--no-access-log"]
        command = [chosen.app] if chosen.app else [*demo, "--port", port]
        policy = os.environ.get("OUTRIGGER_POLICY", str(ROOT / "config" / "policy.yaml"))
        print(HINTS.format(port=port), flush=True)
        gateway = subprocess.Popen(
            [chosen.gateway, "-m", "proxy", "run", "--policy", policy, "--", *command], env=environ, process_group=0
        )
        pass_on_signals(gateway)
        return gateway.wait()
    finally:
        if gateway is not None and gateway.poll() is None:
            gateway.kill()
        standin.terminate()
        standin.wait()
        database.stop()


def pass_on_signals(gateway: subprocess.Popen[bytes]) -> None:
    """One Ctrl-C arrives twice under make, from the terminal and from make itself; a second one within a
    second would tell the gateway to end at once."""
    last = 0.0

    def pass_on(number: int, _: object) -> None:
        nonlocal last
        if time.monotonic() - last > 1.0:
            last = time.monotonic()
            gateway.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(port: int, patience: float = 20.0) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"nothing came up on port {port} within {patience:g} s")


if __name__ == "__main__":
    code = main()
    sys.exit(code if code >= 0 else 128 - code)
