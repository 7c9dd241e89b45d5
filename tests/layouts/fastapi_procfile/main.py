import os

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

app = FastAPI()
INSIDE = {"127.0.0.1"}


def model():
    from openai import OpenAI

    return OpenAI()


@app.get("/health")
def health():
    return {"ok": True, "database": "DATABASE_URL" in os.environ}


@app.post("/api/user/{user_id}/ask")
def ask(user_id: str, question: dict):
    answer = model().chat.completions.create(model="gpt-4o-mini", messages=[question])
    return {"answer": answer.choices[0].message.content}


@app.post("/api/user/{user_id}/story")
def story(user_id: str, question: dict):
    return StreamingResponse(told(question))


def told(question):
    for chunk in model().chat.completions.create(model="gpt-4o-mini", messages=[question], stream=True):
        yield chunk.choices[0].delta.content or ""


@app.get("/api/user/{user_id}/notes/{note}")
def note(user_id: str, note: int):
    return {"note": note}


@app.get("/debug")
def debug(request: Request):
    return {"inside": request.client.host in INSIDE}
