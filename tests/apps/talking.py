"""Says who is asking, in every way that apps do: gunicorn talking:app."""

import logging
import subprocess
import sys
import threading
import time

from flask import Flask, request

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
app = Flask(__name__)
print("nobody: starting", flush=True)


@app.get("/")
def talk():
    user = request.headers["X-User"]
    print(f"{user}: printed", flush=True)
    print(f"{user}: two\n{user}: lines", end="\n", flush=True)
    print(user, end=": ", file=sys.stderr)
    print("in pieces", file=sys.stderr)
    logging.info("%s: logged", user)
    thread = threading.Thread(target=print, args=(f"{user}: by a thread",), kwargs={"flush": True})
    thread.start()
    thread.join()
    said = subprocess.run([sys.executable, "-c", "print('x')"], capture_output=True).stdout
    print(f"{user}: {said!r}", flush=True)
    time.sleep(0.02)
    try:
        raise ValueError(f"{user}: raised")
    except ValueError:
        logging.exception("%s: failed", user)
    return ""
