"""What `init` makes of what lies in a folder: the start command, the port, and what no file says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from proxy.cli.detect.app import DetectedApp, detect_app
from proxy.cli.detect.port import set_port
from proxy.cli.detect.project_files import Folder
from proxy.cli.init import run_init
from proxy.policy.loading import load_policy, read_file

FASTAPI = {"requirements.txt": "fastapi\nuvicorn\n", "main.py": "app = FastAPI()\n"}
FLASK = {"requirements.txt": "flask\ngunicorn\n", "app.py": "app = Flask(__name__)\n"}
FACTORY = "def create_app(config=None):\n    return Flask(__name__)\n"
IMAGE = "FROM python:3.13\nEXPOSE 8000\n"
SERVED = "--host 0.0.0.0 --port $PORT"
NODE = '{"scripts": {%s}, "dependencies": {"express": "^5", "next": "^15"}}'


def laid(files: dict[str, str], at: Path) -> Path:
    for name, text in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(text)
    return at


def looked(files: dict[str, str], at: Path) -> DetectedApp:
    return detect_app(Folder(laid(files, at)))


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"pyproject.toml": '[project]\ndependencies = ["fastapi", "uvicorn"]', "src/shop/main.py": "app = FastAPI()"},
         f"uvicorn shop.main:app --app-dir src {SERVED}"),
        ({"requirements.txt": "fastapi\nuvicorn", "shop/__init__.py": "def create_app():\n    return FastAPI()"},
         f"uvicorn shop:create_app --factory {SERVED}"),
        ({"requirements.txt": "Flask\ngunicorn", "shop/__init__.py": FACTORY}, "gunicorn 'shop:create_app()'"),
        ({"requirements.txt": "Flask", "src/shop/__init__.py": FACTORY}, f"flask --app src/shop:create_app run {SERVED}"),
        ({"requirements.txt": "Flask\ngunicorn", "shop/__init__.py": FACTORY, "wsgi.py": "application = create_app()"},
         "gunicorn wsgi:application"),
        ({"requirements.txt": "flask\nwaitress", "shop/__init__.py": FACTORY},
         "waitress-serve --port $PORT --call shop:create_app"),
        ({"requirements.txt": "django\nuvicorn", "site/manage.py": "", "site/web/asgi.py": ""},
         f"uvicorn web.asgi:application --app-dir site {SERVED}"),
        ({"requirements.txt": "django", "site/manage.py": ""}, "python site/manage.py runserver --noreload 0.0.0.0:$PORT"),
        ({"requirements.txt": "streamlit", "Home.py": "import streamlit as st", "pages/a.py": "import streamlit as st"},
         "streamlit run Home.py --server.address 0.0.0.0 --server.headless true --server.port $PORT"),
        ({"Pipfile": "[packages]\nfastapi = '*'\n", "main.py": "app = FastAPI()"}, f"pipenv run uvicorn main:app {SERVED}"),
        # a start script, and whether it can be run as it is
        ({**FASTAPI, "start.sh": "#!/bin/bash\nexec uvicorn main:app --port $PORT\n"}, "bash start.sh"),
        ({**FASTAPI, "run.sh": "uvicorn main:app --port $PORT\n"}, "sh run.sh"),
        ({**FASTAPI, "run.sh": "rm -rf build\n"}, f"uvicorn main:app {SERVED}"),
        # Docker's forms
        ({**FLASK, "Dockerfile": IMAGE + 'ENTRYPOINT ["gunicorn", "app:app"]\nCMD ["--bind", "0.0.0.0:8000", "-w", "2"]'},
         "gunicorn app:app --bind 0.0.0.0:$PORT -w 2"),
        ({**FLASK, "Dockerfile": IMAGE + "ENTRYPOINT gunicorn app:app\nCMD ignored\n"}, "gunicorn app:app"),
        ({**FLASK, "Dockerfile": IMAGE + 'CMD ["sh", "-c", "gunicorn app:app -b :$PORT"]'}, "gunicorn app:app -b :$PORT"),
        # gunicorn's file of settings comes after the command line
        ({**FLASK, "gunicorn.conf.py": "bind = '0.0.0.0:8000'"}, "gunicorn app:app --bind 127.0.0.1:$PORT"),
        ({**FLASK, "gunicorn.conf.py": "bind = '0.0.0.0:' + os.environ['PORT']"}, "gunicorn app:app"),
        ({**FLASK, "conf/g.py": "bind = 'unix:/tmp/s'", "Procfile": "web: gunicorn -c conf/g.py app:app"},
         "gunicorn -c conf/g.py app:app --bind 127.0.0.1:$PORT"),
        ({**FLASK, "gunicorn.conf.py": "bind = ':8000'", "Procfile": "web: gunicorn app:app -b :$PORT"},
         "gunicorn app:app -b :$PORT"),
        # npm only where nothing else can run it
        ({"package.json": NODE % '"start": "node dist/server.js"'}, "node dist/server.js"),
        ({"package.json": NODE % '"start": "next start -p 3000"'}, "node_modules/.bin/next start -p $PORT"),
        ({"package.json": NODE % '"start": "node a.js"', "Procfile": "web: npm start"}, "node a.js"),
        ({"package.json": NODE % '"start": "next start"', ".pnp.cjs": ""}, "npm start"),
        ({"package.json": NODE % '"start": "node a.js", "prestart": "node b.js"'}, "node b.js && node a.js"),
        ({"package.json": NODE % '"start": "node a.js", "prestart": "cp x y > z"'}, "npm start"),
        ({"package.json": NODE % '"start": "NODE_ENV=production node a.js && echo"', "yarn.lock": ""}, "yarn start"),
        # a page beside an app in Python is not what is started
        ({**FASTAPI, "package.json": NODE % '"start": "vite preview"'}, f"uvicorn main:app {SERVED}"),
        ({"Procfile": "release: ./migrate\nclock: python clock.py\nmail_worker: python mail.py", "mail.py": "",
          "requirements.txt": "requests"}, "python mail.py"),
    ],
)  # fmt: skip
def test_the_start_command_is_what_the_layout_says(files: dict[str, str], line: str, tmp_path: Path) -> None:
    found = looked(files, tmp_path).start
    assert found is not None
    assert found.line == line


@pytest.mark.parametrize(
    ("files", "port", "where"),
    [
        ({**FASTAPI, "Procfile": "web: ./start.sh", "start.sh": "uvicorn main:app --port 8000"}, 8000, "start.sh"),
        ({**FASTAPI, "Procfile": "web: ./start.sh", "start.sh": "uvicorn main:app --port ${PORT:-8000}"}, None, ""),
        ({"package.json": NODE % '"start": "PORT=3000 node a.js && echo"'}, 3000, "package.json"),
        ({"package.json": NODE % '"start": "sh go.sh && echo"', "go.sh": "node a.js", "a.js": "x.listen(3000)"}, 3000, "a.js"),
        ({"package.json": NODE % '"start": "node a.js"', "a.js": "x.listen(3000)"}, 3000, "a.js"),
        ({"package.json": NODE % '"start": "node a.js"', "a.js": "const port = 3000;\nx.listen(port)"}, 3000, "a.js"),
        ({"package.json": NODE % '"start": "node a.js"', "a.js": "x.listen(process.env.PORT || 3000)"}, None, ""),
        ({"main.py": "PORT = 8123\nuvicorn.run(app, port=PORT)", "Procfile": "web: python main.py"}, 8123, "main.py"),
        ({"main.py": 'uvicorn.run(app, port=int(os.environ.get("PORT", 8123)))', "Procfile": "web: python main.py"}, None, ""),
        ({"main.py": "uvicorn.run(app, port=80)", "Procfile": "web: python main.py"}, None, ""),
    ],
)  # fmt: skip
def test_a_port_that_a_file_fixes_is_found_and_named(
    files: dict[str, str], port: int | None, where: str, tmp_path: Path
) -> None:
    app = looked(files, tmp_path)
    assert (app.fixed_port, app.fixed_port_file) == (port, where)


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ({**FLASK, "Procfile": "web: gunicorn app:app\nworker: python w.py"},
         "Procfile also starts worker: these stay as they are, and go round the gateway"),
        ({**FASTAPI, "start.sh": "uvicorn main:app --port $PORT\n"}, "start.sh has no `exec` before its server"),
        ({"package.json": NODE % '"start": "tsc && node a.js"'}, "`npm start` passes no SIGTERM on"),
        ({**FASTAPI, "start.sh": "exec uvicorn main:app --port 10000"}, "start.sh fixes port 10000, which the gateway takes"),
        ({**FASTAPI, "start.sh": "exec uvicorn main:app --port 8000", "Dockerfile": "CMD ./start.sh"},
         "start.sh fixes port 8000, so the gateway has another (PORT, else 10000): publish that one"),
    ],
)  # fmt: skip
def test_what_no_file_says_is_one_sentence(files: dict[str, str], note: str, tmp_path: Path) -> None:
    (found,) = looked(files, tmp_path).notes
    assert found.startswith(note)


@pytest.mark.parametrize(
    ("files", "port"),
    [
        ({**FLASK, "Dockerfile": "CMD gunicorn app:app -b :${PORT:-5000}"}, 5000),
        ({**FLASK, "Dockerfile": IMAGE + "CMD gunicorn app:app"}, 8000),
        ({**FLASK, "Dockerfile": IMAGE + "CMD gunicorn app:app -b :8080"}, 8080),
    ],
)
def test_an_image_keeps_the_port_that_it_had(files: dict[str, str], port: int, tmp_path: Path) -> None:
    _, out, _ = said(laid(files, tmp_path))
    assert f"\n    ENV PORT={port}\n" in out


def test_the_routes_of_next_are_those_of_its_files(tmp_path: Path) -> None:
    asks = "export async function POST(r) { await openai.chat.completions.create({}); }"
    files = {
        "package.json": NODE % '"start": "next start"',
        "app/(shop)/api/users/[userId]/ask/route.ts": asks,
        "src/app/api/health/route.js": "export const GET = () => 1;\nexport function HEAD() {}",
        "pages/api/old/index.js": "export default function handler() {}",
        "app/page.js": "export default function Page() {}",
    }
    app = looked(files, tmp_path)
    found = {one.path: (one.methods, one.calls_model) for one in app.routes}
    assert found == {
        "/api/users/{userId}/ask": (("POST",), True),
        "/api/health": (("GET",), False),
        "/api/old": ((), False),
    }
    assert app.health_path == "/api/health"


BLUEPRINT = """
services:
  - {type: web, name: api, rootDir: ./api, startCommand: "uvicorn main:app --port $PORT", healthCheckPath: /up}
  - {type: web, name: admin, rootDir: admin, startCommand: gunicorn app:app}
  - {type: web, name: page, runtime: static, buildCommand: npm run build}
  - {type: worker, name: jobs, startCommand: python jobs.py}
"""


def said(folder: Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return run_init([str(folder)], out, err), out.getvalue(), err.getvalue()


def test_several_services_of_a_blueprint_are_named_and_each_is_known_in_its_folder(tmp_path: Path) -> None:
    files = {"render.yaml": BLUEPRINT}
    files |= {f"api/{name}": text for name, text in FASTAPI.items()}
    files |= {f"admin/{name}": text for name, text in FLASK.items()}
    laid(files, tmp_path)
    status, _, err = said(tmp_path)
    assert status == 1
    assert err == (
        f"init: there are several apps ({tmp_path}/admin, {tmp_path}/api); name one, as in `init {tmp_path}/admin`\n"
    )
    assert list(tmp_path.rglob("outrigger.yaml")) == []
    status, out, _ = said(tmp_path / "api")
    assert status == 0
    assert "'uvicorn main:app --port $PORT'" in out
    assert "(from render.yaml)" in out
    assert "render.yaml also starts admin, page, jobs" in out
    assert load_policy(read_file(tmp_path / "api" / "outrigger.yaml", "x"), {}).app.ready.path == "/up"


def test_a_worker_has_no_public_port_and_no_limits(tmp_path: Path) -> None:
    laid({"Procfile": "worker: python w.py", "requirements.txt": "openai", "w.py": ""}, tmp_path)
    status, out, _ = said(tmp_path)
    assert status == 0
    assert "Health check path" not in out
    policy = load_policy(read_file(tmp_path / "outrigger.yaml", "x"), {})
    assert policy.listen.public is None
    assert [route.name for route in policy.routes] == ["default"]
    assert policy.upstreams["openai"].cap.total is not None


@pytest.mark.parametrize(
    ("line", "as_started"),
    [
        ("uvicorn main:app", "uvicorn main:app --port $PORT"),
        ("uvicorn main:app --port=8000", "uvicorn main:app --port=$PORT"),
        ("uvicorn main:app --port ${PORT:-8000}", "uvicorn main:app --port ${PORT:-8000}"),
        ("gunicorn -k uvicorn.workers.UvicornWorker main:app", "gunicorn -k uvicorn.workers.UvicornWorker main:app"),
        ("gunicorn app:app -b 0.0.0.0:5000", "gunicorn app:app -b 0.0.0.0:$PORT"),
        ("hypercorn main:app", "hypercorn main:app --bind 0.0.0.0:$PORT"),
        ("python manage.py runserver 8000", "python manage.py runserver 0.0.0.0:$PORT"),
        ("flask run", "flask run --port $PORT"),
        ("waitress-serve --port=8080 a:b", "waitress-serve --port=$PORT a:b"),
        ("streamlit run app.py", "streamlit run app.py --server.port $PORT"),
        ("next start -p 3000", "next start -p $PORT"),
        ("EXPORT=1 uvicorn main:app", "EXPORT=1 uvicorn main:app --port $PORT"),
        ("node server.js", "node server.js"),
    ],
)
def test_the_app_is_told_its_port(line, as_started):
    assert set_port(line)[0] == as_started
