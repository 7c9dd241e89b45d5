"""An app that calls a model vendor and passes its request's token on: python calling_app.py PORT."""

import os
import sys

import aiohttp
from aiohttp import web

BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


async def ask(request: web.Request) -> web.Response:
    headers = {
        "X-Outrigger-Request": request.headers.get("X-Outrigger-Request", ""),
        "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}",
    }
    url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=BODY, headers=headers) as answer:
        return web.Response(body=await answer.read(), status=answer.status)


async def environ(_: web.Request) -> web.Response:
    return web.json_response(dict(os.environ))


async def live(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


app = web.Application()
app.router.add_get("/api/user/{user}/live", live)
app.router.add_get("/environ", environ)
app.router.add_get("/{path:.*}", ask)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
