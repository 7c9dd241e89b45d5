import hashlib
import json
import time

from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt


def index(request):
    return HttpResponse("<!doctype html><title>A page</title><h1>A page</h1><a href='/admin/'>Admin</a>")


def items(request):
    return JsonResponse([{"id": number, "name": f"item {number}"} for number in range(50)], safe=False)


@csrf_exempt
def echo(request):
    return JsonResponse(json.loads(request.body))


@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for piece in file.chunks():
        digest.update(piece)
    return JsonResponse({"name": file.name, "size": file.size, "sha256": digest.hexdigest()})


def lines(count):
    for number in range(count):
        yield f"id: {number}\ndata: event {number}\n\n"
        time.sleep(0.2)


@csrf_exempt
def events(request):
    return StreamingHttpResponse(lines(5), content_type="text/event-stream")


def wait(request):
    seconds = float(request.GET.get("seconds", 1))
    time.sleep(seconds)
    return JsonResponse({"waited": seconds})


PATHS = [
    path("", index),
    path("api/items", items),
    path("api/echo", echo),
    path("api/upload", upload),
    path("api/events", events),
    path("api/tell", events),
    path("api/wait", wait),
]
