import asking
from flask import Flask, Response, request

app = Flask(__name__)


@app.get("/stream")
def stream():
    return Response(asking.stream(f"{request.headers['X-User']}~stream"))


@app.get("/<way>")
def ask(way):
    asking.go(way, f"{request.headers['X-User']}~{way}")
    return ""
