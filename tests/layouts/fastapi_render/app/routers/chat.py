from typing import Annotated

from fastapi import APIRouter, Header

from ..service import answer

router = APIRouter(prefix="/chat")


@router.get("/ping/{name}")
async def ping(name: str, x_user_id: Annotated[str | None, Header()] = None):
    return {"name": name, "user": x_user_id}


@router.post("")
async def chat(question: dict):
    return {"answer": await answer(question)}
