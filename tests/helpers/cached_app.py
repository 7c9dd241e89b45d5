"""An app whose answers a cache may keep, behind the front door: asked over real sockets, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ingress_gateway import IngressGateway, Scripted


@dataclass
class Answer:
    """One answer as its client sees it; fields by their names in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes
    whole: bool = True
    raw: bytes = field(default=b"", repr=False)

    @property
    def cache(self) -> str:
        """Cache-Status behind the cache's name."""
        return self.fields.get("cache-status", "").removeprefix("outrigger; ")


def parse_answer(raw: bytes) -> Answer:
    head, _, rest = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name = name.strip().lower()
        fields[name] = f"{fields[name]}, {value.strip()}" if name in fields else value.strip()
    whole = True
    if fields.get("transfer-encoding") == "chunked":
        body, whole = b"", False
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            if not int(size or b"0", 16):
                whole = True
                break
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        rest = body
    elif "content-length" in fields:
        whole = len(rest) == int(fields["content-length"])
    return Answer(int(status.split()[1]) if status else 0, fields, rest, whole, raw)


class CachedApp(Scripted):
    """An app that answers by `answer(method, target, fields, number)`: raw bytes, or None to close the connection.

    `asked` has the method and target of each request; `hold`, if set, is waited for before each answer.
    """

    def __init__(self, answer: Callable[[str, str, dict[str, str], int], bytes | None]) -> None:
        super().__init__(self._talk)
        self._answer = answer
        self.asked: list[tuple[str, str]] = []
        self.fields: list[dict[str, str]] = []
        self.hold: asyncio.Event | None = None

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await self.head(reader)).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            fields = {}
            for line in head[1:]:
                name, _, value = line.partition(":")
                fields[name.strip().lower()] = value.strip()
            if "content-length" in fields:
                await reader.readexactly(int(fields["content-length"]))
            self.asked.append((method, target))
            self.fields.append(fields)
            number = len(self.asked)
            if self.hold is not None:
                await self.hold.wait()
            answer = self._answer(method, target, fields, number)
            if answer is None:
                return
            writer.write(answer)
            await writer.drain()


def says(*fields: str, status: str = "200 OK", body: bytes | str | None = None) -> Callable[..., bytes]:
    """An answer function: these fields, and a body that says which request it answers."""

    def answer(method: str, target: str, asked: dict[str, str], number: int) -> bytes:
        text = f"answer {number}".encode() if body is None else body if isinstance(body, bytes) else body.encode()
        lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(text)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else text)

    return answer


async def ask(g: IngressGateway, target: str = "/", *fields: str, method: str = "GET", body: bytes = b"") -> Answer:
    return parse_answer(await g.get(target, *fields, method=method, body=body))
