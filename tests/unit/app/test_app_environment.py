"""What the app gets of the environment."""

import pytest

from proxy.app.command import parse_command
from proxy.app.environment import build_environment


def env_of(environ, **more):
    options = {"programs": ["app"], "public": 10000, "private": 4000, "venv": None, **more}
    return build_environment(environ, **options)


def test_the_app_gets_its_port_and_everything_but_the_admin_token():
    env, notes = env_of({"PORT": "10000", "A": "b", "PYTHONPATH": "x", "OUTRIGGER_ADMIN_TOKEN": "secret"})
    assert env == {"PORT": "4000", "A": "b", "PYTHONPATH": "x"}
    assert notes == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("--bind=0.0.0.0:10000", "--bind=127.0.0.1:4000"),
        ("--access-logfile - --bind=0.0.0.0:10000", "--access-logfile - --bind=127.0.0.1:4000"),
        ("--bind 0.0.0.0:10000 --workers 2", "--bind 127.0.0.1:4000 --workers 2"),
        ("-b :10000", "-b 127.0.0.1:4000"),
        ("-b0.0.0.0:10000", "-b127.0.0.1:4000"),
        ("--bind=0.0.0.0:8000", "--bind=0.0.0.0:8000"),
        ("--workers 2", "--workers 2"),
        ("--bind=unix:/tmp/s", "--bind=unix:/tmp/s"),
    ],
)
def test_a_bind_of_the_public_port_for_gunicorn_is_replaced(before, after):
    env, notes = env_of({"GUNICORN_CMD_ARGS": before})
    assert env["GUNICORN_CMD_ARGS"] == after
    assert bool(notes) == (before != after)


def program(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)


def test_the_gateways_own_virtual_environment_does_not_show(tmp_path):
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    program(theirs / "bin", "app")
    path = f"{own / 'bin'}:{theirs / 'bin'}:/usr/bin"
    env, _ = env_of({"PATH": path, "VIRTUAL_ENV": str(own), "VIRTUAL_ENV_PROMPT": "own"}, venv=own)
    assert env == {"PATH": f"{theirs / 'bin'}:/usr/bin", "PORT": "4000"}


def test_the_apps_own_virtual_environment_stays(tmp_path):
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    program(theirs / "bin", "app")
    environ = {"PATH": f"{theirs / 'bin'}:/usr/bin", "VIRTUAL_ENV": str(theirs)}
    env, _ = env_of(environ, venv=own)
    assert env == {**environ, "PORT": "4000"}


def test_an_environment_that_app_and_gateway_share_is_the_apps_own(tmp_path):
    own = tmp_path / "own"
    program(own / "bin", "app")
    environ = {"PATH": f"{own / 'bin'}:/usr/bin", "VIRTUAL_ENV": str(own)}
    for programs in (["app"], parse_command(["cd src && A=1 'app' --x"], None, 1).programs):
        env, _ = env_of(environ, venv=own, programs=programs)
        assert env == {**environ, "PORT": "4000"}
