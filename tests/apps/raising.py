"""An app that answers `ok`, and at /boom raises: as ASGI (`asgi`), as WSGI (`wsgi`), and with aiohttp's own server.

`python raising.py hypercorn|waitress|cheroot|aiohttp PORT` serves it; uvicorn and gunicorn are started by their commands.
"""

import sys


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/boom":
        raise RuntimeError("boom")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def wsgi(environ, start_response):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if environ["PATH_INFO"] == "/boom":
        raise RuntimeError("boom")
    start_response("200 OK", [("Content-Length", "2"), ("Content-Type", "text/plain")])
    return [b"ok"]


def serve_aiohttp(port):
    from aiohttp import web

    async def answer(request):
        await request.read()
        if request.path == "/boom":
            raise RuntimeError("boom")
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


def serve_hypercorn(port):
    import asyncio

    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.loglevel = "CRITICAL"
    asyncio.run(serve(asgi, config))


def serve_waitress(port):
    import waitress

    waitress.serve(wsgi, host="127.0.0.1", port=port, threads=8, _quiet=True)


def serve_cheroot(port):
    from cheroot.wsgi import Server

    Server(("127.0.0.1", port), wsgi).start()


if __name__ == "__main__":
    globals()[f"serve_{sys.argv[1]}"](int(sys.argv[2]))
