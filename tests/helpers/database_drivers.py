"""What apps do to their database, by each driver and framework on its defaults.

Each takes a URL and its own number, works on tables of its own in a database that others use at the same time,
and returns what it saw: the same over any way to the same database.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import json
import urllib.parse
from decimal import Decimal

import asyncpg
import pg8000.dbapi
import pg8000.native
import psycopg
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

Seen = list[object]
DAY = datetime.datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=datetime.UTC)


def asyncpg_connection(url: str, n: int) -> Seen:
    async def work() -> Seen:
        seen: Seen = []
        c = await asyncpg.connect(url)
        t = f"asyncpg_{n}"
        await c.execute(f"create type {t}_mood as enum ('sad', 'glad'); create type {t}_pair as (a int, b text)")
        await c.execute(f"create table {t} (id serial primary key, body text, tags text[], extra jsonb, m {t}_mood)")
        for k in range(3):
            seen.append(
                await c.fetchrow(
                    f"insert into {t} (body, tags, extra, m) values ($1, $2, $3, 'glad') returning *",
                    f"row {k}", ["a", "b"], json.dumps({"k": k}),
                )
            )  # fmt: skip
        seen.append(await c.executemany(f"insert into {t} (body) values ($1)", [(f"many {k}",) for k in range(50)]))
        seen.append(await c.fetch(f"select id, body, tags, extra, m from {t} order by id"))
        seen.append(await c.fetchval(f"select row(1, 'x')::{t}_pair"))
        seen.append(await c.fetchval("select $1::timestamptz", DAY))
        seen.append(await c.fetchval("select $1::numeric + 1", Decimal("12.50")))
        await c.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        seen.append(await c.fetchval(f"select extra from {t} where id = 1"))
        statement = await c.prepare(f"select body from {t} where id = $1")
        for k in (1, 2, 3):
            seen.append(await statement.fetchval(k))
        seen.append([str(a) for a in statement.get_attributes()])
        async with c.transaction():
            cursor = await c.cursor(f"select id from {t} order by id")
            seen.append(await cursor.fetch(5))
            await cursor.forward(10)
            seen.append(await cursor.fetch(2))
            async for record in c.cursor(f"select id from {t} order by id limit 70", prefetch=7):
                seen.append(record["id"])
            try:
                async with c.transaction():
                    await c.execute(f"insert into {t} (id) values (1)")
            except asyncpg.UniqueViolationError as error:
                seen.append((error.sqlstate, error.constraint_name))
            seen.append(await c.fetchval("select 'after the savepoint'"))
        try:
            await c.fetch("select * from nowhere")
        except asyncpg.UndefinedTableError as error:
            seen.append(str(error))
        try:
            await c.fetch("select pg_sleep(30)", timeout=0.2)
        except TimeoutError:
            seen.append("timed out")
        seen.append(await c.fetchval("select 'after the timeout'"))
        seen.append(
            await c.copy_records_to_table(t, records=[(1000 + k, "c") for k in range(500)], columns=["id", "body"])
        )
        out = io.BytesIO()
        seen.append(await c.copy_from_query(f"select id, body from {t} order by id", output=out, format="csv"))
        seen.append(out.getvalue())
        heard: asyncio.Queue[tuple[str, object]] = asyncio.Queue()

        def hear(_c: object, _pid: int, channel: str, said: object) -> None:
            heard.put_nowait((channel, said))

        await c.add_listener(t, hear)
        await c.execute(f"select pg_notify('{t}', 'news')")
        seen.append(await asyncio.wait_for(heard.get(), 10))
        await c.remove_listener(t, hear)
        await c.execute(f"alter table {t} add column more int default 7")
        seen.append(await c.fetch(f"select * from {t} order by id limit 2"))
        await c.execute("set timezone to 'Asia/Tokyo'")
        seen.append(await c.fetchval("select '2026-01-01 00:00+00'::timestamptz::text"))
        seen.append(c.get_settings().TimeZone)
        await c.reset()
        seen.append(await c.fetchval("show timezone"))
        seen.append(tuple(c.get_server_version())[:2])
        await c.close()
        return seen

    return asyncio.run(work())


def asyncpg_pool(url: str, n: int) -> Seen:
    async def work() -> Seen:
        async with asyncpg.create_pool(url) as pool:  # ten connections at once, its default
            t = f"apool_{n}"
            await pool.execute(f"create table {t} (id int primary key, who int)")

            async def worker(k: int) -> list[object]:
                seen: list[object] = []
                for turn in range(3):
                    async with pool.acquire() as c, c.transaction():
                        await c.execute(f"insert into {t} values ($1, $2)", k * 10 + turn, k)
                        seen.append(await c.fetchval(f"select count(*) from {t} where who = $1", k))
                    seen.append(await pool.fetchval(f"select max(id) from {t} where who = $1", k))
                return seen

            seen: Seen = list(await asyncio.gather(*(worker(k) for k in range(12))))
            seen.append(await pool.fetch(f"select * from {t} order by id"))
            return seen

    return asyncio.run(work())


def psycopg3(url: str, n: int) -> Seen:
    seen: Seen = []
    t = f"psycopg3_{n}"
    with psycopg.connect(url) as c:
        c.execute(f"create table {t} (id serial primary key, body text, day timestamptz)")
        c.commit()
        for k in range(12):  # prepared from the sixth on
            seen.append(
                c.execute(f"insert into {t} (body, day) values (%s, %s) returning id", (f"r{k}", DAY)).fetchone()
            )
            c.commit()
        for k in range(12):
            seen.append(c.execute(f"select * from {t} where id = %s", (k,)).fetchall())
            c.commit()
        c.prepared_max = 2  # what it forgets it deallocates, by SQL below libpq 17
        for k in range(8):
            for turn in range(6):
                seen.append(c.execute(f"select %s::int + {k}", (turn,)).fetchone())
            c.commit()
        with c.cursor(name="on the server") as cursor:
            cursor.itersize = 3
            cursor.execute(f"select id from {t} order by id")
            seen.append(cursor.fetchmany(4))
            seen.extend(cursor)
        c.commit()
        with c.pipeline():
            answers = [c.execute("select %s::int", (k,)) for k in range(20)]
        seen.append([answer.fetchone() for answer in answers])
        c.commit()
        with c.cursor().copy(f"copy {t} (body) from stdin") as copy:
            for k in range(300):
                copy.write_row((f"copied {k}",))
        c.commit()
        with c.cursor().copy(f"copy (select body from {t} order by id) to stdout") as copy:
            seen.append(b"".join(bytes(part) for part in copy))
        c.commit()
        try:
            with c.transaction():
                c.execute(f"insert into {t} (id) values (1)")
        except psycopg.errors.UniqueViolation as error:
            seen.append((error.sqlstate, error.diag.constraint_name, error.diag.message_primary))
        with c.transaction():
            with c.transaction(), c.cursor(row_factory=psycopg.rows.dict_row) as cursor:
                seen.append(cursor.execute(f"select * from {t} where id = 2", binary=True).fetchone())
            seen.append(c.execute("select 1 where %s::text is null", (None,)).fetchone())
        c.autocommit = True
        c.execute(f"listen {t}")
        c.execute(f"select pg_notify('{t}', 'news')")
        for note in c.notifies(timeout=10, stop_after=1):
            seen.append((note.channel, note.payload))
        c.execute(f"unlisten {t}")
        c.execute("set application_name to 'mine'")
        seen.append(c.info.parameter_status("application_name"))
        c.execute("reset all")
        c.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        with c.transaction():
            seen.append(c.execute("show transaction_isolation").fetchone())
        c.read_only = True
        with c.transaction():
            seen.append(c.execute("show transaction_read_only").fetchone())
    return seen


def psycopg3_async(url: str, n: int) -> Seen:
    async def work() -> Seen:
        seen: Seen = []
        async with await psycopg.AsyncConnection.connect(url) as c:
            t = f"psycopga_{n}"
            await c.execute(f"create table {t} (id int, body text)")
            async with c.cursor() as cursor:
                await cursor.executemany(f"insert into {t} values (%s, %s)", [(k, str(k)) for k in range(100)])
                seen.append(cursor.rowcount)
                await cursor.execute(f"select sum(id), string_agg(body, ',' order by id) from {t}")
                seen.append(await cursor.fetchone())
            await c.commit()
            sleeper = asyncio.ensure_future(c.execute("select pg_sleep(30)"))
            await asyncio.sleep(0.1)
            while not sleeper.done():  # one that comes between BEGIN and the query finds nothing to cancel
                await c.cancel_safe()  # `cancel` holds the interpreter, which the door in this process needs too
                await asyncio.wait({sleeper}, timeout=1.0)
            try:
                await sleeper
            except psycopg.errors.QueryCanceled as error:
                seen.append(error.sqlstate)
            await c.rollback()
            seen.append(await (await c.execute("select 'after'")).fetchone())
        return seen

    return asyncio.run(work())


def psycopg2_(url: str, n: int) -> Seen:
    seen: Seen = []
    t = f"psycopg2_{n}"
    c = psycopg2.connect(url)
    with c, c.cursor() as cursor:
        cursor.execute(f"create table {t} (id serial primary key, body text, extra jsonb)")
    for k in range(4):
        with c, c.cursor() as cursor:
            cursor.execute(
                f"insert into {t} (body, extra) values (%s, %s) returning id", (f"r{k}", psycopg2.extras.Json({"k": k}))
            )
            seen.append(cursor.fetchone())
    with c, c.cursor() as cursor:
        psycopg2.extras.execute_values(cursor, f"insert into {t} (body) values %s", [(f"v{k}",) for k in range(250)])
        cursor.execute(f"select * from {t} order by id limit 6")
        seen.append(cursor.fetchall())
    with c, c.cursor(name="streamed") as cursor:
        cursor.itersize = 20
        cursor.execute(f"select id from {t} order by id")
        seen.append(sum(row[0] for row in cursor))
    with c, c.cursor() as cursor:
        cursor.copy_expert(f"copy {t} (body) from stdin", io.StringIO("one\ntwo\n"))
        out = io.StringIO()
        cursor.copy_expert(f"copy {t} (body) to stdout", out)
        seen.append(sorted(out.getvalue().split()))
    try:
        with c, c.cursor() as cursor:
            cursor.execute(f"insert into {t} (id) values (1)")
    except psycopg2.errors.UniqueViolation as error:
        seen.append((error.pgcode, error.diag.constraint_name))
    large = c.lobject(0, "wb")  # the function call protocol
    large.write(b"x" * 10_000)
    name = large.oid
    large.close()
    seen.append(len(c.lobject(name, "rb").read()))
    c.lobject(name, "n").unlink()
    c.commit()
    c.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True)
    with c, c.cursor() as cursor:
        cursor.execute("select current_setting('transaction_isolation'), current_setting('transaction_read_only')")
        seen.append(cursor.fetchone())
    c.set_session(isolation_level="DEFAULT", readonly=False, deferrable=False)
    c.set_session(autocommit=True)
    with c.cursor() as cursor:
        cursor.execute(f"listen {t}")
        cursor.execute(f"notify {t}, 'news'")
        c.poll()
        seen.append([(note.channel, note.payload) for note in c.notifies])
        cursor.execute(f"unlisten {t}")
        cursor.execute("set statement_timeout to '150ms'")
        try:
            cursor.execute("select pg_sleep(30)")
        except psycopg2.errors.QueryCanceled as error:
            seen.append(error.pgcode)
        cursor.execute("show statement_timeout")
        seen.append(cursor.fetchone())
    c.set_client_encoding("LATIN1")
    with c.cursor() as cursor:
        cursor.execute("select 'é' || %s, current_setting('client_encoding')", ("ü",))
        seen.append(cursor.fetchone())
    c.close()
    return seen


def pg8000_(url: str, n: int) -> Seen:
    parts = urllib.parse.urlsplit(url)
    where = {
        "user": parts.username or "", "password": urllib.parse.unquote(parts.password or ""),
        "host": parts.hostname or "", "port": parts.port or 0, "database": parts.path[1:],
    }  # fmt: skip
    seen: Seen = []
    t = f"pg8000_{n}"
    c = pg8000.dbapi.connect(**where)
    cursor = c.cursor()
    cursor.execute(f"create table {t} (id serial primary key, body text, at timestamptz)")
    cursor.executemany(f"insert into {t} (body, at) values (%s, %s)", [(f"r{k}", DAY) for k in range(20)])
    c.commit()
    cursor.execute(f"select * from {t} order by id")
    seen.append(cursor.fetchall())
    c.rollback()
    try:
        cursor.execute(f"insert into {t} (id) values (1)")
    except pg8000.dbapi.DatabaseError as error:
        seen.append(error.args[0]["C"])
    c.rollback()
    c.close()
    native = pg8000.native.Connection(**where)
    statement = native.prepare(f"select body from {t} where id = :id")
    for k in (1, 2, 3):
        seen.append(statement.run(id=k))
    native.run("begin")
    native.run(f"update {t} set body = 'changed' where id = :id", id=1)
    native.run("rollback")
    seen.append(statement.run(id=1))
    statement.close()
    out = io.BytesIO()
    native.run(f"copy (select id from {t} order by id) to stdout", stream=out)
    seen.append(out.getvalue())
    native.run(f"copy {t} (body) from stdin", stream=io.BytesIO(b"x\ny\n"))
    seen.append(native.run(f"select count(*) from {t}"))
    native.run(f"listen {t}")
    native.run(f"notify {t}, 'news'")
    native.run("select 1")
    seen.append([note[1:] for note in native.notifications])
    native.close()
    return seen


class Base(orm.DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    key: orm.Mapped[str] = orm.mapped_column(unique=True)
    books: orm.Mapped[list[Book]] = orm.relationship(back_populates="author", order_by="Book.title")


class Book(Base):
    __tablename__ = "book"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str]
    extra: orm.Mapped[dict[str, object]] = orm.mapped_column(sa.JSON)
    author_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("author.id"))
    author: orm.Mapped[Author] = orm.relationship(back_populates="books")


def sqlalchemy_sync(url: str, n: int, driver: str) -> Seen:
    seen: Seen = []
    schema = f"{driver}_{n}"
    url = url.replace("postgresql:", f"postgresql+{driver}:")
    engine = sa.create_engine(url, pool_pre_ping=True).execution_options(schema_translate_map={None: schema})
    with engine.begin() as c:
        c.execute(sa.schema.CreateSchema(schema))
        Base.metadata.create_all(c)
    with orm.Session(engine) as session:
        session.add_all(
            Author(key=f"a{k}", books=[Book(title=f"t{k}.{b}", extra={"b": b}) for b in range(3)]) for k in range(30)
        )
        session.commit()
        for author in session.scalars(sa.select(Author).order_by(Author.id).limit(8)):
            seen.append([(book.title, book.extra) for book in author.books])
        session.commit()
        try:
            with session.begin_nested():
                session.add(Author(key="a1"))
                session.flush()
        except sa.exc.IntegrityError as error:
            seen.append(type(error).__name__)
        session.add(Author(key="fresh"))
        session.commit()
        seen.append(session.scalar(sa.select(sa.func.count()).select_from(Author)))
    with engine.connect() as c:
        titles = sa.select(Book.title).order_by(Book.title)
        seen.append([row.title for row in c.execution_options(stream_results=True, max_row_buffer=10).execute(titles)])
        c.rollback()
        seen.append(sa.inspect(c).get_columns("book", schema=schema)[1]["name"])
        seen.append(sorted(sa.inspect(c).get_table_names(schema=schema)))
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as c:
        seen.append(c.scalar(sa.text("show transaction_isolation")))
    with engine.connect() as c:
        seen.append(c.scalar(sa.text("show transaction_isolation")))
    engine.dispose()
    return seen


def sqlalchemy_async(url: str, n: int) -> Seen:
    async def work() -> Seen:
        seen: Seen = []
        schema = f"salchemy_{n}"
        engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:")).execution_options(
            schema_translate_map={None: schema}
        )
        async with engine.begin() as c:
            await c.execute(sa.schema.CreateSchema(schema))
            await c.run_sync(Base.metadata.create_all)

        async def worker(k: int) -> object:
            async with AsyncSession(engine) as session:
                session.add(Author(key=f"w{k}", books=[Book(title=f"b{k}.{b}", extra={}) for b in range(2)]))
                await session.commit()
                found = await session.scalars(
                    sa.select(Book).join(Author).where(Author.key == f"w{k}").order_by(Book.title)
                )
                return [book.title for book in found]

        seen.extend(await asyncio.gather(*(worker(k) for k in range(12))))
        async with engine.connect() as c:
            stream = await c.stream(sa.select(Book.title).order_by(Book.title))
            seen.append([row.title async for row in stream])
        await engine.dispose()
        return seen

    return asyncio.run(work())


SCRIPTS = {
    "asyncpg": asyncpg_connection,
    "asyncpg's pool": asyncpg_pool,
    "psycopg 3": psycopg3,
    "psycopg 3 async": psycopg3_async,
    "psycopg 2": psycopg2_,
    "pg8000": pg8000_,
    "SQLAlchemy psycopg2": lambda url, n: sqlalchemy_sync(url, n, "psycopg2"),
    "SQLAlchemy psycopg": lambda url, n: sqlalchemy_sync(url, n, "psycopg"),
    "SQLAlchemy pg8000": lambda url, n: sqlalchemy_sync(url, n, "pg8000"),
    "SQLAlchemy asyncpg": sqlalchemy_async,
}
