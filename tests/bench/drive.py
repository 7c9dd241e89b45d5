"""Load that is not itself what is measured: wrk if it is here, which takes a tenth of the CPU of `bench_tools.load`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile

import uvloop
from bench_tools import PATH, load

USERS = 256  # by turns: none of them meets a limit of 1,000 a second
# Every request is made beforehand; USER in path and body is a number that goes round.
SCRIPT = """
local requests, at = {}, 0
function init()
  for n = 1, %(users)d do
    local target, body = string.gsub(%(target)s, "USER", n), string.gsub(%(body)s, "USER", n)
    requests[n] = wrk.format(%(method)s, target, {%(fields)s}, body)
  end
end
local count = 0
function request()
  at = at %% %(users)d + 1
  count = count + 1
  return %(request)s
end
"""
SERIAL = "000000000"  # stands in a field for the number of the request
NUMBERED = f'(string.gsub(requests[at], "{SERIAL}", string.format("%09d", count)))'


def drive(
    port: int, seconds: int, connections: int, target: str, *, body: str = "", fields: str = "", numbered: bool = False
) -> int:
    """Requests answered with 200 in that time; anything else raises. With a body they are POST. `numbered`: each has a
    field of its own, as those behind an edge that numbers them have, so that no head comes twice (wrk alone does
    that)."""
    fields += f"X-Serial: {SERIAL}\r\n" if numbered else ""
    wrk = shutil.which("wrk", path=PATH)
    if wrk is None:
        return uvloop.run(load(port, seconds, connections, target=target, fields=fields, body=body))
    pairs = [line.split(": ", 1) for line in fields.split("\r\n") if line]
    if body:
        pairs.append(["Content-Type", "application/json"])
    script = SCRIPT % {
        "users": USERS,
        "target": json.dumps(target),
        "body": f"[==[{body}]==]",
        "method": '"POST"' if body else '"GET"',
        "request": NUMBERED if numbered else "requests[at]",
        "fields": ", ".join(f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in pairs),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        options = ["-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "30s", "-s", file.name]
        done = subprocess.run([wrk, *options, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    wrong = re.search(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", done.stdout)
    if wrong:
        raise RuntimeError(f"{target}: {wrong[0]}")
    answered = re.search(r"(\d+) requests in", done.stdout)
    assert answered is not None, done.stdout + done.stderr
    return int(answered[1])


def generator() -> str:
    wrk = shutil.which("wrk", path=PATH)
    if wrk is None:
        return "a client in Python, which is part of what requests/s are (wrk is not installed)"
    version = re.search(r"\d+\.\d+\.\d+", subprocess.run([wrk, "-v"], capture_output=True, text=True).stdout)
    return f"wrk {version[0] if version else ''}".strip()
