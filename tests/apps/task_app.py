"""An app with work that takes its time, which knows nothing of tasks. Each request that it began, and each that it
finished, is a line of JSON in the file $WORKED.

    /work?ms=50             takes so long, then says what it got
    /status?code=503&good=2 answers so, but 200 from the second try on; `wait=3` adds Retry-After
    /cut                    breaks off after the head of its answer
    /cut?good=2             the same, but whole from the second try on
    /stream?n=3             an answer in pieces
    /large?n=1000           so many bytes
    /hold?file=NAME         answers when there is a file of that name
    /poison                 kills whoever started it, as an app does that takes all the memory there is
    /cors                   lets any page in, with Content-Type alone
    /call                   a call to $OPENAI_BASE_URL for the user who asked
    anything else           `pong`, with a few fields
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

LOCK = threading.Lock()
AT_ONCE = 0


def note(**what: object) -> None:
    if path := os.environ.get("WORKED"):
        with LOCK, open(path, "a") as out:
            out.write(json.dumps({"at": time.time(), "pid": os.getpid(), **what}) + "\n")


class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def serve(self) -> None:
        global AT_ONCE
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        task, attempt = self.headers.get("X-Outrigger-Task"), int(self.headers.get("X-Outrigger-Attempt") or 0)
        with LOCK:
            AT_ONCE += 1
            at_once = AT_ONCE
        note(what="began", path=self.path, task=task, attempt=attempt, user=self.headers.get("X-User"), at_once=at_once)
        self.is_at_work = True
        try:
            answer = getattr(self, f"answer_{parts.path.strip('/').replace('/', '_')}", self.answer_other)
            answer(attempt)
        finally:
            self.end_work()

    def end_work(self) -> None:
        """Before the answer is sent: whoever has it may send the next request before this thread runs again."""
        global AT_ONCE
        if not self.is_at_work:
            return
        self.is_at_work = False
        with LOCK:
            AT_ONCE -= 1
        task, attempt = self.headers.get("X-Outrigger-Task"), int(self.headers.get("X-Outrigger-Attempt") or 0)
        note(what="done", path=self.path, task=task, attempt=attempt, user=self.headers.get("X-User"))

    do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_HEAD = do_PATCH = serve

    def say(self, status: int, body: bytes, *fields: tuple[str, str]) -> None:
        self.end_work()
        self.send_response(status)
        for name, value in (*fields, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_work(self, attempt: int) -> None:
        time.sleep(float(self.query.get("ms", 0)) / 1000)
        got = {
            "method": self.command,
            "path": self.path,
            "body": self.body.decode(),
            "attempt": attempt,
            "fields": {name.lower(): value for name, value in self.headers.items()},
        }
        self.say(201, json.dumps(got).encode(), ("Content-Type", "application/json"), ("X-Made", "here"))

    def answer_status(self, attempt: int) -> None:
        if attempt >= int(self.query.get("good", 1000)):
            self.say(200, b"good", ("X-Attempt", str(attempt)))
            return
        wait = [("Retry-After", self.query["wait"])] if "wait" in self.query else []
        self.say(int(self.query["code"]), b"bad", *wait)

    def answer_cut(self, attempt: int) -> None:
        if attempt >= int(self.query.get("good", 1000)):
            self.say(200, b"whole")
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def answer_stream(self, attempt: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(int(self.query.get("n", 3))):
            data = f"data: {at}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
            time.sleep(0.02)
        self.wfile.write(b"0\r\n\r\n")

    def answer_hold(self, attempt: int) -> None:
        while not os.path.exists(self.query["file"]):
            time.sleep(0.02)
        self.say(200, b"held")

    def answer_poison(self, attempt: int) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    def answer_cors(self, attempt: int) -> None:
        allowed = [("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Headers", "Content-Type")]
        self.say(204, b"", *allowed)

    def answer_large(self, attempt: int) -> None:
        self.say(200, b"x" * int(self.query["n"]))

    def answer_call(self, attempt: int) -> None:
        asked = urllib.request.Request(
            os.environ["OPENAI_BASE_URL"] + "/chat/completions",
            data=self.body,
            headers={
                "Content-Type": "application/json",
                "Authorization": "Bearer sk-test",
                "X-Outrigger-Request": self.headers.get("X-Outrigger-Request") or "",
            },
        )
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                self.say(200, answer.read())
        except urllib.error.HTTPError as error:
            self.say(error.code, error.read())

    def answer_other(self, attempt: int) -> None:
        time.sleep(float(self.query.get("ms", 0)) / 1000)
        self.say(200, b"pong", ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Name", "K\u00f6ln"))


if __name__ == "__main__":
    sys.stdout.flush()
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App)
    server.daemon_threads = True
    server.serve_forever()
