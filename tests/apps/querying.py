"""Queries that take a while, by each driver: `uvicorn querying:app`."""

import os

import asyncpg
import psycopg
import sqlalchemy
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine

app = FastAPI()
URL = os.environ["DATABASE_URL"]
BARE = URL.partition("://")[2]
kept = {}


def once(name, make):
    return kept.get(name) or kept.setdefault(name, make())


@app.get("/asyncpg/{seconds}")
async def by_asyncpg(seconds: float):
    if "asyncpg" not in kept:
        kept["asyncpg"] = await asyncpg.create_pool(URL, min_size=1, max_size=1)
    return await kept["asyncpg"].fetchval("select pg_sleep($1)::text", seconds)


@app.get("/prepared/{seconds}")
async def by_prepared(seconds: float):
    if "prepared" not in kept:
        connection = await asyncpg.connect(URL)
        kept["prepared"] = await connection.prepare("select pg_sleep($1)::text")
    return await kept["prepared"].fetchval(seconds)


@app.get("/psycopg/{seconds}")
def by_psycopg(seconds: float):
    connection = once("psycopg", lambda: psycopg.connect(URL, autocommit=True))
    return connection.execute("select pg_sleep(%s)::text", (seconds,)).fetchone()[0]


@app.get("/async_psycopg/{seconds}")
async def by_async_psycopg(seconds: float):
    if "async" not in kept:
        kept["async"] = await psycopg.AsyncConnection.connect(URL, autocommit=True)
    return (await (await kept["async"].execute("select pg_sleep(%s)::text", (seconds,))).fetchone())[0]


@app.get("/psycopg2/{seconds}")
def by_psycopg2(seconds: float):
    engine = once("psycopg2", lambda: sqlalchemy.create_engine("postgresql+psycopg2://" + BARE, pool_size=1))
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text(f"select pg_sleep({seconds})::text")).scalar()


@app.get("/sqlalchemy_asyncpg/{seconds}")
async def by_sqlalchemy_asyncpg(seconds: float):
    engine = once("sa", lambda: create_async_engine("postgresql+asyncpg://" + BARE, pool_size=1))
    async with engine.connect() as connection:
        return (await connection.execute(sqlalchemy.text(f"select pg_sleep({seconds})::text"))).scalar()
