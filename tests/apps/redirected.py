"""Calls by every client, while a request is under way and after it, to two servers: the first stands for the
gateway and redirects to the other. Prints who got which token.
"""

import asyncio
import http.server
import io
import json
import os
import sys
import threading
import urllib.request
from wsgiref.handlers import SimpleHandler

import aiohttp
import httpx
import httpx2
import requests

seen = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen.append((self.server is own, self.headers.get("X-Outrigger-Request")))
        away = self.path == "/away"
        self.send_response(302 if away else 200)
        if away:
            self.send_header("Location", f"http://127.0.0.1:{foreign.server_port}/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


own = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Server)
foreign = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
for server in (own, foreign):
    threading.Thread(target=server.serve_forever, daemon=True).start()


async def by_aiohttp(url):
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        await answer.read()


async def by_httpx(url):
    async with httpx.AsyncClient(follow_redirects=True) as client:
        await client.get(url)


def by_urllib(url):
    with urllib.request.urlopen(url) as answer:
        answer.read()


CLIENTS = [
    by_urllib,
    lambda url: asyncio.run(by_aiohttp(url)),
    lambda url: asyncio.run(by_httpx(url)),
    requests.get,
    lambda url: httpx.get(url, follow_redirects=True),
    lambda url: httpx2.get(url, follow_redirects=True),
]


def app(environ, start_response):
    for client in CLIENTS:
        client(f"http://127.0.0.1:{own.server_port}/")
        client(f"http://127.0.0.1:{own.server_port}/away")
        client(f"http://localhost:{foreign.server_port}/")
    start_response("200 OK", [])
    return []


environ = {"HTTP_X_OUTRIGGER_REQUEST": "a1", "SERVER_PROTOCOL": "HTTP/1.1"}
SimpleHandler(io.BytesIO(), io.BytesIO(), sys.stderr, environ).run(app)
app({}, lambda *_: None)
print(json.dumps([["own" if mine else "foreign", token] for mine, token in seen]))
