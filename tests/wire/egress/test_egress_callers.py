"""What an `except` sees of each fault, direct and through: the tables of the page are what was seen here.

`make readme` writes them anew. Callers in environments of their own are set up by `make callers`.
"""

import asyncio
import json
import os
import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from egress_gateway import Vendor, chunks, completion, egress_gateway, hangs, resets, says, streams

ROOT = Path(__file__).parents[3]
ASK = ROOT / "tests" / "callers"
RULES = "timeout: {idle: 3s}, breaker: off, retry: {budget: 100%, backoff: {first: 1ms, max: 5ms}}"
DOCS_PAGE = ROOT / "docs" / "calls-out.md"
OWN = "openai"  # the caller whose table stands alone, at the top of the page


def venv(name: str) -> list[str]:
    return [str(ROOT / f".venv-callers-{name}" / "bin" / "python"), str(ASK / "ask.py")]


# A caller's name in its table, what starts it, and the dialect that it speaks.
CALLERS = {
    OWN: ([sys.executable, str(ASK / "ask.py"), "openai"], "openai"),
    "`openai` 1.109": ([*venv("openai-1.109"), "openai"], "openai"),
    "`openai` 1.35": ([*venv("openai-1.35"), "openai"], "openai"),
    "`openai` for Node": (["node", str(ASK / "ask.cjs"), str(ROOT / ".venv-callers-node")], "openai"),
    "LangChain": ([*venv("langchain"), "langchain"], "openai"),
    "LiteLLM": ([*venv("litellm"), "litellm"], "openai"),
    "`anthropic`": ([sys.executable, str(ASK / "ask.py"), "anthropic"], "anthropic"),
}


# ── what a vendor does in each dialect ───────────────────────────────────────────────────────


def message(text: str) -> dict:
    usage = {"input_tokens": 3, "output_tokens": 2}
    said = [{"type": "text", "text": text}]
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "usage": usage}
    return {**head, "content": said, "stop_reason": "end_turn", "stop_sequence": None}


def messages(*texts: str) -> list[bytes]:
    delta = {"type": "content_block_delta", "index": 0}
    events = [
        {"type": "message_start", "message": {**message(""), "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({**delta, "delta": {"type": "text_delta", "text": text}} for text in texts),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


def good(dialect: str):
    return says(completion("well") if dialect == "openai" else message("well"))


def whole(dialect: str) -> list[bytes]:
    return chunks("a", "b") if dialect == "openai" else messages("a", "b")


def started(dialect: str) -> list[bytes]:
    return whole(dialect)[: 1 if dialect == "openai" else 2]


def half(dialect: str) -> list[bytes]:
    return whole(dialect)[: 2 if dialect == "openai" else 3]


def err(dialect: str, status: int, kind: str = "server_error"):
    if dialect == "openai":
        return says({"error": {"message": "no", "type": kind, "param": None, "code": kind}}, status)
    return says({"type": "error", "error": {"type": kind, "message": "no"}}, status)


PAGE = says(b"<html>", content_type="text/html")
# A fault, what the vendor answers in turn, and whether a stream is asked for.
FAULTS = {
    "answers 500 once": (lambda d: [err(d, 500), good(d)], False),
    "answers 503 throughout": (lambda d: [err(d, 503)], False),
    "answers 529 once (overloaded)": (lambda d: [err(d, 529, "overloaded_error"), good(d)], False),
    "answers 429 once": (lambda d: [err(d, 429, "rate_limit_error"), good(d)], False),
    "answers 429, `insufficient_quota`": (lambda d: [err(d, 429, "insufficient_quota")], False),
    "answers 401": (lambda d: [err(d, 401, "authentication_error")], False),
    "resets one connection": (lambda d: [resets(), good(d)], False),
    "resets every connection": (lambda d: [resets()], False),
    "answers 200 with a page": (lambda d: [PAGE], False),
    "answers 200 with half of its JSON": (lambda d: [says(b'{"id": "x', content_type="application/json")], False),
    "never answers": (lambda d: [hangs()], False),
    "breaks a stream before its first word": (
        lambda d: [streams(started(d), then="cut"), streams(whole(d))],
        True,
    ),
    "breaks a stream later": (lambda d: [streams(half(d), then="cut")], True),
    "ends a stream early, politely": (lambda d: [streams(half(d))], True),
    "sends an event that is no JSON": (lambda d: [streams([*half(d), b"data: {broken\n\n", *whole(d)])], True),
    "stalls in a stream": (lambda d: [streams(half(d), then="stall")], True),
}


async def seen(tmp: Path, command: list[str], dialect: str) -> dict[str, tuple[str, str]]:
    """By fault: direct and through."""
    asked = []
    async with AsyncExitStack() as stack:
        through, names = [], {}
        for number, (fault, (answers, stream)) in enumerate(FAULTS.items()):
            direct = Vendor(*answers(dialect))
            await direct.start()
            stack.push_async_callback(direct.stop)
            asked.append((f"http://127.0.0.1:{direct.port}", stream))
            through.append(Vendor(*answers(dialect)))
            names[fault] = f"fault{number}"
        more = "".join(
            f'  {name}: {{kind: {dialect}, base_url: "http://127.0.0.1:<{number}>", {RULES}}}\n'
            for number, name in enumerate(names.values())
        )
        out = await stack.enter_async_context(egress_gateway(tmp, *through, more=more))
        asked += [(f"{out.url}/{names[fault]}", stream) for fault, (_, stream) in FAULTS.items()]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            said, errors = await asyncio.wait_for(process.communicate(json.dumps(asked).encode()), 180)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, errors.decode()[-2000:]
    found = json.loads(said.splitlines()[-1])
    return dict(zip(FAULTS, zip(found[: len(FAULTS)], found[len(FAULTS) :], strict=True), strict=True))


@pytest.mark.parametrize("caller", CALLERS)
async def test_the_pages_tables_are_what_this_caller_saw(tmp_path, caller):
    command, dialect = CALLERS[caller]
    if command[0] != sys.executable and Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("asked from .venv, whose Python theirs is")
    if shutil.which(command[0]) is None or not Path(command[-1] if command[0] == "node" else command[0]).exists():
        pytest.skip(f"no environment for {caller} here: make callers (for Node's SDK with node and npm)")
    found = await seen(tmp_path, command, dialect)
    for fault, (_, through) in found.items():
        assert through != "half an answer, and no error", fault
    if os.environ.get("OUTRIGGER_WRITE_README"):
        DOCS_PAGE.write_text(written(DOCS_PAGE.read_text(), caller, found))
    assert read(DOCS_PAGE.read_text(), caller) == found


# ── the tables ───────────────────────────────────────────────────────────────────────────────


def block(text: str, name: str) -> tuple[int, int]:
    start, end = f"<!-- {name}: written by a test -->\n", f"<!-- {name} ends -->"
    return text.index(start) + len(start), text.index(end)


def rows(text: str, name: str) -> tuple[list[str], dict[str, list[str]]]:
    start, end = block(text, name)
    lines = [line.strip()[2:-2].split(" | ") for line in text[start:end].strip().splitlines() if "|" in line]
    if not lines:
        return [], {}
    return lines[0][1:], {line[0]: line[1:] for line in lines[2:]}


def read(text: str, caller: str) -> dict[str, tuple[str, str]]:
    if caller == OWN:
        return {fault: (cells[0], cells[1]) for fault, cells in rows(text, "faults")[1].items()}
    callers, found = rows(text, "callers")
    if caller not in callers:
        return {}
    at = callers.index(caller)
    return {fault: pair(cells[at]) for fault, cells in found.items()}


def pair(cell: str) -> tuple[str, str]:
    direct, _, through = cell.partition(" → ")
    return direct, through or direct


def written(text: str, caller: str, found: dict[str, tuple[str, str]]) -> str:
    if caller == OWN:
        name, head = "faults", ["the vendor …", "direct", "through Outrigger"]
        lines = [[fault, *cells] for fault, cells in found.items()]
    else:
        name, head = "callers", ["the vendor …", *(one for one in CALLERS if one != OWN)]
        known = {one: read(text, one) for one in head[1:]} | {caller: found}
        lines = []
        for fault in FAULTS:
            cells = [known[one].get(fault, ("", "")) for one in head[1:]]
            lines.append([fault, *(a if a == b else f"{a} → {b}" for a, b in cells)])
    start, end = block(text, name)
    table = [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]]
    return text[:start] + "\n".join(table) + "\n" + text[end:]
