"""Tortoise's work on a database, many tasks over its pool; prints what it saw as JSON."""

import asyncio
import json
import os
import sys

from tortoise import Tortoise, fields
from tortoise.exceptions import IntegrityError
from tortoise.models import Model
from tortoise.transactions import in_transaction


class Event(Model):
    id = fields.IntField(primary_key=True)
    name = fields.CharField(max_length=60, unique=True)
    extra = fields.JSONField()


async def work(n: int) -> list:
    seen: list = []
    event = await Event.create(name=f"e{n}", extra={"n": n})
    await Event.bulk_create([Event(name=f"e{n}.{k}", extra={"k": k}) for k in range(20)])
    async with in_transaction() as connection:
        locked = await Event.filter(name=f"e{n}").using_db(connection).select_for_update().get()
        locked.extra = {"n": n, "locked": True}
        await locked.save(using_db=connection)
    await event.refresh_from_db()
    seen.append(event.extra)
    try:
        await Event.create(name=f"e{n}", extra={})
    except IntegrityError:
        seen.append("IntegrityError")
    seen.append(await Event.filter(name__startswith=f"e{n}.").order_by("name").values_list("name", "extra"))
    return seen


async def main() -> None:
    await Tortoise.init(
        db_url=os.environ["DATABASE_URL"].replace("postgresql:", "asyncpg:"), modules={"models": ["__main__"]}
    )
    await Tortoise.generate_schemas()
    print(json.dumps(await asyncio.gather(*(work(n) for n in range(int(sys.argv[1]))))))
    await Tortoise.close_connections()


asyncio.run(main())
