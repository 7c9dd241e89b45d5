"""A stand-in for a model vendor, lean enough not to be what is measured: python bench_vendor.py PORT [MODE [PAUSE
[EVENTS]]].

Modes: ok; flaky (20 % of the attempts fail: 429, 500, 503, reset); dead (everything fails). Who asks for a stream gets
EVENTS of them (200), each a write and a chunk of its own, with PAUSE seconds after each. GET /count tells how many
attempts came.
"""

import asyncio
import random
import sys

BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-mini","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"An outrigger is a float beside a boat."},"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}'
)
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-mini","choices":[{"index":0,'
    b'"delta":{"content":"word "},"finish_reason":null}]}\n\n'
)
PIECE = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
USAGE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-mini","choices":[],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":200,"total_tokens":209}}\n\n'
)
STOP = EVENT.replace(b'"finish_reason":null', b'"finish_reason":"stop"')


class Vendor(asyncio.Protocol):
    count = 0
    mode = "ok"
    pause = 0.0
    events = 200

    def connection_made(self, transport):
        self.transport = transport
        self.buffer = b""
        self.task = None
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self):
        self.writable.clear()

    def resume_writing(self):
        self.writable.set()

    def connection_lost(self, error):
        if self.task is not None:
            self.task.cancel()  # else the streams of callers who left are written on, to nobody

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.answer(head, body)

    def answer(self, head, body):
        if head.startswith(b"get /count"):
            self.send(b"200 OK", str(Vendor.count).encode())
            return
        if head.startswith(b"post /mode/"):
            Vendor.mode = head[11:].split(b" ", 1)[0].decode()
            Vendor.count = 0
            self.send(b"200 OK", b"ok")
            return
        Vendor.count += 1
        if Vendor.mode == "dead" or (Vendor.mode == "flaky" and random.random() < 0.2):
            fault = random.choice(("429 x", "500 x", "503 x", "reset")) if Vendor.mode == "flaky" else "503 x"
            if fault == "reset":
                self.transport.abort()
            else:
                self.send(fault.encode(), b'{"error":{"message":"no","type":"server_error","code":null}}')
        elif b'"stream":true' in body or b'"stream": true' in body:
            self.task = asyncio.ensure_future(self.stream(b'"include_usage":true' in body.replace(b" ", b"")))
        else:
            self.send(b"200 OK", BODY)

    def send(self, status, body):
        self.transport.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body
        )

    async def stream(self, with_usage):
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(Vendor.events):
            self.transport.write(PIECE)
            if Vendor.pause:
                await asyncio.sleep(Vendor.pause)
            else:
                await self.writable.wait()
        last = STOP + (USAGE if with_usage else b"") + b"data: [DONE]\n\n"
        self.transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last))


async def main() -> None:
    Vendor.mode = sys.argv[2] if len(sys.argv) > 2 else "ok"
    Vendor.pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    Vendor.events = int(sys.argv[4]) if len(sys.argv) > 4 else 200
    server = await asyncio.get_running_loop().create_server(Vendor, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
