"""`app_output: wrap`: whatever the app prints is in the log, every character of it."""

from __future__ import annotations

import sys

import pytest
from free_ports import free_port
from gateway_process import gateway

LINES = [
    "an emoji somewhere \U0001f600 " + "x" * 5_000,
    "\U0001f600" * 16_000,  # twelve characters each once they are escaped
    "é" * 30_000,
    "\x01" * 20_000,
    '"' * 60_000,
    "y" * 100_000,
    "Traceback (most recent call last):\n" + "".join(f'  File "{n}", line 1, in ü\n' for n in range(1500)) + "E: \x02",
]


@pytest.mark.parametrize("form", ["json", "text"])
async def test_nothing_of_a_line_is_lost_however_long_it_is_once_escaped(tmp_path, form: str) -> None:
    said = tmp_path / "said.txt"
    said.write_text("\n".join(LINES) + "\n")
    file = tmp_path / "policy.yaml"
    file.write_text(
        f"listen: {{public: off, admin: 127.0.0.1:{free_port()}, egress: 127.0.0.1:{free_port()}}}\n"
        f"log: {{app_output: wrap, format: {form}}}\n"
    )
    prints = f"import sys; sys.stdout.buffer.write(open({str(said)!r}, 'rb').read())"
    async with gateway(tmp_path, sys.executable, "-c", prints, arguments=("--policy", str(file))) as g:
        assert await g.ended() == 0
        if form == "json":
            reported = [event["message"] for event in g.events("app")]
            assert "".join(reported).replace("\n", "") == "".join(LINES).replace("\n", "")
        else:
            reported = "".join(line.partition(" app: ")[2] for line in g.output().splitlines())
            for line in LINES:
                assert reported.count(line[-1]) >= line.count(line[-1]) or not line[-1].isprintable()
            assert reported.count(r"\x01") == 20_000
