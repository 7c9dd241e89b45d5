from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse

app = FastAPI()


@app.get("/")
async def page() -> PlainTextResponse:
    return PlainTextResponse("hello from FastAPI")


@app.post("/json")
async def json(request: Request) -> dict[str, object]:
    return {"got": await request.json(), "scheme": request.url.scheme, "host": request.headers["host"]}


@app.get("/big")
async def big(size: int) -> StreamingResponse:
    async def pieces():
        for _ in range(size // 65536):
            yield b"x" * 65536

    return StreamingResponse(pieces())


@app.websocket("/ws")
async def echo(socket: WebSocket) -> None:
    await socket.accept(subprotocol="chat")
    await socket.send_text(f"you said {await socket.receive_text()}")
    await socket.close(4001, "done")
