"""An app that streams for ever, and stops as uvicorn does: only once the answers that it gives have ended.

/never gives no head, /close an answer that its connection's end delimits, /upgrade switches protocols.
"""

import asyncio
import os
import signal

open_ones, upgraded = set(), set()


async def serve(reader, writer):
    open_ones.add(writer)
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/upgrade" in head:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n")
            upgraded.add(writer)
            open_ones.discard(writer)
            await reader.read()
        elif b"/never" in head:
            await reader.read()
        elif b"/close" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not reader.at_eof():
            writer.write(b"2\r\nhi\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        open_ones.discard(writer)
        writer.close()


async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]))
    await stop.wait()
    server.close()
    for _ in range(500):
        if open_ones:
            await asyncio.sleep(0.01)
    print("it ends with", len(open_ones), "answers and", len(upgraded), "upgrades open", flush=True)
    for writer in list(upgraded):
        writer.write(b"bye")
        writer.close()
    await asyncio.sleep(0.05)
    print("stopped in order", flush=True)


asyncio.run(main())
