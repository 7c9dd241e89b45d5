"""FastAPI as people write it, calling a model in every way."""

import asyncio
import threading

import asking
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse

app = FastAPI()


def who(request: Request) -> str:
    return request.headers["x-user"]


@app.get("/async")
async def in_async(request: Request) -> None:
    await asking.by_async_httpx(f"{who(request)}~async")


@app.get("/sync")
def in_sync(request: Request) -> None:
    asking.by_httpx(f"{who(request)}~sync")


@app.get("/gather")
async def in_gather(request: Request) -> None:
    await asyncio.gather(*(asking.by_aiohttp(f"{who(request)}~gather{number}") for number in range(2)))


@app.get("/to_thread")
async def in_to_thread(request: Request) -> None:
    await asyncio.to_thread(asking.by_httpx, f"{who(request)}~to_thread")


@app.get("/executor")
async def in_executor(request: Request) -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, asking.by_requests, f"{who(request)}~executor1")
    await loop.run_in_executor(asking.executor, asking.by_httpx, f"{who(request)}~executor2")


@app.get("/thread")
def in_thread(request: Request) -> None:
    threading.Thread(target=asking.by_requests, args=(f"{who(request)}~thread",)).start()


@app.get("/background")
async def in_background(request: Request, tasks: BackgroundTasks) -> None:
    tasks.add_task(asking.by_async_httpx, f"{who(request)}~background1")
    tasks.add_task(asking.by_urllib, f"{who(request)}~background2")


@app.get("/stream")
async def in_stream(request: Request) -> StreamingResponse:
    return StreamingResponse(asking.stream(f"{who(request)}~stream"))


@app.get("/openai")
async def by_sdk(request: Request) -> None:
    from openai import AsyncOpenAI, OpenAI

    client = asking.kept("openai", lambda: AsyncOpenAI(api_key="none", max_retries=0))
    await client.chat.completions.create(**asking.body(f"{who(request)}~openai1"))
    client = asking.kept("openai, sync", lambda: OpenAI(api_key="none", max_retries=0))
    await asyncio.to_thread(client.chat.completions.create, **asking.body(f"{who(request)}~openai2"))


@app.get("/timer")
async def later(request: Request) -> None:
    asking.reported.release()
    await asyncio.to_thread(asking.by_timer, asking.by_urllib, f"{who(request)}~timer")
