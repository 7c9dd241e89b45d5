"""A small FastAPI app as users write them: pages, JSON, uploads, events, WebSockets, a model."""

import asyncio
import hashlib

from fastapi import Body, FastAPI, UploadFile, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.staticfiles import StaticFiles
from openai import AsyncOpenAI

app = FastAPI()
vendor = AsyncOpenAI()


@app.get("/api/items")
async def items(first: int = 0):
    return [{"id": first + number, "name": f"item {first + number}"} for number in range(50)]


@app.post("/api/echo")
async def echo(body: dict = Body()):
    return body


@app.post("/api/upload")
async def upload(file: UploadFile):
    data = await file.read()
    return {"name": file.filename, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@app.get("/api/events")
async def events():
    async def lines():
        for number in range(5):
            yield f"id: {number}\ndata: event {number}\n\n"
            await asyncio.sleep(0.2)

    return StreamingResponse(lines(), media_type="text/event-stream")


@app.get("/api/wait")
async def wait(seconds: float):
    await asyncio.sleep(seconds)
    return {"waited": seconds}


@app.get("/api/boom")
async def boom():
    raise RuntimeError("as it happens")


@app.websocket("/ws")
async def socket(ws: WebSocket):
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text.upper())


@app.post("/api/ask")
async def ask(body: dict = Body()):
    said = await vendor.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": body["text"]}]
    )
    return {"answer": said.choices[0].message.content}


@app.post("/api/tell")
async def tell(body: dict = Body()):
    async def words():
        stream = await vendor.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": body["text"]}], stream=True
        )
        async for part in stream:
            if part.choices and part.choices[0].delta.content:
                yield part.choices[0].delta.content

    return StreamingResponse(words(), media_type="text/plain")


app.mount("/", StaticFiles(directory="static", html=True))
