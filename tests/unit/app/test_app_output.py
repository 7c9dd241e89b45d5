"""The app's lines as log lines: levels, tracebacks as one, the request they belong to."""

from __future__ import annotations

import asyncio

import pytest

from proxy.app.log_capture import MAX_BLOCK_LENGTH, MAX_LINE_BYTES, LineCapture, detect_level
from proxy.observe.request_registry import Attribution

PYTHON = """\
Traceback (most recent call last):
  File "app.py", line 3, in f
    return d["x"]
           ~^^^^^
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "app.py", line 9, in <module>
    f()
app.errors.Broken: it broke
  with a second line"""
GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "a.py", line 1, in <module>
  | ExceptionGroup: two (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | ValueError: 1
    +---------------- 2 ----------------
    | ValueError: 2
    +------------------------------------"""
NODE = """\
TypeError: Cannot read properties of undefined (reading 'x')
    at Object.<anonymous> (/app/index.js:1:3)
    at node:internal/main/run_main_module:23:47"""
UVICORN = f"ERROR:    Exception in ASGI application\n{PYTHON}"


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, str | None]] = []
        self.lines = LineCapture(self.emit, "stderr", self.find)

    def emit(self, event: str, message: str, *, level: str = "info", **facts: object) -> None:
        assert (event, facts["stream"]) == ("app", "stderr")
        self.events.append((level, message, facts.get("request_id")))  # type: ignore[arg-type]

    def find(self, token: str) -> Attribution | None:
        return Attribution(token, "u", "", f"id-{token}", None, "r", None)

    def messages(self) -> list[str]:
        return [message for _, message, _ in self.events]


@pytest.mark.parametrize("text", [PYTHON, GROUP, NODE, UVICORN], ids=["python", "group", "node", "uvicorn"])
@pytest.mark.parametrize("step", [7, 100_000])
async def test_a_traceback_is_one_event_however_it_comes(text: str, step: int) -> None:
    heard = Heard()
    data = f"INFO: before\n{text}\nINFO: after\n".encode()
    for at in range(0, len(data), step):
        heard.lines.data_received(data[at : at + step])
    assert heard.messages() == ["INFO: before", text, "INFO: after"]
    assert [level for level, _, _ in heard.events] == ["info", "error", "info"]


async def test_a_traceback_with_nothing_behind_it_is_told_soon() -> None:
    heard = Heard()
    heard.lines.data_received(PYTHON.encode() + b"\n")
    assert heard.events == []
    async with asyncio.timeout(5):
        while not heard.events:
            await asyncio.sleep(0.01)
    assert heard.messages() == [PYTHON]


async def test_what_a_dying_app_said_last_is_told() -> None:
    heard = Heard()
    heard.lines.data_received(PYTHON.encode())
    heard.lines.connection_lost(None)
    assert heard.messages() == [PYTHON]


async def test_tracebacks_of_two_requests_are_two_and_each_knows_its_request() -> None:
    heard = Heard()
    lines = ["Traceback (most recent call last):", "  File x", "ValueError: y"]
    for token in ("aa", "bb"):
        heard.lines.data_received("".join(f"\x1e{token}\x1f{line}\n" for line in lines).encode())
    heard.lines.connection_lost(None)
    assert heard.events == [("error", "\n".join(lines), "id-aa"), ("error", "\n".join(lines), "id-bb")]


async def test_an_endless_traceback_is_bounded() -> None:
    heard = Heard()
    heard.lines.data_received(b"Traceback (most recent call last):\n" + b"  File x\n" * 20_000)
    heard.lines.connection_lost(None)
    assert max(map(len, heard.messages())) < 2 * MAX_BLOCK_LENGTH
    assert sum(message.count("File x") for message in heard.messages()) == 20_000


async def test_colours_neither_hide_a_level_nor_are_told() -> None:
    heard = Heard()
    heard.lines.data_received(
        b"\x1b[31m[Nest] 7  - \x1b[39m02:00:00 \x1b[31m  ERROR\x1b[39m \x1b[38;5;3m[X] \x1b[39mz\n"
        b"\x1b[31mERROR\x1b[0m:    x\n\x1b[32mINFO\x1b[0m:     y\n"
        b"\x1b[1mTraceback (most recent call last):\x1b[0m\n  File x\n\x1b[1;35mValueError\x1b[0m: w\n"
    )
    heard.lines.connection_lost(None)
    assert [(level, text) for level, text, _ in heard.events] == [
        ("error", "[Nest] 7  - 02:00:00   ERROR [X] z"),
        ("error", "ERROR:    x"),
        ("info", "INFO:     y"),
        ("error", "Traceback (most recent call last):\n  File x\nValueError: w"),
    ]


@pytest.mark.parametrize("step", [1000, 10**6])
async def test_a_line_too_long_becomes_several_cut_between_characters(step: int) -> None:
    heard = Heard()
    line = "a" + "é" * MAX_LINE_BYTES
    data = f"{line}\nshort\n".encode()
    for at in range(0, len(data), step):
        heard.lines.data_received(data[at : at + step])
    *pieces, last = heard.messages()
    assert ("".join(pieces), last) == (line, "short")
    assert max(len(piece.encode()) for piece in pieces) <= MAX_LINE_BYTES


async def test_bytes_that_are_no_utf8_are_shown_as_such_and_hurt_no_other_line() -> None:
    heard = Heard()
    heard.lines.data_received(b"\xff\xfe x \xe2\x82\n" + b"\x80" * (MAX_LINE_BYTES + 9) + b"\nWARNING: y\n")
    assert heard.messages()[0] == "\ufffd\ufffd x \ufffd"
    assert sum(map(len, heard.messages()[1:-1])) == MAX_LINE_BYTES + 9
    assert heard.events[-1][:2] == ("warning", "WARNING: y")


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("hello", "info"),
        ("DEBUG:root:x", "debug"),
        ("WARNING: x", "warning"),
        ("2026-11-27 02:00:00,123 ERROR x", "error"),
        ("[2026-11-27 02:00:00 +0000] [7] [CRITICAL] WORKER TIMEOUT", "error"),
        ("[warn] x", "warning"),
        ("error: x", "error"),
        ("2026-11-27T02:00:00.000Z error: x", "error"),
        ("panic: runtime error: x", "error"),
        ("it met an error: x", "info"),
        ('[27/Nov/2026 02:00:00] "GET / HTTP/1.1" 500 5', "info"),
        ("2026-11-27 02:00:00.000 | ERROR    | app:f:1 - x", "error"),
        ("ValueError: x", "error"),
        ("sqlalchemy.exc.OperationalError: x", "error"),
        ('INFO:     127.0.0.1:1 - "GET /ERROR HTTP/1.1" 200 OK', "info"),
        ('127.0.0.1 - "GET /errors HTTP/1.1" 200', "info"),
        ("errors are none", "info"),
        ("time=2026-11-27T02:00:00Z level=warn msg=x", "warning"),
        ('{"level":"error","msg":"x"}', "error"),
        ('{"time":1,"severity":"WARNING"}', "warning"),
        ('{"levelname": "CRITICAL"}', "error"),
        ('{"level":50,"msg":"x"}', "error"),
        ('{"level":30,"msg":"ERROR"}', "info"),
        ('{"level":true}', "info"),
        ('{"msg":"x"}', "info"),
        ("{not json", "info"),
        ("{" * 50_000, "info"),
    ],
)
def test_a_line_has_the_level_that_it_says(line: str, level: str) -> None:
    assert detect_level(line) == level
