"""A small Flask app as users write them, for gunicorn's threads."""

import hashlib
import time

from flask import Flask, Response, jsonify, request, send_from_directory
from flask_sock import Sock
from openai import OpenAI

app = Flask(__name__)
sock = Sock(app)
vendor = OpenAI()


@app.get("/")
def index():
    return send_from_directory("static", "index.html")


@app.get("/api/items")
def items():
    first = request.args.get("first", 0, int)
    return jsonify([{"id": first + number, "name": f"item {first + number}"} for number in range(50)])


@app.post("/api/echo")
def echo():
    return request.get_json()


@app.post("/api/upload")
def upload():
    file = request.files["file"]
    data = file.read()
    return {"name": file.filename, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@app.get("/api/events")
def events():
    def lines():
        for number in range(5):
            yield f"id: {number}\ndata: event {number}\n\n"
            time.sleep(0.2)

    return Response(lines(), mimetype="text/event-stream")


@app.get("/api/wait")
def wait():
    seconds = request.args.get("seconds", 1, float)
    time.sleep(seconds)
    return {"waited": seconds}


@app.get("/api/boom")
def boom():
    raise RuntimeError("as it happens")


@sock.route("/ws")
def socket(ws):
    while True:
        ws.send(ws.receive().upper())


@app.post("/api/ask")
def ask():
    said = vendor.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": request.get_json()["text"]}]
    )
    return {"answer": said.choices[0].message.content}


@app.post("/api/tell")
def tell():
    text = request.get_json()["text"]

    def words():
        stream = vendor.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": text}], stream=True
        )
        for part in stream:
            if part.choices and part.choices[0].delta.content:
                yield part.choices[0].delta.content

    return Response(words(), mimetype="text/plain")
