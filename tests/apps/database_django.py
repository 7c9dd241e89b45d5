"""A Django app's work on its database: persistent connections, one a thread; prints what it saw as JSON."""

import datetime
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings

URL = urlsplit(os.environ["DATABASE_URL"])
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": URL.path[1:],
            "USER": URL.username,
            "PASSWORD": unquote(URL.password or ""),
            "HOST": URL.hostname,
            "PORT": URL.port,
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": True,
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
    USE_TZ=True,
    TIME_ZONE="Europe/Berlin",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

from django.contrib.auth.models import Group, User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import IntegrityError, connection, connections, transaction  # noqa: E402
from django.db.models import Count  # noqa: E402

THREADS = int(sys.argv[1])
WHEN = datetime.datetime(2026, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)


def work(n: int) -> list:
    seen: list = []
    group = Group.objects.create(name=f"group {n}")
    User.objects.bulk_create(User(username=f"user {n}.{k:03}", date_joined=WHEN) for k in range(150))
    mine = User.objects.filter(username__startswith=f"user {n}.").order_by("username")
    seen.append(
        [user.username for user in mine.iterator(chunk_size=20)]
    )  # a cursor on the server, outside of a transaction
    with transaction.atomic():
        streamed = mine.values_list("username", flat=True).iterator(chunk_size=7)
        seen.append([next(streamed) for _ in range(10)])
        locked = mine.select_for_update().first()
        locked.groups.add(group)
        try:
            with transaction.atomic():
                Group.objects.create(name=f"group {n}")
        except IntegrityError as error:
            seen.append(type(error).__name__)
        seen.append(list(mine.filter(groups__isnull=False).values_list("username", "date_joined__hour")))
    try:
        with transaction.atomic():
            mine.delete()
            raise LookupError
    except LookupError:
        seen.append(mine.count())
    seen.append(list(mine.values("is_staff").annotate(n=Count("id")).values_list("is_staff", "n")))
    with connection.cursor() as cursor:
        cursor.execute("show timezone")
        seen.append(cursor.fetchone()[0])
    connections.close_all()
    seen.append(mine.filter(date_joined=WHEN).count())
    return seen


call_command("migrate", verbosity=0)
with ThreadPoolExecutor(THREADS) as pool:
    print(json.dumps(list(pool.map(work, range(THREADS)))))
