"""The paths of an app's routes, wherever what stands before them is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.cli.detect.app import DetectedApp, detect_app
from proxy.cli.detect.project_files import Folder

SETTINGS = """
from pydantic_settings import BaseSettings
class Settings(BaseSettings):
    API_V1_STR: str = "/api/v1"
settings = Settings()
"""
CHAT = """
router = APIRouter(prefix="/chat")
@router.post("/{user_id}/ask")
async def ask(): return await client.chat.completions.create()
"""
LAID = {
    "a setting, and routers within routers": (
        {
            "app/core/config.py": SETTINGS,
            "app/api/routes/chat.py": CHAT,
            "app/api/main.py": "from app.api.routes import chat\napi = APIRouter()\napi.include_router(chat.router, prefix='/llm')\n",
            "app/main.py": "from app.core.config import settings\nfrom app.api.main import api\napp = FastAPI()\n"
            "app.include_router(api, prefix=settings.API_V1_STR)\n",
        },
        ["/api/v1/llm/chat/{user_id}/ask"],
    ),
    "a constant and an f-string": (
        {"main.py": "V = 'v2'\nBASE = f'/api/{V}'\napp = FastAPI()\n@app.get(f'{BASE}/items')\ndef a(): pass\n"
         "@app.get(BASE + '/users')\ndef b(): pass\n"},
        ["/api/v2/items", "/api/v2/users"],
    ),
    "a variable of the environment with a default": (
        {"main.py": "P = os.getenv('PREFIX', '/x')\nr = APIRouter(prefix=P)\n@r.get('/y')\ndef a(): pass\n"
         "app = FastAPI()\napp.include_router(r)\n"},
        ["/x/y"],
    ),
    "relative imports under another name": (
        {
            "shop/__init__.py": "",
            "shop/users.py": "router = APIRouter()\n@router.get('/me')\ndef me(): pass\n",
            "shop/main.py": "from .users import router as users_router\napp = FastAPI()\napp.include_router(users_router, prefix='/u')\n",
        },
        ["/u/me"],
    ),
    "two routers of one name in two files": (
        {
            "a.py": "router = APIRouter(prefix='/a')\n@router.get('/x')\ndef x(): pass\n",
            "b.py": "router = APIRouter()\n@router.get('/x')\ndef x(): pass\n",
            "main.py": "import a\nfrom b import router\napp = FastAPI()\napp.include_router(a.router, prefix='/1')\napp.include_router(router, prefix='/2')\n",
        },
        ["/1/a/x", "/2/x"],
    ),
    "one router in two places": (
        {"main.py": "r = APIRouter()\n@r.get('/x')\ndef x(): pass\napp = FastAPI()\napp.include_router(r, prefix='/v1')\n"
         "app.include_router(r, prefix='/v2')\n"},
        ["/v1/x", "/v2/x"],
    ),
    "a mounted app": (
        {"main.py": "app = FastAPI()\nsub = FastAPI()\n@sub.get('/x')\ndef x(): pass\napp.mount('/sub', sub)\n"},
        ["/sub/x"],
    ),
    "a blueprint, whose prefix is replaced where it is registered with one": (
        {"app.py": "app = Flask(__name__)\nbp = Blueprint('bp', __name__, url_prefix='/old')\n@bp.route('/<user_id>/x')\n"
         "def x(user_id): pass\napp.register_blueprint(bp, url_prefix='/new')\n"},
        ["/new/<user_id>/x"],
    ),
    "paths that are added": (
        {"app.py": "def x(): return StreamingResponse()\napp = FastAPI()\napp.add_api_route('/x', x, methods=['POST'])\n"
         "routes = [Route('/y', endpoint=x)]\napp.router.add_get('/z', x)\n"},
        ["/x", "/y", "/z"],
    ),
    "Django's, with what is included": (
        {
            "manage.py": "",
            "site/urls.py": "urlpatterns = [path('admin/', admin.site.urls), path('users/', include('people.urls'))]",
            "people/urls.py": "urlpatterns = [path('<int:pk>/', views.page), re_path(r'^(?P<name>\\w+)/ask$', Ask.as_view())]",
            "people/views.py": "def page(r, pk): pass\n",
        },
        ["/admin/", "/users/<int:pk>/", "/users/<name>/ask"],
    ),
}  # fmt: skip


def looked(files: dict[str, str], at: Path) -> DetectedApp:
    for name, text in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(text)
    return detect_app(Folder(at))


@pytest.mark.parametrize("case", LAID)
def test_paths_are_whole(case, tmp_path):
    files, paths = LAID[case]
    assert sorted(one.path for one in looked(files, tmp_path).routes) == sorted(paths)


def test_a_model_behind_a_nested_router_is_seen(tmp_path):
    (one,) = looked(LAID["a setting, and routers within routers"][0], tmp_path).routes
    assert one.calls_model
    assert one.pattern == "/api/v1/llm/chat/*/ask"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"main.py": "r = APIRouter(prefix=where())\n@r.get('/x')\ndef x(): pass\n"}, "what stands before or in paths at main.py:1"),
        ({"main.py": "@app.get(PATHS['x'])\ndef x(): pass\n@app.get(NAMED)\ndef y(): pass\n"}, "what stands before or in paths at main.py:4"),
        ({"main.py": "def broken(:\n"}, "main.py could not be read as Python, so nothing of it is known"),
    ],
)  # fmt: skip
def test_what_could_not_be_read_is_said(files, said, tmp_path):
    assert any(note.startswith(said) for note in looked(files, tmp_path).notes)
