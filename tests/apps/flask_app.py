from flask import Flask, Response, jsonify, request

app = Flask(__name__)


@app.get("/")
def page():
    return "hello from Flask"


@app.post("/json")
def json():
    return jsonify(got=request.get_json(), scheme=request.scheme, host=request.host)


@app.get("/big")
def big():
    return Response(b"x" * 65536 for _ in range(int(request.args["size"]) // 65536))
