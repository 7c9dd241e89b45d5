"""`init` and `doctor` read a folder that is anybody's: nothing in it makes them wait, or end in a traceback."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.cli.checks.app import check_app as look_at_app
from proxy.cli.doctor import run_doctor
from proxy.cli.init import run_init
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import Policy

FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"
ASK = "client.chat.completions.create()\n"
DEEP = "[" * 100_000
BLUEPRINT = "services: [{type: web, startCommand: %s}]"
BOMB = "a: &x0 [x, x]\n" + "".join(f"b{i}: &x{i + 1} [*x{i}, *x{i}]\n" for i in range(40))
NEXT_JS = '{"dependencies": {"next": "1"}, "scripts": {"start": "next start"}}'
EXPRESS = '{"dependencies": {"express": "1"}, "main": "server.js"}'

# What stands in the folder: a name and its text, None for a FIFO.
FOLDERS: dict[str, dict[str, str | bytes | None]] = {
    "a FIFO for requirements": {"requirements.txt": None},
    "a FIFO for code": {"main.py": None, "requirements.txt": "fastapi\n"},
    "a FIFO for package.json": {"package.json": None},
    "a FIFO for a Procfile": {"Procfile": None, "main.py": FASTAPI},
    "a FIFO for gunicorn's settings": {"gunicorn.conf.py": None, "Procfile": "web: gunicorn main:app\n"},
    "a FIFO for a script": {"start.sh": None, "Procfile": "web: sh start.sh\n"},
    "a FIFO for a variable's file": {".env": None, "requirements.txt": "openai\n"},
    "deep JSON": {"package.json": DEEP},
    "deep JSON of objects": {"package.json": '{"scripts":' * 100_000},
    "JSON of other shapes": {"package.json": '{"scripts": {"start": [1]}, "main": {}, "dependencies": ["x"]}'},
    "JSON with half a letter": {"package.json": '{"scripts": {"start": "node \\ud800"}, "dependencies": {"express": "1"}}'},
    "deep YAML": {"render.yaml": "services: " + DEEP},
    "a month that there is not": {"render.yaml": BLUEPRINT % "2024-13-45"},
    "a time that there is not": {"render.yaml": BLUEPRINT % "2024-02-31 25:61:61"},
    "a number without end": {"render.yaml": BLUEPRINT % ("9" * 5000)},
    "a tag of Python's": {"render.yaml": "a: !!python/object/apply:os.system [ls]"},
    "tags that do not fit": {"render.yaml": "a: !!timestamp no\nb: !!float no\nc: !!int no"},
    "aliases of aliases": {"render.yaml": BOMB + "services: [{type: web, startCommand: 'python main.py', name: *x40}]"},
    "a key that is a list": {"render.yaml": "{[a]: b}: c"},
    "a folder with NUL in it": {"render.yaml": 'services: [{type: web, startCommand: python x, rootDir: "a\\0b"}]'},
    "a folder with a long name": {"render.yaml": f"services: [{{type: web, startCommand: python x, rootDir: {'a' * 5000}}}]"},
    "deep TOML": {"pyproject.toml": "a = " + DEEP},
    "TOML of many tables": {"pyproject.toml": f"[{'.'.join(['a'] * 20_000)}]"},
    "a date of TOML that there is not": {"pyproject.toml": "a = 2024-02-31\n"},
    "TOML of other shapes": {"pyproject.toml": "project = 3\ntool = [1]\n"},
    "deep Python": {"main.py": FASTAPI + "x = " + "(" * 5000 + ")" * 5000},
    "deep Python of signs": {"main.py": FASTAPI + "x = " + "-" * 100_000 + "1"},
    "a long chain of Python": {"main.py": FASTAPI + "x = a" + ".b()" * 3000},
    "many branches of Python": {"main.py": FASTAPI + "if 1:\n pass\n" + "elif 1:\n pass\n" * 20_000},
    "NUL in Python": {"main.py": FASTAPI.encode() + b"x = 1\0"},
    "letters in a path": {"main.py": FASTAPI + '@app.get("/café/{user}")\ndef ask(user): ' + ASK},
    "half a letter in a path": {"main.py": FASTAPI + '@app.get("/\\ud800/{user}")\ndef ask(user): ' + ASK},
    "signs in a path": {"main.py": FASTAPI + '@app.get("/a b\\": #{x}/\\x00/{user}")\ndef ask(user): ' + ASK},
    "a path without a slash": {"main.py": FASTAPI + '@app.get("user?x")\ndef ask(): ' + ASK},
    "a user twice in a path": {"main.py": FASTAPI + '@app.get("/{user}/{user}/{a")\ndef ask(user): ' + ASK},
    "a path of 5,000 letters": {"main.py": FASTAPI + f'@app.get("/{"x" * 5000}")\ndef ask(): ' + ASK},
    "methods that are none": {"main.py": FASTAPI + '@app.route("/x", methods=["P OST", "É"])\ndef ask(): ' + ASK},
    "a health check that is no path": {"main.py": FASTAPI, "render.yaml": "services: [{type: web, startCommand: python main.py, healthCheckPath: '/é #?'}]"},
    "Express's own patterns": {"package.json": EXPRESS, "server.js": f"app.post('/café/:user?', x)\n{ASK}app.get('/a(.*)?[x]/:user', y)\n{ASK}"},
    "a route of Next's in odd folders": {"package.json": NEXT_JS, "app/[user]/[[...é]]/route.ts": f"export async function POST() {{ {ASK} }}"},
    "a file of a name in other bytes": {"caf\udce9.py": FASTAPI + '@app.get("/x/{user}")\ndef ask(user): ' + ASK},
    "a quote that nothing closes": {"Procfile": "web: gunicorn 'main:app\nworker: \0\n"},
    "a line without end": {"Procfile": "web: sh " + "a" * 400_000, "main.py": FASTAPI},
    "options without end": {"Procfile": "web: " + "-p " * 100_000},
    "spaces without end": {"package.json": EXPRESS, "server.js": "listen(" + " " * 200_000 + "base_url= " * 20_000},
    "words without end": {"main.py": FASTAPI + f'"""{"A: " * 100_000}"""\n' + "PORT" * 50_000},
    "a deep command of an image": {"Dockerfile": "FROM x\nCMD " + DEEP},
    "an image's command of other shapes": {"Dockerfile": 'FROM x\nENTRYPOINT ["a", {"b": 1}, null]\nCMD [1, 2]'},
    "a long number for a command": {"Dockerfile": "CMD " + "9" * 5000},
}  # fmt: skip


@pytest.fixture(autouse=True)
def end() -> Iterator[None]:
    """Who waits for a FIFO waits for ever: better a failure."""

    def waited(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fill(folder: Path, files: dict[str, str | bytes | None]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            os.mkfifo(path)
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS)
def test_init_ends_with_a_policy_or_a_sentence_and_doctor_with_findings(tmp_path, files):
    fill(tmp_path, files)
    out, err = io.StringIO(), io.StringIO()
    status = run_init([str(tmp_path)], out, err)
    assert status in (0, 1)
    if status == 0:
        load_policy(PolicySource("p", None, (tmp_path / "outrigger.yaml").read_text()), {})
    else:
        assert err.getvalue().startswith("init: ")
        assert "report this" not in err.getvalue()
    found = asyncio.run(look_at_app(Policy(), [], {"PATH": "/bin"}, tmp_path))
    assert found
    assert not any("could not be looked at" in one.text for one in found)


@pytest.mark.parametrize("made", [lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path), os.mkdir], ids=["zero", "loop", "folder"])  # fmt: skip
def test_a_name_that_is_no_file_is_passed_over(tmp_path: Path, made: Callable[[Path], None]) -> None:
    for name in ("main.py", "package.json", "requirements.txt", "render.yaml", "Dockerfile"):
        made(tmp_path / name)
    assert run_init([str(tmp_path)], io.StringIO(), io.StringIO()) == 1


def test_what_letters_outside_of_ascii_a_path_has_are_said_as_a_request_has_them(tmp_path):
    fill(tmp_path, FOLDERS["letters in a path"])
    assert run_init([str(tmp_path)], io.StringIO(), io.StringIO()) == 0
    assert "/caf%C3%A9/" in (tmp_path / "outrigger.yaml").read_text()


def test_doctor_does_not_wait_for_a_policy_or_a_program_that_is_a_fifo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "outrigger.yaml")
    out = io.StringIO()
    assert run_doctor([], {}, out, io.StringIO()) == 2
    assert "it is no file" in out.getvalue()
    (tmp_path / "bin").mkdir()
    os.mkfifo(tmp_path / "bin" / "served", 0o755)
    asyncio.run(look_at_app(Policy(), ["served", "x" * 5000], {"PATH": str(tmp_path / "bin")}, tmp_path))
    asyncio.run(look_at_app(Policy(), ["uwsgi", f"{'x' * 5000}.ini"], {"PATH": "/bin"}, tmp_path))
    asyncio.run(look_at_app(Policy(), ["uvicorn", f"{'x' * 5000}:app"], {"PATH": "/bin"}, tmp_path))
