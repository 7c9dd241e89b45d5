"""A Django project in one file: `django_app.py runserver HOST:PORT`, or gunicorn django_app:application."""

import json
import os
import sys

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    DEBUG=False, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="not one", USE_TZ=True,
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
    SECURE_SSL_REDIRECT=bool(os.environ.get("SSL_REDIRECT")),
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware"],
)  # fmt: skip


def page(request):
    return HttpResponse("hello from Django")


def take(request):
    return JsonResponse({"got": json.loads(request.body), "scheme": request.scheme, "host": request.get_host()})


def big(request):
    return StreamingHttpResponse(b"x" * 65536 for _ in range(int(request.GET["size"]) // 65536))


urlpatterns = [path("", page), path("json", take), path("big", big)]
application = get_wsgi_application()

if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
