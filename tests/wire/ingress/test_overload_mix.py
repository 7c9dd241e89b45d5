"""An adaptive limit before an app that turns to slow waits: slower is not overloaded, and nobody is refused."""

import asyncio

from ingress_gateway import OK, Scripted, ingress_gateway

CLIENTS = 60


def waiting() -> Scripted:
    """An app that takes `app.wait` seconds over each request, and any number of them at once."""

    async def script(reader, writer):
        while True:
            await app.head(reader)
            await asyncio.sleep(app.wait)
            writer.write(OK)

    app = Scripted(script)
    app.wait = 0.002
    return app


async def ask(f, times: int) -> list[bytes]:
    """The status lines of so many requests, one after the other on one connection."""
    reader, writer = await f.connect()
    found = []
    try:
        for _ in range(times):
            writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            found.append(head.split(b"\r\n")[0])
    finally:
        writer.close()
    return found


async def test_an_app_whose_waits_grow_long_is_given_room_and_nobody_is_shed():
    app = waiting()
    async with ingress_gateway(app, "overload: {mode: adaptive}") as f:
        await asyncio.gather(*(ask(f, 100) for _ in range(3)))
        app.wait = 0.25
        answers = await asyncio.gather(*(ask(f, 12) for _ in range(CLIENTS)))
        assert {line for each in answers for line in each} == {b"HTTP/1.1 200 OK"}
        assert f.service.admission.limit >= CLIENTS // 2
