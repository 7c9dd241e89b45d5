"""The systemd units of deploy/ hold together, with each other and with the policy in their comments."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from proxy.app.command import parse_command
from proxy.gateway import CLOSE_SECONDS
from proxy.policy.loading import PolicySource, load_policy
from proxy.process.socket_activation import SOCKET_KEYS

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICE = (UNITS / "outrigger@.service").read_text()


def value(text: str, key: str) -> str:
    (found,) = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
    return str(found)


def environment(instance: int) -> dict[str, str]:
    words = value(SERVICE, "Environment").replace("%i", str(instance)).split()
    return dict(word.split("=", 1) for word in words)


def policy(instance: int):
    lines = re.findall(r"^#(   .*)$", SERVICE, re.MULTILINE)
    begins = next(at for at, line in enumerate(lines) if line.strip() == "listen:")
    text = "\n".join(line[3:] for line in lines[begins:])
    return load_policy(PolicySource("unit", None, text), environment(instance))


def test_two_instances_have_no_address_in_common_but_the_socket() -> None:
    ports = [
        one.port
        for instance in (1, 2)
        for one in (policy(instance).listen.admin, policy(instance).listen.egress, policy(instance).postgres.listen)
    ]
    assert len(set(ports)) == 6


def test_the_socket_is_the_public_port_and_the_instances_take_it() -> None:
    socket = (UNITS / "outrigger.socket").read_text()
    assert value(socket, "FileDescriptorName") in SOCKET_KEYS
    assert value(SERVICE, "Sockets") == "outrigger.socket"
    assert value(SERVICE, "Type") == "notify"


def test_a_stop_has_the_time_that_it_may_take() -> None:
    needed = policy(1).listen.drain + policy(1).app.stop_timeout
    assert needed + CLOSE_SECONDS <= int(value(SERVICE, "TimeoutStopSec"))


def test_the_app_gets_its_own_port_and_takes_the_shells_place() -> None:
    words = shlex.split(value(SERVICE, "ExecStart").replace("$$", "$"))
    command = parse_command(words[words.index("--") + 1 :], 80, 4000)
    assert command.argv[-1].startswith("exec ")
    assert command.argv[-1].endswith("--port $PORT")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd to ask")
def test_systemd_knows_every_line(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        text = re.sub(r"^(ExecStart)=\S+/outrigger ", r"\1=/bin/true ", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    asked = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not [line for line in asked.stderr.splitlines() if "outrigger" in line], asked.stderr
