"""How the app ends: who is told, how long they have, and that nobody is left."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gateway_process import APPS, eventually, gateway, processes_of

from proxy.app.orphan_guard import OrphanGuard

ORDERLY = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'orderly.py'))}"
SCRIPT = "#!/bin/bash\ntrue\n%s\necho the script goes on\n"

LINES = {
    "a list": f"true && {ORDERLY}",
    "a variable": f"FOO=1 {ORDERLY}",
    "a pipe": f"{ORDERLY} | cat",
    "a subshell": f"(cd / && {ORDERLY}; true)",
    "in the background": f"{ORDERLY} & wait",
    "a condition": f"if true; then {ORDERLY}; fi",
    "followed by another": f"{ORDERLY}; echo the app has ended",
    "a script": "bash start.sh",
    "a script's words": ["bash", "start.sh"],
    "a program that is a script": ["./start.sh"],
}


def alive(pid: int) -> bool:
    """A zombie counts: somebody has to wait for it."""
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(autouse=True)
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    return Said(tmp_path / "said")


class Said:
    """What the app has said of its end."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self) -> str:
        return self._file.read_text() if self._file.exists() else ""

    def ended(self) -> list[int]:
        return [int(line.split()[1]) for line in self().splitlines() if line.endswith("ended in order")]


def write_script(folder: Path) -> None:
    (folder / "start.sh").write_text(SCRIPT % ORDERLY)
    (folder / "start.sh").chmod(0o755)


@pytest.mark.parametrize("line", LINES)
async def test_behind_any_shell_the_app_is_told_and_ends_in_order(tmp_path: Path, said: Said, line: str) -> None:
    write_script(tmp_path)
    words = LINES[line]
    async with gateway(tmp_path, *([words] if isinstance(words, str) else words)) as g:
        await g.ready()
        group = g.app_pid()
        assert await g.stop() == 0
        assert said.ended()
        assert said().count("got SIGTERM") == 1
        assert not processes_of(group)


@pytest.mark.parametrize("line", LINES)
async def test_without_outrigger_the_app_is_told_as_well(tmp_path: Path, said: Said, line: str) -> None:
    write_script(tmp_path)
    words = LINES[line]
    shell = "script" in line  # one that the app's owner wrote: what it does with a signal is its own business
    async with gateway(tmp_path, *([words] if isinstance(words, str) else words), environ={"OUTRIGGER": "off"}) as g:
        await g.until_answer("/")
        pid = int((await g.request("/")).rpartition(b"\n")[2])
        try:
            status = await g.stop()
            if not shell:
                assert status in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
                assert said.ended() == [pid]
        finally:
            if shell and alive(pid):
                os.kill(pid, signal.SIGKILL)


async def test_a_shell_that_is_killed_leaves_an_app_that_is_told_and_then_started_anew(
    tmp_path: Path, said: Said
) -> None:
    policy = "app: {restart: {backoff: 20ms}}\n"
    async with gateway(tmp_path, f"{ORDERLY}; true", policy=policy) as g:
        await g.ready()
        group = g.app_pid()
        os.kill(group, signal.SIGKILL)
        await eventually(lambda: len(g.events("app.ready")) == 2)
        assert len(said.ended()) == 1
        assert not processes_of(group)
        assert await g.stop() == 0


async def test_who_ignores_it_has_stop_timeout_though_the_shell_is_gone(tmp_path: Path, said: Said) -> None:
    policy = "app: {stop_timeout: 300ms}\n"
    async with gateway(tmp_path, f"{ORDERLY}; true", policy=policy, environ={"LINGER": "100"}) as g:
        await g.ready()
        group = g.app_pid()
        assert await g.stop() == 0
        assert "got SIGTERM" in said()
        assert not said.ended()
        assert not processes_of(group)


async def test_an_app_that_is_no_shell_tells_its_children_itself(tmp_path: Path, said: Said) -> None:
    child = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('the child was told', flush=True)); print('up', flush=True); time.sleep(100)"
    parent = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]);"
        f" sys.argv[0] = {str(APPS / 'orderly.py')!r}; exec(open(sys.argv[0]).read())"
    )
    policy = "app: {stop_timeout: 1s}\n"
    async with gateway(tmp_path, sys.executable, "-c", parent, policy=policy) as g:
        await g.ready()
        await eventually(lambda: "\nup\n" in g.output())
        group = g.app_pid()
        assert await g.stop() == 0
        assert said.ended() == [group]
        assert "\nthe child was told" not in g.output()
        assert not processes_of(group)


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT"])
async def test_the_stop_signal_is_the_policys(tmp_path: Path, said: Said, name: str) -> None:
    async with gateway(tmp_path, f"true && {ORDERLY}", policy=f"app: {{stop_signal: {name}}}\n") as g:
        await g.ready()
        assert await g.stop() == 0
        assert f"got {name}" in said()
        assert "got SIGTERM" not in said()
        assert said.ended()


async def test_killing_the_gateway_sends_the_stop_signal_as_well(tmp_path: Path, said: Said) -> None:
    async with gateway(tmp_path, f"{ORDERLY} | cat", policy="app: {stop_signal: SIGINT}\n") as g:
        await g.ready()
        group = g.app_pid()
        g.signal(signal.SIGKILL)
        await g.ended()
        await eventually(lambda: not processes_of(group))
        assert "got SIGINT" in said()
        assert said.ended()


@pytest.mark.parametrize("stubborn", ["", "yes"], ids=["told", "stubborn"])
async def test_children_with_a_session_of_their_own_do_not_outlive_the_app(
    tmp_path: Path, said: Said, stubborn: str
) -> None:
    strays = tmp_path / "strays"
    environ = {"STRAY": str(strays), "STUBBORN": stubborn, "LINGER": "0"}
    policy = "app: {restart: {backoff: 20ms}, stop_timeout: 600ms}\n"
    async with gateway(tmp_path, ORDERLY, policy=policy, environ=environ) as g:
        await g.ready()
        (first,) = map(int, strays.read_text().split())
        os.kill(g.app_pid(), signal.SIGKILL)  # it crashes
        await eventually(lambda: len(g.events("app.ready")) == 2)
        assert not alive(first)
        _, second = map(int, strays.read_text().split())
        assert alive(second)
        assert await g.stop() == 0
        assert not alive(second)


async def test_who_does_nothing_about_the_signal_leaves_children_that_are_told(tmp_path: Path, said: Said) -> None:
    """As npm does, and npx: the signal ends it, and nobody else has heard of it."""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, {str(APPS / 'orderly.py')!r}])"
    async with gateway(tmp_path, sys.executable, "-c", parent) as g:
        await g.ready()
        group = g.app_pid()
        assert await g.stop() == 0
        (app,) = said.ended()
        assert app != group
        assert said().count("got SIGTERM") == 1
        assert not processes_of(group)


async def test_what_detaches_itself_is_waited_for_and_ended(tmp_path: Path, said: Said) -> None:
    """`(setsid daemon &)`, as a start script does: nobody's child but ours."""
    pids = tmp_path / "pids"
    line = f"(setsid sh -c 'echo $$ >> {pids}; exec sleep 1000' &); (setsid sh -c 'echo $$ >> {pids}' &); {ORDERLY}"
    async with gateway(tmp_path, "sh", "-c", line) as g:
        await g.ready()
        await eventually(lambda: len(pids.read_text().split()) == 2)
        running = list(map(int, pids.read_text().split()))
        await eventually(lambda: sum(map(alive, running)) == 1)  # the one that ended was buried
        assert await g.stop() == 0
        assert not any(map(alive, running))


async def test_killing_the_gateway_ends_children_with_a_session_of_their_own_too(tmp_path: Path, said: Said) -> None:
    strays = tmp_path / "strays"
    async with gateway(tmp_path, ORDERLY, environ={"STRAY": str(strays), "STUBBORN": "yes"}) as g:
        await g.ready()
        (stray,) = map(int, strays.read_text().split())
        g.signal(signal.SIGKILL)
        await g.ended()
        await eventually(lambda: not processes_of(stray))


def test_the_warden_ends_what_it_was_told_of_and_what_that_had_started(tmp_path: Path) -> None:
    """As when the gateway is killed: its pipe closes."""
    child = tmp_path / "child"
    app = subprocess.Popen(["sh", "-c", "exec sleep 1000"], process_group=0)
    orphan = subprocess.Popen(["sh", "-c", f"setsid sleep 1000 & echo $! > {child}; wait"], start_new_session=True)
    warden = OrphanGuard()
    try:
        deadline = time.monotonic() + 20
        while not (child.exists() and child.read_text().strip()) and time.monotonic() < deadline:
            time.sleep(0.01)
        warden.watch_group(app.pid, orphans=[orphan.pid])
        assert warden._process.stdin is not None
        warden._process.stdin.close()
        assert app.wait(20) == -signal.SIGTERM
        assert orphan.wait(20) == -signal.SIGTERM
        warden._process.wait(20)
        assert not processes_of(int(child.read_text()))
    finally:
        for process in (app, orphan):
            process.kill()
            process.wait()
