"""An app that takes a moment to end in order, and says so. LINGER: how many seconds. It writes to the file SAID.

STRAY: a child of it, in a session of its own, writes its pid there.
"""

import asyncio
import os
import signal
import subprocess
import sys


def say(*words):
    with open(os.environ["SAID"], "a") as file:
        print(*words, file=file)


async def main():
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in ("SIGTERM", "SIGINT", "SIGQUIT"):
        loop.add_signal_handler(getattr(signal, name), lambda name=name: (say("got", name), stop.set()))
    if "STRAY" in os.environ:
        ignores = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
        code = ignores if os.environ.get("STUBBORN") else "import time; time.sleep(1000)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        with open(os.environ["STRAY"], "a") as file:
            print(child.pid, file=file)
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]))
    await stop.wait()
    server.close()
    await asyncio.sleep(float(os.environ.get("LINGER", "0.1")))
    say("app", os.getpid(), "ended in order")


async def serve(reader, writer):
    try:
        await reader.readuntil(b"\r\n\r\n")
        body = str(os.getpid()).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


asyncio.run(main())
