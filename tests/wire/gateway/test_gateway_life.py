"""The whole gateway as a process: starting, serving, restarting, reloading, stopping."""

import asyncio
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest
from free_ports import free_port
from gateway_process import APPS, ROOT, eventually, gateway, processes_of

APP = (sys.executable, str(APPS / "plain.py"))


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1]) if answer else 0


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def test_an_app_is_served_by_its_start_command_alone_and_stopped_cleanly(tmp_path):
    async with gateway(tmp_path, *APP) as g:
        await g.ready()
        assert body_of(await g.request("/world")) == b"hello /world"
        assert body_of(await g.request("/", method="POST", body=b"echo")) == b"echo"
        pid = int(body_of(await g.request("/pid")))
        assert int(body_of(await g.request("/env?PORT"))) != g.port
        assert await g.stop() == 0
        assert not alive(pid)
        assert "plain app has closed" in g.output()


async def test_the_public_port_refuses_until_the_app_was_first_ready(tmp_path):
    async with gateway(tmp_path, *APP, environ={"START_DELAY": "0.7"}) as g:
        await eventually(lambda: g.events("app.start"))
        with pytest.raises(ConnectionRefusedError):
            await g.request()
        assert status_of(await g.request("/readyz", port=g.admin)) == 503
        assert status_of(await g.request("/healthz", port=g.admin)) == 200
        await g.ready()
        assert status_of(await g.request()) == 200


async def test_an_app_that_cannot_start_never_opens_the_port_and_its_status_is_ours(tmp_path):
    async with gateway(tmp_path, *APP, environ={"FAIL": "7"}) as g:
        assert await g.ended() == 7


async def test_a_command_that_is_not_there_is_said_in_a_sentence(tmp_path):
    async with gateway(tmp_path, "no-such-command-here") as g:
        assert await g.ended() == 127
        assert "no-such-command-here" in g.output()
        assert "Traceback" not in g.output()


async def test_killing_the_app_hurts_only_what_was_in_flight(tmp_path):
    async with gateway(tmp_path, *APP, policy="app: {restart: {backoff: 50ms}}\n") as g:
        await g.ready()
        flying = [asyncio.create_task(g.request("/slow?30")) for _ in range(5)]
        await asyncio.sleep(0.2)
        os.kill(int(body_of(await g.request("/pid"))), signal.SIGKILL)
        statuses = []
        for _ in range(40):
            statuses.append(status_of(await g.request()))
        assert {status_of(answer) for answer in await asyncio.gather(*flying)} == {502}
        assert statuses.count(200) >= 39
        metrics = body_of(await g.request("/metrics", port=g.admin)).decode()
        assert 'outrigger_app_restarts_total{reason="crash"} 1.0' in metrics
        assert "outrigger_app_up 1.0" in metrics
        assert await g.stop() == 0


async def test_sigterm_lets_everything_in_flight_finish(tmp_path):
    async with gateway(tmp_path, *APP) as g:
        await g.ready()
        pid = int(body_of(await g.request("/pid")))
        flying = [asyncio.create_task(g.request("/slow?1")) for _ in range(20)]
        await asyncio.sleep(0.3)
        g.signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert status_of(await g.request("/readyz", port=g.admin)) == 503
        with pytest.raises(ConnectionRefusedError):
            await g.request()
        assert [body_of(answer) for answer in await asyncio.gather(*flying)] == [b"slow"] * 20
        assert await g.ended() == 0
        assert not alive(pid)


async def test_what_does_not_finish_within_drain_is_ended(tmp_path):
    async with gateway(tmp_path, *APP, policy="  drain: 300ms\napp: {stop_timeout: 500ms}\n") as g:
        await g.ready()
        flying = asyncio.create_task(g.request("/slow?60"))
        await asyncio.sleep(0.2)
        assert await g.stop() == 0
        assert status_of(await flying) in (0, 502, 503)


async def test_a_second_signal_ends_at_once(tmp_path):
    async with gateway(tmp_path, *APP) as g:
        await g.ready()
        pid = int(body_of(await g.request("/pid")))
        flying = asyncio.create_task(g.request("/slow?60"))
        await asyncio.sleep(0.2)
        g.signal(signal.SIGINT)
        await asyncio.sleep(0.2)
        g.signal(signal.SIGINT)
        assert await g.ended(5) == 130
        await eventually(lambda: not alive(pid))
        await flying


async def test_kill_9_to_the_gateway_leaves_no_orphan(tmp_path):
    async with gateway(tmp_path, *APP) as g:
        await g.ready()
        pid = int(body_of(await g.request("/pid")))
        g.signal(signal.SIGKILL)
        await g.ended()
        await eventually(lambda: not alive(pid))


async def test_kill_9_to_the_gateway_ends_what_a_shell_line_left_in_its_group(tmp_path):
    line = f"A=1 {shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'plain.py'))}; true"
    async with gateway(tmp_path, line) as g:
        await g.ready()
        group = g.app_pid()
        assert len(processes_of(group)) == 2
        g.signal(signal.SIGKILL)
        await g.ended()
        await eventually(lambda: not processes_of(group))


async def test_a_taken_address_is_named_by_its_key_and_the_app_never_starts(tmp_path):
    async with gateway(tmp_path, *APP) as first:
        await first.ready()
        async with gateway(tmp_path, *APP, port=first.port) as second:
            assert await second.ended() == 1
            assert "listen.public" in second.output()
            assert str(first.port) in second.output()
            assert "plain app is up" not in second.output()
        async with gateway(tmp_path, *APP, admin=first.admin) as third:
            assert await third.ended() == 1
            assert "listen.admin" in third.output()


async def test_a_typo_in_a_saved_policy_changes_nothing_and_is_named_by_its_line(tmp_path):
    async with gateway(tmp_path, *APP, policy="log: {access: 'off'}\n") as g:
        await g.ready()
        file = tmp_path / f"policy-{g.port}.yaml"
        good = file.read_text()
        file.write_text(good + "routez: []\n")
        await eventually(lambda: "routez" in g.output(), 5)
        assert f"{file}:6: routez" in g.output()
        assert status_of(await g.request()) == 200
        metrics = body_of(await g.request("/metrics", port=g.admin)).decode()
        assert 'outrigger_policy_reloads_total{result="refused"} 1.0' in metrics
        file.write_text(good + "routes: [{name: all, match: {path: /*}, rate_limit: 2/h}]\n")
        await eventually(lambda: g.events("policy.reload"), 5)
        assert [status_of(await g.request()) for _ in range(3)] == [200, 200, 429]
        file.write_text(good + "routes: [{name: all, match: {path: /*}, rate_limit: 3/h}]\n")
        g.signal(signal.SIGHUP)
        await eventually(lambda: len(g.events("policy.reload")) == 2, 5)
        assert [status_of(await g.request()) for _ in range(2)] == [200, 429]
        assert await g.stop() == 0


async def test_app_url_fronts_an_app_that_something_else_runs(tmp_path):
    port = free_port()
    app = await asyncio.create_subprocess_exec(*APP, env={**os.environ, "PORT": str(port)})
    try:
        async with gateway(tmp_path, policy=f"app: {{url: 'http://127.0.0.1:{port}'}}\n") as g:
            await g.ready()
            assert body_of(await g.request("/x")) == b"hello /x"
            assert await g.stop() == 0
            assert app.returncode is None
    finally:
        app.kill()
        await app.wait()


async def test_outrigger_off_execs_the_app_untouched_on_the_public_port(tmp_path):
    async with gateway(tmp_path, *APP, environ={"OUTRIGGER": "off"}) as g:
        assert body_of(await g.until_answer("/")) == b"hello /"
        assert int(body_of(await g.request("/pid"))) == g.pid
        assert int(body_of(await g.request("/env?PORT"))) == g.port
        g.signal(signal.SIGTERM)
        assert await g.ended() == 0


def peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


async def test_a_gibibyte_down_and_up_passes_in_little_memory(tmp_path):
    size = 2**30
    async with gateway(tmp_path, *APP) as g:
        await g.ready()

        def down() -> None:
            with socket.create_connection(("127.0.0.1", g.port), timeout=60) as client:
                client.sendall(f"GET /big?{size} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".encode())
                buffer = bytearray(1 << 20)
                got = 0
                while more := client.recv_into(buffer):
                    got += more
                assert size < got < size + 1000

        def up() -> None:
            with socket.create_connection(("127.0.0.1", g.port), timeout=60) as client:
                client.sendall(f"POST /swallow HTTP/1.1\r\nHost: t\r\nContent-Length: {size}\r\n\r\n".encode())
                piece = b"x" * (1 << 20)
                for _ in range(size // len(piece)):
                    client.sendall(piece)
                assert client.recv(1000).startswith(b"HTTP/1.1 200 ")

        await asyncio.gather(asyncio.to_thread(down), asyncio.to_thread(up))
        assert peak_mib(g.pid) < 96
        assert await g.stop() == 0


async def test_a_hung_app_is_replaced_and_a_busy_one_is_not(tmp_path):
    policy = "app: {liveness: {path: /pid, interval: 100ms, timeout: 200ms, failures: 3}, stop_timeout: 300ms}\n"
    async with gateway(tmp_path, *APP, policy=policy) as g:
        await g.ready()
        first = g.app_pid()
        os.kill(first, signal.SIGSTOP)
        await eventually(lambda: g.app_pid() != first)
        assert g.events("app.hung")
        assert body_of(await g.request("/pid")) == str(g.app_pid()).encode()
        metrics = body_of(await g.request("/metrics", port=g.admin)).decode()
        assert 'outrigger_app_restarts_total{reason="hung"} 1.0' in metrics
        assert not alive(first)
        assert await g.stop() == 0


async def test_an_app_that_answers_while_its_probes_fail_is_left_alone(tmp_path):
    policy = "app: {liveness: {path: /no-such-thing, interval: 50ms, timeout: 50ms, failures: 2}}\n"
    environ = {"HANG": "/no-such-thing"}
    async with gateway(tmp_path, *APP, policy=policy, environ=environ) as g:
        await g.ready()
        first = g.app_pid()
        for _ in range(60):
            assert status_of(await g.request()) == 200
            await asyncio.sleep(0.01)
        assert g.app_pid() == first
        await eventually(lambda: g.app_pid() != first)
        assert await g.stop() == 0


async def test_an_app_that_ignores_sigterm_is_killed_with_its_children(tmp_path):
    script = f"trap '' TERM; {shlex.join(APP)} & sleep 1000 & wait; wait; wait"
    async with gateway(tmp_path, "sh", "-c", script, policy="app: {stop_timeout: 500ms}\n") as g:
        await g.ready()
        group = g.app_pid()
        assert len(processes_of(group)) >= 3
        assert await g.stop() == 0
        assert processes_of(group) == []


async def test_an_app_that_keeps_crashing_is_given_up_with_its_status(tmp_path):
    flag = tmp_path / "broken"
    policy = "app: {restart: {backoff: 20ms, give_up_after: 3}}\n"
    script = f"test -e {flag} && exit 9; exec {shlex.join(APP)}"
    async with gateway(tmp_path, "sh", "-c", script, policy=policy) as g:
        await g.ready()
        flag.touch()
        os.kill(g.app_pid(), signal.SIGKILL)
        assert await g.ended() == 9


async def test_a_worker_without_a_port_runs_and_its_clean_end_is_the_end(tmp_path):
    async with gateway(tmp_path, "sh", "-c", "echo working; exit 0", policy="") as g:
        file = tmp_path / f"policy-{g.port}.yaml"
        assert file.exists()
    file.write_text(f"listen: {{public: off, admin: 127.0.0.1:{free_port()}, egress: 127.0.0.1:{free_port()}}}\n")
    async with gateway(tmp_path, "sh", "-c", "echo working; sleep 0.3", arguments=("--policy", str(file))) as g:
        assert await g.ended() == 0
        assert "working" in g.output()


async def test_usage_errors_say_what_to_write(tmp_path):
    async with (
        gateway(tmp_path) as nothing,
        gateway(tmp_path, *APP, arguments=("--polcy", "x")) as option,
        gateway(tmp_path, *APP, policy="  drian: 1s\n") as key,
    ):
        assert await asyncio.gather(nothing.ended(), option.ended(), key.ended()) == [2, 2, 2]
        assert "give the app's start command after `--`" in nothing.output()
        assert "`--polcy`" in option.output()
        assert ":5: listen.drian" in key.output()
        assert "drain" in key.output()


async def test_a_claimed_path_that_the_app_answers_too_is_told_of(tmp_path):
    async with gateway(tmp_path, *APP, policy="  claim: [/healthz]\n") as g:
        await g.ready()
        assert b'"status"' in await g.request("/healthz")
        event = (await eventually(lambda: g.events("policy.claim")))[0]
        assert "/healthz" in event["message"]
        assert "the app" in event["message"].lower()


async def test_wrapped_output_never_stalls_the_app_however_slow_the_logs_reader(tmp_path):
    """100,000 lines into a log that nobody reads: the app finishes, and lines are dropped and counted."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        f"listen: {{public: off, admin: 127.0.0.1:{free_port()}, egress: 127.0.0.1:{free_port()}}}\nlog: {{app_output: wrap}}\n"
    )
    done = tmp_path / "done"
    line = "i=0; while [ $i -lt 100 ]; do yes 0123456789012345678901234567890123456789 | head -1000; i=$((i+1)); done"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "run", "--policy", str(file), "--", "sh", "-c", f"{line}; touch '{done}'; sleep 1",
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE, limit=2**14,
    )  # fmt: skip
    try:
        await eventually(done.exists, 50)
        out, _ = await asyncio.wait_for(process.communicate(), 50)
        assert process.returncode == 0
        lines = out.splitlines()
        assert any(b'"log.dropped"' in line for line in lines)
        assert all(line.startswith(b"{") and line.endswith(b"}") for line in lines)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()  # wait() would wait for an end of file that a full buffer hides
