"""Three handlers under frameworks and servers as people combine them, each pair on a port of its own.

Run with PAIR=PORT words, e.g. `uvicorn-h11+starlette=8001`; prints `ready` once all of them listen. A handler answers
with its own name, so that whoever asked knows who served a path, however it was spelled.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

HANDLERS = {"limited": "/limited", "item": "/item/{name}", "make": "/item/{name}/make"}


def starlette():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    def handler(said):
        async def answer(request):
            return PlainTextResponse(said)

        return answer

    return Starlette(routes=[Route(path, handler(said)) for said, path in HANDLERS.items()])


def fastapi():
    from fastapi import APIRouter, FastAPI
    from fastapi.responses import PlainTextResponse

    router = APIRouter()

    @router.get("/limited", response_class=PlainTextResponse)
    async def limited():
        return "limited"

    @router.get("/item/{name}", response_class=PlainTextResponse)
    async def item(name: str):
        return "item"

    @router.get("/item/{name}/make", response_class=PlainTextResponse)
    async def make(name: str):
        return "make"

    app = FastAPI(openapi_url=None)
    app.include_router(router)
    return app


def _flask_like(app):
    for said, path in HANDLERS.items():
        place = path.replace("{name}", "<name>")
        app.add_url_rule(place, said, lambda name="", said=said: said)
    return app


def flask():
    from flask import Flask

    return _flask_like(Flask("spelled"))


def quart():
    from quart import Quart

    app = Quart("spelled")
    for said, path in HANDLERS.items():

        async def answer(name="", said=said):
            return said

        app.add_url_rule(path.replace("{name}", "<name>"), said, answer)
    return app


def _django():
    import django
    from django.conf import settings
    from django.http import HttpResponse
    from django.urls import path, re_path

    def view(said):
        return lambda request, name="": HttpResponse(said, content_type="text/plain")

    global urlpatterns
    urlpatterns = [
        re_path(r"^limited$", view("limited")),  # as many an older project has it
        path("item/<name>", view("item")),
        path("item/<name>/make", view("make")),
    ]
    if not settings.configured:
        settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="s", MIDDLEWARE=[])
        django.setup()


def django_wsgi():
    _django()
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()


def django_asgi():
    _django()
    from django.core.asgi import get_asgi_application

    return get_asgi_application()


def bottle():
    from bottle import Bottle

    app = Bottle()
    for said, path in HANDLERS.items():
        app.route(path.replace("{name}", "<name>"), callback=lambda name="", said=said: said)
    return app


def _falcon(app, resource):
    for said, path in HANDLERS.items():
        app.add_route(path, resource(said))
    return app


def falcon_wsgi():
    import falcon

    class Resource:
        def __init__(self, said):
            self.said = said

        def on_get(self, request, response, name=""):
            response.text = self.said

    return _falcon(falcon.App(), Resource)


def falcon_asgi():
    import falcon.asgi

    class Resource:
        def __init__(self, said):
            self.said = said

        async def on_get(self, request, response, name=""):
            response.text = self.said

    return _falcon(falcon.asgi.App(), Resource)


APPS: dict[str, Callable] = {
    "starlette": starlette,
    "fastapi": fastapi,
    "flask": flask,
    "quart": quart,
    "django-wsgi": django_wsgi,
    "django-asgi": django_asgi,
    "bottle": bottle,
    "falcon-wsgi": falcon_wsgi,
    "falcon-asgi": falcon_asgi,
}


def serve_uvicorn(app, port, parser):
    import uvicorn

    config = uvicorn.Config(app, port=port, http=parser, log_level="critical", lifespan="off", loop="asyncio")
    server = uvicorn.Server(config)
    server.capture_signals = _no_signals  # in a thread
    server.run()


def _no_signals():
    import contextlib

    return contextlib.nullcontext()


def serve_hypercorn(app, port):
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]

    async def forever():
        await serve(app, config, shutdown_trigger=asyncio.Event().wait)

    asyncio.run(forever())


def serve_waitress(app, port):
    import waitress

    waitress.serve(app, host="127.0.0.1", port=port, threads=2, _quiet=True)


def serve_cheroot(app, port):
    from cheroot.wsgi import Server

    Server(("127.0.0.1", port), app).start()


def serve_aiohttp(port):
    from aiohttp import web

    app = web.Application()
    for said, path in HANDLERS.items():

        async def answer(request, said=said):
            return web.Response(text=said)

        app.router.add_get(path, answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None, handle_signals=False)


def serve_tornado(port):
    from tornado.web import Application, RequestHandler

    def handler(said):
        class Handler(RequestHandler):
            def get(self, name=""):
                self.write(said)

        return Handler

    async def forever():
        rules = [(path.replace("{name}", "([^/]+)"), handler(said)) for said, path in HANDLERS.items()]
        Application(rules).listen(port, "127.0.0.1")
        await asyncio.Event().wait()

    asyncio.run(forever())


def serve(server: str, app, port: int) -> None:
    match server:
        case "uvicorn-h11":
            serve_uvicorn(app, port, "h11")
        case "uvicorn-httptools":
            serve_uvicorn(app, port, "httptools")
        case "hypercorn":
            serve_hypercorn(app, port)
        case "waitress":
            serve_waitress(app, port)
        case "cheroot":
            serve_cheroot(app, port)
        case "aiohttp":
            serve_aiohttp(port)
        case "tornado":
            serve_tornado(port)


def wait_for(port: int) -> None:
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    os._exit(1)


def main() -> None:
    ports = {pair: int(port) for pair, _, port in (word.partition("=") for word in sys.argv[1:])}
    for pair, port in ports.items():  # one at a time: they import much, and of each other's
        server, _, framework = pair.partition("+")
        app = APPS[framework]() if framework else None
        threading.Thread(target=serve, args=(server, app, port), daemon=True).start()
        wait_for(port)
    print("ready", flush=True)
    sys.stdin.read()  # until whoever started us goes
    os._exit(0)


if __name__ == "__main__":
    main()
