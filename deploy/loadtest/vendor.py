"""The demo's stand-in for OpenAI as vendors really are: slow, and now and then unwell. And a Slack that remembers.

One call in ten meets a fault that passes: 503, 429 with Retry-After, 500, or a connection that is cut. `POST /down` and
`/up` take it away whole and bring it back. Usage is that of a question with some context, so that money is realistic.
"""

import asyncio
import json
import random
import time

import openai_standin
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()
state: dict[str, float | list] = {"down": 0.0, "messages": []}
dice = random.Random(7)
USAGE = {"prompt_tokens": 900, "completion_tokens": 250, "total_tokens": 1150}


class Cut(Exception):
    """The connection ends without an answer."""


@app.middleware("http")
async def unwell(request: Request, go_on):
    if not request.url.path.startswith("/v1/"):
        return await go_on(request)
    if state["down"]:
        return JSONResponse({"error": {"message": "down", "type": "server_error", "code": None}}, 503)
    luck = dice.random()
    if luck < 0.04:
        return JSONResponse({"error": {"message": "overloaded", "type": "server_error", "code": None}}, 503)
    if luck < 0.06:
        error = {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}
        return JSONResponse({"error": error}, 429, {"Retry-After": "1"})
    if luck < 0.08:
        return JSONResponse({"error": {"message": "oops", "type": "server_error", "code": None}}, 500)
    if luck < 0.10:
        raise Cut
    await asyncio.sleep(min(4.0, dice.lognormvariate(-0.2, 0.5)))  # the median 0.8 s, one in twenty over 1.9 s
    return await go_on(request)


@app.post("/v1/chat/completions", response_model=None)
async def chat(request: Request):
    answer = await openai_standin.chat(request)
    if isinstance(answer, JSONResponse):
        return JSONResponse({**json.loads(answer.body), "usage": USAGE})
    return answer


@app.post("/down")
async def down() -> dict[str, bool]:
    state["down"], state["messages"] = time.time(), []
    return {"down": True}


@app.post("/up")
async def up() -> dict[str, bool]:
    state["down"] = 0.0
    return {"down": False}


@app.post("/slack")
async def slack(request: Request) -> str:
    state["messages"].append([time.time(), (await request.json())["text"]])
    return "ok"


@app.get("/heard")
async def heard() -> dict[str, object]:
    return dict(state)
