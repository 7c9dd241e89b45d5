"""The app behind every peer: as little work as can be, so that the proxy is what is measured.

GET / small JSON · GET /text/BYTES JSON of about that length · GET /big/BYTES · POST / swallows a body · an upgrade, then BYTES of the path, raw.
"""

import asyncio
import functools
import json
import random
import sys

import uvloop

SMALL = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 61\r\n\r\n"
    b'{"user":"ada","items":[1,2,3,4,5],"message":"hello, world!!"}'
)
PIECE = b"x" * 262144


WORDS = [
    "the",
    "user",
    "asked",
    "for",
    "a",
    "routine",
    "of",
    "three",
    "sets",
    "with",
    "dumbbells",
    "and",
    "a",
    "rest",
    "of",
    "ninety",
    "seconds",
    "between",
    "them",
]


@functools.cache
def text(size):
    """An answer of JSON as APIs make it: names that come again, words, numbers that do not."""
    draw = random.Random(size)
    rows = []
    while len(json.dumps(rows)) < size:
        note = " ".join(draw.choice(WORDS) for _ in range(20))
        rows.append({"id": draw.randrange(10**9), "email": f"u{draw.randrange(10**5)}@example.com", "note": note})
    body = json.dumps(rows).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class App(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.rest = b""
        self.body = 0
        self.left = 0
        self.writable = True

    def data_received(self, data):
        if self.body:
            self.body -= len(data)
            if self.body == 0:
                self.transport.write(SMALL)
            return
        self.rest += data
        while (end := self.rest.find(b"\r\n\r\n")) >= 0:
            head, self.rest = self.rest[:end], self.rest[end + 4 :]
            self.answer(head)

    def answer(self, head):
        first = head.split(b"\r\n", 1)[0].split(b" ")
        lower = head.lower()
        if b"\r\nupgrade: websocket" in lower:
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )
            self.stream(int(first[1].rsplit(b"/", 1)[1]))
        elif first[1].startswith(b"/big/"):
            size = int(first[1][5:])
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            self.stream(size)
        elif first[1].startswith(b"/text/"):
            self.transport.write(text(int(first[1][6:])))
        elif first[0] == b"POST":
            size = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
            self.body = size - len(self.rest)
            self.rest = b""
            if self.body == 0:
                self.transport.write(SMALL)
        else:
            self.transport.write(SMALL)

    def stream(self, size):
        self.left = size
        self.resume_writing()

    def pause_writing(self):
        self.writable = False

    def resume_writing(self):
        self.writable = True
        while self.left and self.writable:
            piece = PIECE[: min(len(PIECE), self.left)]
            self.left -= len(piece)
            self.transport.write(piece)


async def main():
    server = await asyncio.get_running_loop().create_server(App, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
