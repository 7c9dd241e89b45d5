"""A Django project in one file, for WSGI and ASGI servers and its own runserver."""

import sys

import asking
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

settings.configure(DEBUG=False, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="not one", USE_TZ=True)


def stream(request):
    return StreamingHttpResponse(asking.stream(f"{request.headers['X-User']}~stream"))


async def in_async(request):
    model = f"{request.headers['X-User']}~async"
    await asking.by_async_httpx(f"{model}1")
    await sync_to_async(asking.by_urllib)(f"{model}2")
    return HttpResponse()


def ask(request, way):
    asking.go(way, f"{request.headers['X-User']}~{way}")
    return HttpResponse()


urlpatterns = [path("stream", stream), path("async", in_async), path("<way>", ask)]
application = get_asgi_application() if "hypercorn" in sys.argv[0] else get_wsgi_application()

if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
