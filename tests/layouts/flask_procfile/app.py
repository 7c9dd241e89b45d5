from flask import Flask, request
from werkzeug.middleware.proxy_fix import ProxyFix

app = Flask(__name__)
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1)


@app.route("/")
def hello():
    return "hello"


@app.route("/healthz")
def healthz():
    return "ok"


@app.route("/users/<username>/summary", methods=["POST"])
def summary(username):
    from openai import OpenAI

    answer = OpenAI().responses.create(model="gpt-4o-mini", input=request.get_data(as_text=True))
    return answer.output_text
