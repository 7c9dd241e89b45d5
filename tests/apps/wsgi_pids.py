"""A WSGI app that says who serves it: its process and that one's parent. /slow takes two seconds."""

import os
import time
from collections.abc import Callable


def application(environ: dict, start_response: Callable[..., object]) -> list[bytes]:
    if environ["PATH_INFO"] == "/slow":
        time.sleep(2)
    body = f"{os.getpid()} {os.getppid()}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
