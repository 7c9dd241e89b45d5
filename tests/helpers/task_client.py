"""A client of tasks: puts requests into the queue of a gateway, and asks what became of them."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_process import APPS, GatewayProcess

TASK_APP = (sys.executable, str(APPS / "task_app.py"))
ASYNC = "Prefer: respond-async"


@dataclass
class Answer:
    status: int
    fields: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key.lower() == name.lower()), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The name of a refusal."""
        assert self["Content-Type"] == "application/problem+json", self
        return str(self.json["type"]).removeprefix("urn:outrigger:")


async def ask(
    g: GatewayProcess, target: str, *headers: str, method: str = "GET", body: bytes = b"", timeout: float = 60.0
) -> Answer:
    """One request, and its answer taken apart."""
    async with asyncio.timeout(timeout):
        raw = await g.request(target, method=method, headers=headers, body=body)
    return parse_answer(raw)


def parse_answer(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
    answer = Answer(int(lines[0].split()[1]), fields, body)
    if answer["Transfer-Encoding"] == "chunked":
        answer.body = _join_chunks(body)
    return answer


def _join_chunks(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        if not int(size, 16):
            break
        found, body = found + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return found


async def submit(g: GatewayProcess, target: str, *headers: str, body: bytes = b"", method: str = "POST") -> str:
    """A task that was accepted: its id."""
    answer = await ask(g, target, ASYNC, *headers, method=method, body=body)
    assert answer.status == 202, answer
    return str(answer.json["id"])


async def find(g: GatewayProcess, id: str) -> Any:
    return (await ask(g, f"/_outrigger/tasks/{id}")).json


async def until(g: GatewayProcess, id: str, *states: str, timeout: float = 60.0) -> Any:
    """The task once it is in one of these states; by default, once it has ended."""
    wanted = states or ("succeeded", "failed", "cancelled")
    deadline = time.monotonic() + timeout
    while True:
        task = await find(g, id)
        if task["status"] in wanted:
            return task
        assert time.monotonic() < deadline, f"{id} is still {task}"
        await asyncio.sleep(0.05)


async def result(g: GatewayProcess, id: str) -> Answer:
    return await ask(g, f"/_outrigger/tasks/{id}/result")


def worked(file: Path, what: str = "began") -> Sequence[Any]:
    """What the app did, as it says itself."""
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if line["what"] == what]
