"""The ways in which apps call a model vendor. None of them knows of a gateway.

A call's model is `WHO~WAY`, so that a log line which names the caller can be compared with who it was.
"""

import json
import os
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

BASE = os.environ["OPENAI_BASE_URL"]
URL = BASE + "/chat/completions"
executor = ThreadPoolExecutor(4)
reported = threading.Semaphore(0)  # what the loop that was started at import waits for
_kept = {}
_lock = threading.Lock()


def body(model):
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]}


def by_urllib(model):
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(URL, json.dumps(body(model)).encode(), headers), timeout=20):
        pass


def by_requests(model):
    import requests

    assert requests.post(URL, json=body(model), timeout=20).status_code == 200


def kept(name, make):
    """What is made once, by the first request, and serves later ones as well."""
    with _lock:
        return _kept.get(name) or _kept.setdefault(name, make())


def by_httpx(model):
    import httpx

    client = kept("httpx", lambda: httpx.Client(timeout=20))
    assert client.post(URL, json=body(model)).status_code == 200


async def by_async_httpx(model):
    import httpx

    async with httpx.AsyncClient(timeout=20, verify=False) as client:
        assert (await client.post(URL, json=body(model))).status_code == 200


async def by_aiohttp(model):
    import aiohttp

    async with aiohttp.ClientSession() as session, session.post(URL, json=body(model)) as answer:
        assert answer.status == 200


def in_thread(call, model):
    thread = threading.Thread(target=call, args=(model,))
    thread.start()
    thread.join()


def in_executor(call, model):
    executor.submit(call, model).result(20)


def in_pool(call, model):
    from multiprocessing.pool import ThreadPool

    kept("pool", lambda: ThreadPool(3)).map(call, [model])


def in_process(call, model):
    """Nobody's: a process serves whoever comes, the first request's being no more its owner than the next."""
    from concurrent.futures import ProcessPoolExecutor

    kept("processes", lambda: ProcessPoolExecutor(1)).submit(call, "unattributed~process").result(20)


def by_timer(call, model):
    """Nobody's, even where a request started it."""
    timer = threading.Timer(0.01, call, ("unattributed~" + model.partition("~")[2],))
    timer.start()
    timer.join()


def from_the_loop(call, model):
    reported.release()


def loop():
    while reported.acquire():
        executor.submit(by_urllib, "unattributed~loop").result(20)  # on threads that requests may have started


threading.Thread(target=loop, daemon=True).start()

WAYS = {"thread": in_thread, "executor": in_executor, "pool": in_pool, "process": in_process}
WAYS |= {"timer": by_timer, "loop": from_the_loop}
CLIENTS = {"requests": by_requests, "urllib": by_urllib, "httpx": by_httpx}


def go(way, model):
    """A way of WAYS, or a client by itself."""
    if way in WAYS:
        WAYS[way](by_urllib, model)
    else:
        CLIENTS[way](model)


def stream(model):
    """An answer whose pieces each take a call."""
    for number in range(2):
        by_urllib(f"{model}{number}")
        yield b"piece\n"
