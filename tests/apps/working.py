"""Statements by each driver for two requests and for none, without a gateway: `working.py DATABASE_URL`."""

import asyncio
import io
import sys
from wsgiref.handlers import SimpleHandler

import asyncpg
import psycopg
import psycopg2
import sqlalchemy

URL = sys.argv[1]
engine = sqlalchemy.create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(URL), pool_size=1)
plain = psycopg.connect(URL, autocommit=True)
loop = asyncio.new_event_loop()
quick = loop.run_until_complete(asyncpg.connect(URL))


def by_sqlalchemy():
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("select 1"))


def by_asyncpg():
    loop.run_until_complete(quick.fetchval("select 1"))


def by_psycopg():
    plain.execute("select 1")


def app(environ, start_response):
    for _ in range(2):
        environ["driver"]()
    start_response("200 OK", [])
    return []


for driver in (by_asyncpg, by_psycopg, by_sqlalchemy):
    for token in ("a1", "b2"):
        environ = {"HTTP_X_OUTRIGGER_REQUEST": token, "SERVER_PROTOCOL": "HTTP/1.1", "driver": driver}
        SimpleHandler(io.BytesIO(), io.BytesIO(), sys.stderr, environ).run(app)
    app({"driver": driver}, lambda *_: None)
loop.run_until_complete(quick.close())
plain.close()
engine.dispose()
