"""What attribution costs inside the app: a request, a call, a thread, a start; with it and without, in turn.

Of five runs the least, since whatever disturbs one makes it longer.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from bench_tools import Bench, table

from proxy.app.attribution import FOLDER

ROUNDS, REQUESTS, CALLS = 5, 20_000, 1_000
SCOPE = {
    "type": "http",
    "headers": [(b"x-header-%d" % n, b"value") for n in range(15)] + [(b"x-outrigger-request", b"0" * 32)],
}


def inside(port: int) -> None:
    """The app: times itself, and prints seconds by what was done once."""
    import http.client

    import httpx
    from uvicorn import Config

    work = None

    async def app(scope, receive, send) -> None:
        if work is not None:
            await work()

    config = Config(app, proxy_headers=False)
    config.load()
    url = f"http://127.0.0.1:{port}/"
    spent = {}

    async def request() -> None:
        await config.loaded_app(SCOPE, None, None)

    async def requests() -> float:
        began = time.perf_counter()
        for _ in range(REQUESTS):
            await request()
        return (time.perf_counter() - began) / REQUESTS

    spent["a request"] = asyncio.run(requests())

    def timed(what, count: int) -> float:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            what()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    async def measure() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def plain() -> None:
            connection.request("GET", "/")
            connection.getresponse().read()

        def started() -> None:
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()

        with httpx.Client() as client:
            spent["a call by httpx"] = timed(lambda: client.get(url).read(), CALLS)
        spent["a call by http.client"] = timed(plain, CALLS)
        spent["a thread"] = timed(started, CALLS)
        with ThreadPoolExecutor(1) as executor:
            spent["work for an executor"] = timed(lambda: executor.submit(int).result(), CALLS)

    work = measure
    asyncio.run(request())
    with open("/proc/self/status") as status:
        spent["MiB"] = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    print(json.dumps(spent))


def started(environ: dict[str, str]) -> float:
    """Seconds of CPU time."""
    _, _, usage = os.wait4(subprocess.Popen([sys.executable, "-c", ""], env=environ).pid, 0)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    results: dict[bool, list[dict]] = {False: [], True: []}
    with Bench() as bench:
        command = [sys.executable, __file__, str(bench.app_port)]
        for _ in range(ROUNDS):
            for carried in (False, True):
                environ = {**os.environ, "OUTRIGGER_EGRESS": f"http://127.0.0.1:{bench.app_port}"}
                if carried:
                    environ["PYTHONPATH"] = f"{FOLDER}{os.pathsep}{environ['PYTHONPATH']}"
                took = min(started(environ) for _ in range(10))
                done = subprocess.run(command, env=environ, check=True, capture_output=True)
                results[carried].append({**json.loads(done.stdout), "a start of Python": took})
    rows = []
    for name in results[True][0]:
        without, carried = (min(run[name] for run in results[on]) for on in (False, True))
        factor, unit = (1, "MiB") if name == "MiB" else (1e6, "µs")
        name = "memory" if name == "MiB" else name
        rows.append([name, *(f"{value * factor:,.1f} {unit}" for value in (without, carried, carried - without))])
    table(["in the app", "without", "with", "more"], rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        inside(int(sys.argv[1]))
    else:
        main()
