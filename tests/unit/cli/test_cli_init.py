"""`init` on apps as people lay them out: what it finds, what it writes, what it leaves alone."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from proxy.cli.init import run_init, wrap_start_command
from proxy.errors import UsageError
from proxy.policy.loading import load_policy, read_file
from proxy.policy.schema import HeaderSource, PathSource

LAYOUTS = Path(__file__).parents[2] / "layouts"
RUN = ".outrigger/bin/outrigger -- "
# Where the policy goes, the start command, the app's health path, the routes of their own, what is warned of.
FOUND = {
    "fastapi_procfile": (
        "", f"{RUN}'uvicorn main:app --host 0.0.0.0 --port $PORT'", "/health", ["ask", "story", "health"], "main.py:4",
    ),
    "fastapi_render": (
        "", "--forwarded-allow-ips", "/api/ping", ["chat", "health"], "the start command",
    ),
    "flask_procfile": ("", f"{RUN}gunicorn app:app --workers 2\n", "/healthz", ["summary", "health"], "app.py:5"),
    "flask_factory": ("", f"{RUN}\"gunicorn 'shop:create_app()'\"\n", None, [], ""),
    "django_gunicorn": ("", f"{RUN}gunicorn mysite.wsgi:application\n", None, [], "mysite/settings.py:4: INTERNAL_IPS"),
    "django_uvicorn": (
        "", f"{RUN}'uvicorn mysite.asgi:application --host 0.0.0.0 --port $PORT'", None, [], "INTERNAL_IPS",
    ),
    "node_express": ("", f"{RUN}node server.js\n", "/healthz", ["users-ask", "health"], "server.js:17"),
    "node_procfile": ("", f"{RUN}node server.js\n", None, [], ""),
    "dockerfile": (
        "", 'ENV PORT=8000\n    CMD ["/opt/outrigger/bin/outrigger", "--", "uvicorn main:app --host 0.0.0.0 --port $PORT"]',
        None, [], "",
    ),
    "poetry": (
        "", f"{RUN}'poetry run uvicorn notes.main:service --host 0.0.0.0 --port $PORT'", "/up", ["health"], "",
    ),
    "uv": ("", f"{RUN}'uv run uvicorn main:app --host 0.0.0.0 --port $PORT'", None, ["complete"], ""),
    "monorepo": (
        "backend", f"{RUN}'uvicorn main:app --host 0.0.0.0 --port $PORT'", "/health", ["health"], "",
    ),
    "django_below": (
        "", f"{RUN}gunicorn --chdir src config.wsgi:application\n", None, [], "src/config/settings/local.py:3: INTERNAL_IPS",
    ),
    "gunicorn_conf": ("", f"{RUN}'gunicorn app:app --bind 127.0.0.1:$PORT'\n", None, [], ""),
    "hard_port": ("", f"{RUN}python server.py\n", None, [], ""),
}  # fmt: skip


def made(name: str, tmp: Path) -> tuple[int, str, str, Path]:
    shutil.copytree(LAYOUTS / name, tmp / name)
    out, err = io.StringIO(), io.StringIO()
    return run_init([str(tmp / name)], out, err), out.getvalue(), err.getvalue(), tmp / name


@pytest.mark.parametrize("name", FOUND)
def test_a_policy_is_written_that_can_be_taken_and_the_start_is_said(name, tmp_path):
    below, start, health, routes, warned = FOUND[name]
    status, out, err, folder = made(name, tmp_path)
    assert (status, err) == (0, "")
    policy = load_policy(read_file(folder / below / "outrigger.yaml", "outrigger.yaml"), {})
    assert start in out
    assert policy.app.ready.path == health
    own = [route.name for route in policy.routes if route.name not in ("default", "static")]
    assert sorted(own) == sorted(routes)
    assert warned in out
    assert ("Look at" in out) == bool(warned)
    before = {path.relative_to(LAYOUTS / name) for path in (LAYOUTS / name).rglob("*")}
    after = {path.relative_to(folder) for path in folder.rglob("*")}
    assert {str(path) for path in after - before} <= {str(Path(below) / "outrigger.yaml")}
    for path in before:
        if (LAYOUTS / name / path).is_file():
            assert (folder / path).read_bytes() == (LAYOUTS / name / path).read_bytes()


@pytest.mark.parametrize("name", FOUND)
def test_every_line_that_switches_something_on_says_why(name, tmp_path):
    _, _, _, folder = made(name, tmp_path)
    text = (folder / FOUND[name][0] / "outrigger.yaml").read_text()
    bare = [line for line in text.splitlines() if line.strip() and "#" not in line and "{when: " not in line]
    known = (
        "version:",
        "app:",
        "listen:",
        "identity:",
        "overload:",
        "upstreams:",
        "postgres:",
        "- name:",
        "alerts:",
    )
    assert [line for line in bare if not line.strip().startswith(known)] == []


def test_what_the_code_says_of_users_and_money_is_in_the_policy(tmp_path):
    _, _, _, folder = made("fastapi_procfile", tmp_path)
    policy = load_policy(read_file(folder / "outrigger.yaml", "x"), {"DATABASE_URL": "postgresql://u@h/d"})
    assert policy.identity.user[0] == PathSource("/api/user/{user}/*")
    assert policy.upstreams["openai"].cap.total is not None
    assert not policy.upstreams["openai"].cap.per_user
    assert policy.app.attribution == "on"
    assert policy.postgres.url == "postgresql://u@h/d"
    routes = {route.name: route for route in policy.routes}
    assert routes["ask"].requires_budget
    assert (routes["ask"].enforce, routes["story"].enforce, routes["default"].enforce) == (False, False, False)
    assert "JWT_KEY" in (folder / "outrigger.yaml").read_text()


def test_a_header_that_names_users_and_another_vendor_are_found(tmp_path):
    _, _, _, folder = made("fastapi_render", tmp_path)
    policy = load_policy(read_file(folder / "outrigger.yaml", "x"), {})
    assert policy.identity.user[0] == HeaderSource("X-User-Id")
    assert list(policy.upstreams) == ["anthropic"]


def test_a_port_in_the_code_is_the_apps_port(tmp_path):
    _, _, _, folder = made("hard_port", tmp_path)
    assert load_policy(read_file(folder / "outrigger.yaml", "x"), {}).app.port == 8123


@pytest.mark.parametrize("there", ["outrigger.yaml", "config/policy.yaml"])
def test_a_policy_that_is_there_is_left_as_it_is(there, tmp_path):
    shutil.copytree(LAYOUTS / "uv", tmp_path / "uv")
    file = tmp_path / "uv" / there
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine: true\n")
    out, err = io.StringIO(), io.StringIO()
    assert run_init([str(tmp_path / "uv")], out, err) == 1
    assert file.read_text() == "mine: true\n"
    assert [path.name for path in (tmp_path / "uv").rglob("*.yaml")] == [file.name]
    assert "was left as it is" in err.getvalue()
    assert "Start command" in out.getvalue()


def test_several_apps_are_named_and_none_chosen(tmp_path):
    for name in ("one", "two"):
        shutil.copytree(LAYOUTS / "uv", tmp_path / name)
    err = io.StringIO()
    assert run_init([str(tmp_path)], io.StringIO(), err) == 1
    assert "there are several apps" in err.getvalue()
    assert not list(tmp_path.rglob("outrigger.yaml"))


def test_a_folder_without_an_app_says_so(tmp_path):
    err = io.StringIO()
    assert run_init([str(tmp_path)], io.StringIO(), err) == 1
    assert "no app was found" in err.getvalue()
    for words in (["a", "b"], ["--force"], [str(tmp_path / "nowhere")]):
        with pytest.raises(UsageError):
            run_init(words, io.StringIO(), io.StringIO())


def test_names_with_anything_in_them_make_no_policy_but_what_is_meant(tmp_path):
    folder = tmp_path / "a\nroutes: off\n# b"
    shutil.copytree(LAYOUTS / "uv", folder)
    (folder / "x\nlisten: 1.py").write_text('@app.get("/{user}/\\"x")\ndef x():\n    client.responses.create()\n')
    assert run_init([str(folder)], io.StringIO(), io.StringIO()) == 0
    assert load_policy(read_file(folder / "outrigger.yaml", "x"), {}).routes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("node server.js", "node server.js"),
        ("uvicorn a:b --port $PORT", "'uvicorn a:b --port $PORT'"),
        ("python migrate.py && gunicorn a:b", "'python migrate.py && gunicorn a:b'"),
        ("gunicorn 'a:b()'", "\"gunicorn 'a:b()'\""),
        ("./start.sh", "./start.sh"),
    ],
)
def test_a_line_for_a_shell_is_one_word(line, said):
    assert wrap_start_command(line) == f".outrigger/bin/outrigger -- {said}"
