"""Apps of many kinds, as `init` reads them: how they start, what they need, whom they call, who acts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from proxy.cli.detect.app import DetectedApp, detect_app
from proxy.cli.detect.port import set_port
from proxy.cli.detect.project_files import Folder
from proxy.cli.init import run_init
from proxy.policy.loading import load_policy, read_file
from proxy.policy.schema import CookieSource, HeaderSource, IpSource, JwtSource, PathSource, Policy

ALL = "--host 0.0.0.0 --port $PORT"
NODE = '{"main": "server.js", "scripts": {%s}, "dependencies": {"express": "5"}, "devDependencies": {"ts-node": "1", "prisma": "6"}}'
PAGES = "@app.get('/user/{name}')\ndef page(name): pass\n@app.get('/teams/{id}/members/{m}/edit')\ndef edit(m): pass\n"
FLASK = "from flask import Flask, session\napp = Flask(__name__)\n@app.get('/user/<name>')\ndef page(name): return session['x']\n"
CALL = "from openai import OpenAI\n@app.post('/ask')\ndef ask(): return OpenAI().chat.completions.create()\n"


def laid(files: dict[str, str | bytes], at: Path) -> Path:
    for name, text in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return at


def looked(files: dict[str, str | bytes], at: Path) -> DetectedApp:
    return detect_app(Folder(laid(files, at)))


def written(files: dict[str, str | bytes], at: Path, **environ: str) -> Policy:
    """What `init` writes, taken."""
    err = io.StringIO()
    assert run_init([str(laid(files, at))], io.StringIO(), err) == 0, err.getvalue()
    return load_policy(read_file(at / "outrigger.yaml", "outrigger.yaml"), environ)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"requirements.txt": "chainlit\nopenai", "app.py": "import chainlit as cl\n"},
         "chainlit run app.py --headless --host 0.0.0.0 --port $PORT"),
        ({"requirements.txt": "gradio", "demo.py": "import gradio as gr\ngr.Interface(f).launch()\n"},
         "GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=$PORT python demo.py"),
        ({"requirements.txt": "gradio", "Procfile": "web: python demo.py", "demo.py": "import gradio as gr\nx.launch()\n"},
         "GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=$PORT python demo.py"),
        ({"requirements.txt": "gradio", "demo.py": "import gradio as gr\nx.launch(server_port=7860)\n"}, "python demo.py"),
        ({"requirements.txt": "open-webui"}, f"open-webui serve {ALL}"),
        ({"requirements.txt": "litellm[proxy]", "config.yaml": "model_list: [{model_name: x}]"},
         f"litellm --config config.yaml {ALL}"),
        ({"requirements.txt": "jupyterlab"}, "jupyter lab --no-browser --ip 0.0.0.0 --port $PORT"),
        ({"requirements.txt": "datasette", "x.db": b""}, "datasette serve x.db -h 0.0.0.0 -p $PORT"),
        ({"main.py": "import streamlit as st\n"},
         "streamlit run main.py --server.address 0.0.0.0 --server.headless true --server.port $PORT"),
        ({"main.py": "from fastapi import FastAPI\nimport uvicorn\napp = FastAPI()\n"}, f"uvicorn main:app {ALL}"),
        # what restarts an app at each change of a file is not what is started
        ({"package.json": NODE % '"start": "nodemon app.js"'}, "node app.js"),
        ({"package.json": NODE % '"start": "nodemon --watch src -e ts src/app.ts"'}, "node_modules/.bin/ts-node src/app.ts"),
        ({"package.json": NODE % '"start": "nodemon"'}, "node server.js"),
        ({"package.json": NODE % '"start": "tsc"', "Procfile": "web: npx nodemon app.js"}, "node app.js"),
        ({"package.json": NODE % '"serve": "nodemon app.js"', "Procfile": "web: npm run serve"}, "node app.js"),
        # migrations come before the start, whoever began them
        ({"package.json": NODE % '"start": "node a.js", "prestart": "prisma migrate deploy"'},
         "node_modules/.bin/prisma migrate deploy && node a.js"),
        ({"requirements.txt": "fastapi\nuvicorn", "Procfile": "web: alembic upgrade head && uvicorn main:app --port 8000"},
         "alembic upgrade head && uvicorn main:app --port $PORT"),
    ],
)  # fmt: skip
def test_the_start_command_is_the_kinds_own(files, line, tmp_path):
    found = looked(files, tmp_path).start
    assert found is not None
    assert found.line == line


@pytest.mark.parametrize(
    ("line", "as_started"),
    [
        ("streamlit run a.py --server.port 8501", "streamlit run a.py --server.port $PORT"),
        ("server --http-port=8080", "server --http-port=$PORT"),
        ("serve -P 8080", "serve -P $PORT"),
        ("jupyter lab --ServerApp.port=8888", "jupyter lab --ServerApp.port=$PORT"),
        ("uwsgi --http :8000 -w a:b", "uwsgi --http :$PORT -w a:b"),
        ("waitress-serve --listen=*:8080 a:b", "waitress-serve --listen=*:$PORT a:b"),
        ("server --port 8000 --metrics-port 9090", "server --port $PORT --metrics-port 9090"),
        ("chainlit run app.py", "chainlit run app.py --port $PORT"),
    ],
)
def test_ports_are_known_by_whatever_option(line, as_started):
    assert set_port(line)[0] == as_started


@pytest.mark.parametrize(
    ("files", "port", "where"),
    [
        ({"package.json": NODE % '"start": "node ."', "server.js": "const port = 8000\napp.listen(port)"}, 8000, "server.js"),
        ({"package.json": NODE % '"start": "nodemon a"', "a.js": "export const PORT: number = 8000"}, 8000, "a.js"),
        ({"package.json": NODE % '"start": "node a.js"', "a.js": "require('./b')", "b.js": "x.listen(3000)"}, 3000, "b.js"),
        ({"requirements.txt": "gradio", "a.py": "import gradio\nx.launch(server_port=7860)"}, 7860, "a.py"),
        ({"Procfile": "web: uwsgi --ini conf/u.ini", "conf/u.ini": "[uwsgi]\nhttp = :8000\n", "manage.py": ""}, 8000, "conf/u.ini"),
    ],
)  # fmt: skip
def test_a_port_in_the_code_is_found(files, port, where, tmp_path):
    app = looked(files, tmp_path)
    assert (app.fixed_port, app.fixed_port_file) == (port, where)


@pytest.mark.parametrize(
    "files",
    [
        {"requirements.txt": "\ufefffastapi\r\nopenai\r\npsycopg2-binary\r\n"},
        {"requirements.txt": "fastapi\r\nopenai\r\npsycopg2-binary\r\n".encode("utf-16")},
        {"requirements.txt": "-r deploy/all.txt\n", "deploy/all.txt": "--requirement more.txt\nfastapi", "deploy/more.txt": "openai>1\npsycopg2-binary"},
        {"requirements.txt": "-r requirements.txt\nfastapi\nopenai\npsycopg2-binary"},
        {"pyproject.toml": "[project]\ndependencies = ['fastapi', 'openai>=1']\n[project.optional-dependencies]\ndb = ['psycopg2-binary']"},
        {"pyproject.toml": "[tool.poetry.dependencies]\nfastapi = '*'\n[tool.poetry.group.main.dependencies]\nopenai = '1'\npsycopg2-binary = '2'"},
        {"setup.py": "setup(install_requires=['fastapi', 'openai', 'psycopg2-binary'])"},
    ],
)  # fmt: skip
def test_what_an_app_needs_is_read_wherever_it_is_listed(files, tmp_path):
    assert {"fastapi", "openai", "psycopg2-binary"} <= looked(files, tmp_path).packages


def test_what_no_file_lists_is_seen_by_what_is_imported(tmp_path):
    app = looked({"main.py": "import os, openai\nfrom fastapi import FastAPI\nimport psycopg2.extras\n"}, tmp_path)
    assert {"openai", "fastapi", "psycopg2"} <= app.packages
    assert app.framework == "fastapi"


@pytest.mark.parametrize(
    ("code", "environ", "env", "base"),
    [
        ("OpenAI()", {}, ["OPENAI_BASE_URL", "OPENAI_API_BASE"], "https://api.openai.com/v1"),
        ("OpenAI(base_url=os.environ['OPENAI_API_BASE_URL'])", {"OPENAI_API_BASE_URL": "https://llm.example/v1"},
         ["OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_BASE_URL"], "https://llm.example/v1"),
        ("OpenAI(base_url=os.getenv('LLM_URL', 'https://openrouter.ai/api/v1'))", {},
         ["OPENAI_BASE_URL", "OPENAI_API_BASE", "LLM_URL"], "https://openrouter.ai/api/v1"),
        ("OpenAI(base_url=os.getenv('LLM_URL', 'https://openrouter.ai/api/v1'))", {"LLM_URL": "http://10.0.0.7/v1"},
         ["OPENAI_BASE_URL", "OPENAI_API_BASE", "LLM_URL"], "http://10.0.0.7/v1"),
    ],
)  # fmt: skip
def test_the_variables_that_lead_to_a_vendor_are_those_that_the_code_reads(code, environ, env, base, tmp_path):
    found = written({"main.py": f"import os\nfrom openai import OpenAI\nclient = {code}\n"}, tmp_path, **environ)
    assert list(found.upstreams["openai"].env) == env
    assert found.upstreams["openai"].base_url == base
    assert found.app.attribution == "on"


def test_an_address_in_the_code_is_said_to_go_round(tmp_path):
    app = looked(
        {"main.py": "from openai import OpenAI\nc = OpenAI(base_url='https://openrouter.ai/api/v1')\n"}, tmp_path
    )
    assert any("main.py:2 names https://openrouter.ai/api/v1 itself" in note for note in app.notes)


def test_a_database_by_parts_is_written_as_parts(tmp_path):
    code = (
        "import os, psycopg2\npsycopg2.connect(host=os.environ['DB_HOST'], port=os.getenv('DB_PORT', '5433'),\n"
        "  user=os.getenv('DB_USER', 'shop'), password=os.environ['DB_PASSWORD'], dbname=os.environ['DB_NAME'])\n"
    )
    found = written({"main.py": code}, tmp_path, DB_HOST="db.example", DB_PASSWORD="s3cret", DB_NAME="shop")
    assert found.postgres.url == "postgresql://shop:s3cret@db.example:5433/shop"
    parts = {"DB_HOST": "host", "DB_PORT": "port", "DB_USER": "user", "DB_PASSWORD": "password", "DB_NAME": "database"}
    assert dict(found.postgres.env) == parts
    assert load_policy(read_file(tmp_path / "outrigger.yaml", "x"), {}).postgres.url


@pytest.mark.parametrize(
    ("files", "url"),
    [
        ({"app/config.py": "class Settings(BaseSettings):\n    POSTGRES_SERVER: str\n    POSTGRES_PORT: int = 5434\n    POSTGRES_USER: str = 'app'\n    POSTGRES_PASSWORD: str = 'p/w'\n    POSTGRES_DB: str\n",
          "requirements.txt": "fastapi\npsycopg[binary]"}, "postgresql://app:p%2Fw@pg:5434/d"),
        ({"a.js": "const c = new Pool({host: process.env.PGHOST, port: process.env.PGPORT || 6000, user: process.env.PGUSER ?? 'web', password: process.env.PGPASSWORD, database: process.env.PGDATABASE})",
          "package.json": '{"dependencies": {"pg": "8"}, "scripts": {"start": "node a.js"}}'}, "postgresql://web:s@pg:6000/d"),
        ({"manage.py": "DATABASES = {'default': {'HOST': os.environ.get('DB_HOST'), 'PORT': os.environ.get('DB_PORT', 5435), 'NAME': os.environ.get('DB_NAME', 'd'), 'USER': os.environ['DB_USER'], 'PASSWORD': os.environ['DB_PASSWORD']}}",
          "requirements.txt": "django\npsycopg2-binary"}, "postgresql://u:s@pg:5435/d"),
        ({"manage.py": "DATABASES = {'default': dj_database_url.config()}", "requirements.txt": "django\npsycopg2-binary\ndj-database-url"}, "postgresql://h/x"),
    ],
)  # fmt: skip
def test_a_databases_parts_have_the_codes_own_defaults(files, url, tmp_path):
    environ = {
        "POSTGRES_SERVER": "pg",
        "PGHOST": "pg",
        "DB_HOST": "pg",
        "DB_USER": "u",
        "DB_PASSWORD": "s",
        "PGPASSWORD": "s",
        "PGDATABASE": "d",
        "POSTGRES_DB": "d",
        "DATABASE_URL": "postgresql://h/x",
    }
    assert written(files, tmp_path, **environ).postgres.url == url


def test_a_database_with_a_part_that_no_variable_has_is_left_alone_and_that_is_said(tmp_path):
    code = "import os, psycopg2\npsycopg2.connect(host=os.environ['DB_HOST'], user=os.environ['DB_USER'], dbname='x')\n"
    found = written({"main.py": code}, tmp_path, DB_HOST="h", DB_USER="u")
    assert found.postgres.url is None
    assert any(
        "its port, password, database by no variable: no pool" in note for note in detect_app(Folder(tmp_path)).notes
    )


def test_a_database_by_another_variable_is_written_by_its_name(tmp_path):
    found = written(
        {"main.py": "import os, asyncpg\nx = os.environ['POSTGRES_URL']"}, tmp_path, POSTGRES_URL="postgresql://h/d"
    )
    assert found.postgres.url == "postgresql://h/d"
    assert dict(found.postgres.env) == {"POSTGRES_URL": "url"}


@pytest.mark.parametrize(
    ("files", "sources"),
    [
        ({"main.py": FLASK}, [CookieSource("session")]),
        ({"requirements.txt": "django", "manage.py": "", "s/settings.py": "INSTALLED_APPS = ['django.contrib.sessions']\nSESSION_COOKIE_NAME = 'sid'"},
         [CookieSource("sid")]),
        ({"package.json": NODE % '"start": "node a.js"', "a.js": "import x from 'express-session'\napp.use(session({secret: 's'}))\napp.get('/user/:name', f)"},
         [CookieSource("connect.sid")]),
        ({"main.py": PAGES + "@app.get('/x')\ndef x(request): return request.cookies.get('access_token')\n"}, [CookieSource("access_token")]),
        ({"requirements.txt": "open-webui"}, [CookieSource("token")]),
        ({"main.py": PAGES + "x = request.cookies.get('sidebar')\ny = request.cookies['csrf_token']\nz = request.cookies.get('author_id')\n"},
         [PathSource("/user/{user}"), PathSource("/teams/*/members/{user}/*")]),
        ({"main.py": PAGES + "def who(h = Header('X-User-Id')): pass\n"}, [HeaderSource("X-User-Id")]),
        ({"main.py": PAGES + "from starlette.middleware.sessions import SessionMiddleware\n"}, []),
        ({"main.py": PAGES}, [PathSource("/user/{user}"), PathSource("/teams/*/members/{user}/*")]),
    ],
)  # fmt: skip
def test_who_acts_is_named_and_a_path_only_where_nothing_better_is_there(files, sources, tmp_path):
    files.setdefault("requirements.txt", "fastapi\nuvicorn\n")
    found = written(files, tmp_path)
    assert [one for one in found.identity.user if not isinstance(one, IpSource)] == sources


def test_every_user_path_is_there_and_what_it_means_is_said(tmp_path):
    words = ("user", "account", "customer", "member")
    code = "".join(f"@app.get('/{word}s/{{{word}_id}}/x')\ndef {word}(): pass\n" for word in words)
    found = written({"requirements.txt": "fastapi", "main.py": "app = FastAPI()\n" + code}, tmp_path)
    assert len([one for one in found.identity.user if isinstance(one, PathSource)]) == 4
    text = (tmp_path / "outrigger.yaml").read_text()
    assert "They say whose page is looked at, not who looks" in text


def test_a_token_names_its_user_and_without_its_key_nobody(tmp_path):
    code = PAGES + (
        "SECRET = os.environ['JWT_SECRET']\ndef who(token):\n    payload = jwt.decode(token, SECRET, algorithms=['HS512'])\n"
        "    return payload.get('user_id')\n"
    )
    found = written(
        {"requirements.txt": "fastapi\npyjwt", "main.py": "app = FastAPI()\n" + code}, tmp_path, JWT_SECRET="k" * 40
    )
    assert found.identity.user[0] == JwtSource("k" * 40, claim="user_id", algorithms=("HS512",))
    first, second = (load_policy(read_file(tmp_path / "outrigger.yaml", "x"), {}).identity.user[0] for _ in range(2))
    assert isinstance(first, JwtSource)
    assert len(first.key) > 30
    assert first == second


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("client.chat.completions.create()", "calls a model"),
        ("requests.get('https://vendor.example')", "calls another host"),
    ],
)
def test_a_health_path_that_asks_others_is_no_probe(body, said, tmp_path):
    files = {
        "requirements.txt": "fastapi",
        "main.py": f"app = FastAPI()\n@app.get('/health')\ndef health(): return {body}\n",
    }
    found = written(files, tmp_path)
    assert found.app.ready.path is None
    assert said in (tmp_path / "outrigger.yaml").read_text()


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("streamlit run a.py --server.port $PORT", "/_stcore/health"),
        ("/venv/bin/litellm --config c.yaml --port $PORT", "/health/liveliness"),
        ("open-webui serve --port $PORT", "/health"),
        ("gunicorn a:b", None),
    ],
)
def test_a_programs_own_health_path_is_known(line, path, tmp_path):
    assert written({"Procfile": f"web: {line}", "requirements.txt": "openai"}, tmp_path).app.ready.path == path


@pytest.mark.parametrize(
    "code",
    [
        "@app.get('/x')\ndef x(): return Response(parts(), mimetype='text/event-stream')\n",
        "@app.get('/x')\ndef x(): return StreamingResponse(parts())\n",
    ],
)
def test_what_streams_has_no_timeout_and_no_place(code, tmp_path):
    found = written({"requirements.txt": "flask", "app.py": "app = Flask(__name__)\n" + code}, tmp_path)
    (route,) = (route for route in found.routes if route.match.path == "/x")
    assert (route.timeout, route.total, route.concurrency, route.rate_limit) == (None, None, None, {})


def test_a_plain_health_path_says_when_it_is_ready_and_the_port_that_it_is_alive(tmp_path):
    files = {"requirements.txt": "fastapi", "main.py": "app = FastAPI()\n@app.get('/health')\ndef health(): return 1\n"}
    found = written(files, tmp_path)
    assert found.app.ready.path == "/health"
    assert found.app.liveness is not None
    assert found.app.liveness.path is None


def test_files_count_against_no_limit_and_nothing_refuses(tmp_path):
    code = f"app = FastAPI()\napp.mount('/assets', StaticFiles(directory='a'))\n{CALL}"
    found = written({"requirements.txt": "fastapi\nopenai", "main.py": code}, tmp_path)
    assets = next(route for route in found.routes if route.match.path == "/assets/*")
    assert not assets.rate_limit
    limited = [route for route in found.routes if route.rate_limit or route.concurrency or route.max_body]
    assert {route.name for route in limited} == {"ask", "default"}
    assert not any(route.enforce for route in limited)
    assert not any(route.timeout or route.total for route in found.routes)
    assert found.overload.mode == "off"
    assert found.listen.max_body is None
    assert found.upstreams["openai"].pace.concurrency is None


def test_every_alert_is_in_it(tmp_path):
    found = written({"requirements.txt": "fastapi", "main.py": "app = FastAPI()\n"}, tmp_path)
    shipped = load_policy(read_file(Path(__file__).parents[3] / "config" / "policy.yaml", "x"), {}).alerts.rules
    text = (tmp_path / "outrigger.yaml").read_text()
    assert set(found.alerts.rules) == set(shipped)
    assert all(f"    {name}: {{when: " in text for name in shipped)
    assert {name: str(rule) for name, rule in found.alerts.rules.items()} == {
        name: str(rule) for name, rule in shipped.items()
    }


@pytest.mark.parametrize(
    ("files", "paths"),
    [
        ({"main.py": "app.mount('/', StaticFiles(directory='dist', html=True))\n", "dist/css/x": "", "dist/js/x": ""}, {"/css/*", "/js/*"}),
        ({"main.py": "app.mount('/', StaticFiles(directory='dist', html=True))\n"}, {"/assets/*"}),
        ({"package.json": NODE % '"start": "node a.js"', "a.js": "app.use(express.static(path.join(__dirname, 'public')))", "public/img/x": "", "public/a.css": "", "public/index.html": ""}, {"/img/*", "/*.css"}),
        ({"package.json": NODE % '"start": "node a.js"', "a.js": "app.use('/files', express.static('public'))"}, {"/files/*"}),
        ({"main.py": "from flask import Flask\napp = Flask(__name__)\n"}, {"/static/*"}),
        ({"main.py": "app = FastAPI()\n"}, set()),
    ],
)  # fmt: skip
def test_where_files_are_is_seen(files, paths, tmp_path):
    assert {path for path, _ in looked(files, tmp_path).static_paths} == paths
