import os

from fastapi import FastAPI

service = FastAPI()
database = os.environ.get("DATABASE_URL")


@service.get("/up")
def up():
    return "up"
