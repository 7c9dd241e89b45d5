"""aiohttp as a server: `asking_aiohttp.py PORT`."""

import asyncio
import sys

import asking
from aiohttp import web


async def ask(request):
    way = request.match_info["way"]
    model = f"{request.headers['X-User']}~{way}"
    await (asking.by_aiohttp(model) if way == "aiohttp" else asyncio.to_thread(asking.go, way, model))
    return web.Response()


app = web.Application()
app.router.add_get("/{way}", ask)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
