"""Where an app serves files from: pages load dozens of them, which no limit of requests should count."""

from __future__ import annotations

import re
from collections.abc import Collection

from proxy.cli.detect.project_files import Folder

MOST = 6
_BY_FRAMEWORK = {
    "django": ("/static/*",),
    "flask": ("/static/*",),
    "next": ("/_next/*",),
    "streamlit": ("/static/*",),
    "gradio": ("/assets/*", "/static/*", "/theme.css"),
    "chainlit": ("/assets/*",),
    "jupyterlab": ("/static/*", "/lab/extensions/*"),
    "open-webui": ("/_app/*", "/static/*", "/assets/*"),
    "datasette": ("/-/static/*",),
}
# At the root: then the folders in the folder are what paths begin with.
_AT_ROOT = (
    re.compile(
        r"\.mount\(\s*['\"]/?['\"]\s*,\s*(?:app\s*=\s*)?StaticFiles\([^)]*?directory\s*=\s*['\"]([\w./-]+)['\"]"
    ),
    re.compile(
        r"\.use\(\s*(?:express|serve)?\.?static\(\s*(?:path\.(?:join|resolve)\(\s*__dirname\s*,\s*)?['\"]([\w./-]+)['\"]"
    ),
    re.compile(r"\bstatic_url_path\s*=\s*['\"]/?['\"][^)]*?static_folder\s*=\s*['\"]([\w./-]+)['\"]"),
)
_MOUNTS = (
    re.compile(r"\.mount\(\s*['\"](/[\w./-]+)['\"]\s*,\s*(?:app\s*=\s*)?StaticFiles\("),
    re.compile(r"\bMount\(\s*['\"](/[\w./-]+)['\"]\s*,\s*(?:app\s*=\s*)?StaticFiles\("),
    re.compile(r"\bstatic_url_path\s*=\s*['\"](/[\w./-]+)['\"]"),
    re.compile(r"^\s*(?:STATIC|MEDIA)_URL\s*=\s*['\"]/?([\w.-][\w./-]*)['\"]", re.MULTILINE),
    re.compile(r"\.use\(\s*['\"](/[\w./-]+)['\"]\s*,\s*(?:express|serve)?\.?static\("),
    re.compile(r"\badd_static\(\s*['\"](/[\w./-]+)['\"]"),
)


def find_statics(folder: Folder, framework: str, needs: Collection[str]) -> list[tuple[str, str]]:
    """Patterns of paths, and where each was seen."""
    found: dict[str, str] = {}
    for name, text in folder.sources(".py", ".js", ".ts", ".mjs", ".cjs"):
        for pattern in _MOUNTS:
            for hit in pattern.finditer(text):
                path = f"/{hit[1].strip('/')}/*"
                if path != "//*":
                    found.setdefault(path, f"{name}:{text.count(chr(10), 0, hit.start()) + 1}")
        for pattern in _AT_ROOT:
            for hit in pattern.finditer(text):
                for path in _patterns(folder, name, hit[1]):
                    found.setdefault(path, f"{name}:{text.count(chr(10), 0, hit.start()) + 1}")
    for name, paths in _BY_FRAMEWORK.items():
        if framework == name or name in needs:
            for path in paths:
                found.setdefault(path, f"{name} has its own there")
    return list(found.items())[:MOST]


def _patterns(folder: Folder, file: str, served: str) -> list[str]:
    """What paths begin or end with whose files are in a folder that is served at the root, named from the app's own
    folder or from the file's; a built page's may not be there yet."""
    served = served.removeprefix("./").strip("/")
    for place in (folder.path / served, (folder.path / file).parent / served):
        if place.is_dir():
            inside = sorted(one for one in place.iterdir() if re.fullmatch(r"[\w.-]+", one.name))
            found = [f"/{one.name}/*" for one in inside if one.is_dir()]
            endings = {one.suffix for one in inside if one.is_file() and re.fullmatch(r"\.\w+", one.suffix)}
            return found + [f"/*{ending}" for ending in sorted(endings - {".html", ".htm"})]
    return ["/assets/*"]
