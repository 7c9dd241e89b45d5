import hashlib
import os
import time
from pathlib import Path

import gradio as gr
from openai import OpenAI


def greet(name):
    return f"Hello, {name}"


def ask(text):
    said = OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])
    return said.choices[0].message.content


def wait(seconds):
    time.sleep(float(seconds))
    return f"waited {seconds}"


def digest(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


with gr.Blocks(title="A page") as demo:
    name = gr.Textbox(label="Name")
    said = gr.Textbox(label="Said")
    gr.Button("Greet").click(greet, name, said, api_name="greet")
    gr.Button("Ask").click(ask, name, said, api_name="ask")
    gr.Button("Wait").click(wait, name, said, api_name="wait", concurrency_limit=20)
    gr.Button("Digest").click(digest, gr.File(label="File"), said, api_name="digest")

demo.queue(default_concurrency_limit=20).launch(
    server_name="0.0.0.0", server_port=int(os.environ.get("PORT", "7860")), share=False
)
