"""A small app such as many have: a page, two calls to OpenAI, a report that takes a minute, a WebSocket, a database.
It knows nothing of any gateway: it reads PORT, OPENAI_BASE_URL, OPENAI_API_KEY and DATABASE_URL as any app does."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel

PAGE = Path(__file__).with_name("page.html")
MODEL = "gpt-4o-mini"


class Question(BaseModel):
    question: str = "What is an outrigger?"


class Note(BaseModel):
    text: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.openai = AsyncOpenAI()
    app.state.pool = None
    if url := os.environ.get("DATABASE_URL"):
        app.state.pool = await asyncpg.create_pool(url, min_size=1, max_size=4)
        await app.state.pool.execute("create table if not exists notes (id serial primary key, text text not null)")
    yield
    if app.state.pool is not None:
        await app.state.pool.close()


app = FastAPI(title="A small app", lifespan=lifespan)


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(PAGE, media_type="text/html")


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "fine"}


@app.post("/api/user/{user}/ask")
async def ask(user: str, question: Question) -> dict[str, str]:
    answer = await app.state.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": question.question}]
    )
    return {"user": user, "answer": answer.choices[0].message.content or ""}


@app.post("/api/user/{user}/story")
async def story(user: str, question: Question) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        stream = await app.state.openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question.question}], stream=True
        )
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield f"data: {text}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/api/user/{user}/report")
async def report(user: str, seconds: float = 60.0) -> dict[str, object]:
    """What takes longer than browsers and platforms wait for an answer: a minute, or `seconds`."""
    began = time.monotonic()
    await asyncio.sleep(min(max(seconds, 0.0), 300.0))
    answer = await app.state.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is there to report?"}]
    )
    return {
        "user": user,
        "report": answer.choices[0].message.content or "",
        "took_s": round(time.monotonic() - began, 1),
    }


@app.get("/api/notes")
async def notes() -> list[dict[str, object]]:
    rows = await database().fetch("select id, text from notes order by id desc limit 20")
    return [dict(row) for row in rows]


@app.post("/api/notes", status_code=201)
async def add_note(note: Note) -> dict[str, object]:
    return dict(await database().fetchrow("insert into notes (text) values ($1) returning id, text", note.text))


def database() -> asyncpg.Pool:
    if app.state.pool is None:
        raise HTTPException(503, "There is no database: DATABASE_URL is not set.")
    return app.state.pool


@app.get("/slow")
async def slow(seconds: float = 2.0) -> dict[str, float]:
    await asyncio.sleep(min(seconds, 60.0))
    return {"slept": seconds}


@app.post("/crash")
async def crash() -> None:
    os._exit(1)


@app.websocket("/ws")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass
