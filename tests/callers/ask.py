"""An app's own call with one library or another: python ask.py LIBRARY, run by the Python that has it.

Reads [[base URL, whether to stream], …] as JSON, makes one call each without a retry of its own, and prints what
an `except` would see of each, as JSON.
"""

import json
import os
import sys
import warnings

SAY = [{"role": "user", "content": "hello"}]
PATIENCE = 1.5  # seconds; a machine that is busy with other tests holds everybody up for one


def with_openai(url, stream):
    import openai

    sdk = openai.OpenAI(api_key="sk-x", base_url=url + "/v1", max_retries=0, timeout=PATIENCE)
    answer = sdk.chat.completions.create(model="gpt-4o-mini", messages=SAY, stream=stream)
    if stream:
        return "".join(part.choices[0].delta.content or "" for part in answer)
    return answer.choices[0].message.content


def with_langchain(url, stream):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="gpt-4o-mini", api_key="sk-x", base_url=url + "/v1", max_retries=0, timeout=PATIENCE)
    return "".join(part.content for part in model.stream(SAY)) if stream else model.invoke(SAY).content


def with_litellm(url, stream):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    litellm.suppress_debug_info = True
    answer = litellm.completion(
        model="openai/gpt-4o-mini",
        api_key="sk-x",
        api_base=url + "/v1",
        messages=SAY,
        stream=stream,
        timeout=PATIENCE,
        max_retries=0,
    )
    if stream:
        return "".join(part.choices[0].delta.content or "" for part in answer)
    return answer.choices[0].message.content


def with_anthropic(url, stream):
    import anthropic

    sdk = anthropic.Anthropic(api_key="sk-x", base_url=url, max_retries=0, timeout=PATIENCE)
    if not stream:
        return sdk.messages.create(model="claude", max_tokens=9, messages=SAY).content[0].text
    with sdk.messages.stream(model="claude", max_tokens=9, messages=SAY) as parts:
        return "".join(parts.text_stream)


def seen(call, url, stream):
    try:
        said = call(url, stream)
    except Exception as error:
        status, code = getattr(error, "status_code", None), getattr(error, "code", None)
        return f"`{type(error).__name__}`" + (f" {status}" if status else f" `{code}`" if code else "")
    return "the answer" if said == ("ab" if stream else "well") else "half an answer, and no error"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    caller = globals()["with_" + sys.argv[1]]
    print(json.dumps([seen(caller, url, stream) for url, stream in json.load(sys.stdin)]))
