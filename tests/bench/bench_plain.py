"""The peer that users would write: an aiohttp server, an aiohttp client, headers copied, bodies streamed."""

import asyncio
import logging
import sys

import aiohttp
from aiohttp import web
from yarl import URL

HOP = {"connection", "keep-alive", "te", "trailers", "transfer-encoding", "upgrade", "host"}


async def main():
    upstream = f"http://127.0.0.1:{sys.argv[2]}"
    session = aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())

    async def handle(request):
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP]
        async with session.request(
            request.method,
            URL(upstream + request.raw_path, encoded=True),
            headers=headers,
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            out = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in HOP:
                    out.headers.add(name, value)
            await out.prepare(request)
            async for piece in answer.content.iter_any():
                await out.write(piece)
            await out.write_eof()
            return out

    app = web.Application(client_max_size=2**40)
    app.router.add_route("*", "/{path:.*}", handle)
    logging.basicConfig(level=logging.INFO)  # aiohttp's own access log: the other peers keep one as well
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1])).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
