"""A stand-in for OpenAI's API: chat completions, whole and streamed, and the list of models.

Run as `uvicorn openai_standin:app`. It knows one answer.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

app = FastAPI()
WORDS = "An outrigger is a float beside a boat that keeps it upright when the sea is rough.".split(" ")


@app.get("/v1/models")
async def models() -> dict[str, object]:
    return {"object": "list", "data": [{"id": "gpt-4o-mini", "object": "model", "created": 0, "owned_by": "demo"}]}


@app.post("/v1/chat/completions", response_model=None)
async def chat(request: Request) -> JSONResponse | StreamingResponse:
    asked = await request.json()
    said = sum(len(str(message.get("content", "")).split()) for message in asked.get("messages", []))
    head = {"id": "chatcmpl-demo", "created": int(time.time()), "model": asked.get("model", "gpt-4o-mini")}
    usage = {"prompt_tokens": said, "completion_tokens": len(WORDS), "total_tokens": said + len(WORDS)}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": " ".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def events() -> AsyncIterator[str]:
        for word in WORDS:
            yield event([{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}])
            await asyncio.sleep(0.05)
        yield event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if (asked.get("stream_options") or {}).get("include_usage"):
            yield event([], usage=usage)
        yield "data: [DONE]\n\n"

    def event(choices: list[dict[str, object]], **more: object) -> str:
        chunk = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(chunk)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
