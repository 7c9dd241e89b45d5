"""A small app on the standard library alone, as unlike a gateway as can be.

GET / says hello; /slow?SECONDS waits; /pid; /env?NAME; /big?BYTES; /grow?BYTES keeps them; POST / echoes; /die ends the process.
"""

import asyncio
import os
import signal
import sys
from urllib.parse import unquote

KEPT = []


async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *fields = head.split("\r\n")
            method, target, _ = first.split(" ")
            headers = dict(field.lower().split(": ", 1) for field in fields if field)
            path, _, query = target.partition("?")
            body = b""
            if path == os.environ.get("HANG"):
                await asyncio.sleep(3600)
            if path == "/swallow":
                left = int(headers["content-length"])
                while left:
                    left -= len(await reader.read(min(left, 1 << 20)))
            elif "content-length" in headers:
                body = await reader.readexactly(int(headers["content-length"]))
            if path == "/slow":
                await asyncio.sleep(float(query))
                answer = b"slow"
            elif path == "/pid":
                answer = str(os.getpid()).encode()
            elif path == "/env":
                answer = os.environ.get(query, "(unset)").encode()
            elif path == "/argv":
                answer = " ".join(sys.argv).encode()
            elif path == "/headers":
                answer = head.encode("latin-1")
            elif path == "/grow":
                KEPT.append(b"x" * int(query))
                answer = b"grown"
            elif path == "/die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif path == "/big":
                size = int(query)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                while size > 0:
                    piece = min(size, 65536)
                    writer.write(b"x" * piece)
                    size -= piece
                    await writer.drain()
                continue
            else:
                answer = body or b"hello " + unquote(path).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            await writer.drain()
            if headers.get("connection") == "close":
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    delay = float(os.environ.get("START_DELAY", "0"))
    if delay:
        await asyncio.sleep(delay)
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]), backlog=1024)
    print("plain app is up", flush=True)
    await stop.wait()
    server.close()
    print("plain app has closed", flush=True)


if __name__ == "__main__":
    if os.environ.get("FAIL"):
        sys.exit(int(os.environ["FAIL"]))
    asyncio.run(main())
