"""The paths at which an app serves files: a page loads dozens of them, which no rate limit should count."""

from __future__ import annotations

import re
from collections.abc import Collection

from proxy.cli.detect.project_files import Folder, location_of

# Each becomes a route of the policy; more would hide the routes that matter.
MAX_PATTERNS = 6
# Where frameworks serve files of their own, without a line in the app's code.
_FRAMEWORK_PATHS = {
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
# A folder that is served at the root: paths begin with the names of the folders in it.
_ROOT_MOUNTS = (
    re.compile(
        r"\.mount\(\s*['\"]/?['\"]\s*,\s*(?:app\s*=\s*)?StaticFiles\([^)]*?directory\s*=\s*['\"]([\w./-]+)['\"]"
    ),
    re.compile(
        r"\.use\(\s*(?:express|serve)?\.?static\(\s*(?:path\.(?:join|resolve)\(\s*__dirname\s*,\s*)?['\"]([\w./-]+)['\"]"
    ),
    re.compile(r"\bstatic_url_path\s*=\s*['\"]/?['\"][^)]*?static_folder\s*=\s*['\"]([\w./-]+)['\"]"),
)
# A folder that is served below a path, which is group 1: Starlette, Flask, Django, Express, aiohttp.
_MOUNTS = (
    re.compile(r"\.mount\(\s*['\"](/[\w./-]+)['\"]\s*,\s*(?:app\s*=\s*)?StaticFiles\("),
    re.compile(r"\bMount\(\s*['\"](/[\w./-]+)['\"]\s*,\s*(?:app\s*=\s*)?StaticFiles\("),
    re.compile(r"\bstatic_url_path\s*=\s*['\"](/[\w./-]+)['\"]"),
    re.compile(r"^\s*(?:STATIC|MEDIA)_URL\s*=\s*['\"]/?([\w.-][\w./-]*)['\"]", re.MULTILINE),
    re.compile(r"\.use\(\s*['\"](/[\w./-]+)['\"]\s*,\s*(?:express|serve)?\.?static\("),
    re.compile(r"\badd_static\(\s*['\"](/[\w./-]+)['\"]"),
)


def find_static_paths(folder: Folder, framework: str, packages: Collection[str]) -> list[tuple[str, str]]:
    """Patterns of paths, and where each was seen."""
    found: dict[str, str] = {}
    for name, text in folder.source_files(".py", ".js", ".ts", ".mjs", ".cjs"):
        for pattern in _MOUNTS:
            for hit in pattern.finditer(text):
                path = f"/{hit[1].strip('/')}/*"
                if path != "//*":
                    found.setdefault(path, location_of(name, text, hit))
        for pattern in _ROOT_MOUNTS:
            for hit in pattern.finditer(text):
                for path in _root_patterns(folder, name, hit[1]):
                    found.setdefault(path, location_of(name, text, hit))
    for name, paths in _FRAMEWORK_PATHS.items():
        if framework == name or name in packages:
            for path in paths:
                found.setdefault(path, f"{name} has its own there")
    return list(found.items())[:MAX_PATTERNS]


def _root_patterns(folder: Folder, file: str, served: str) -> list[str]:
    """Patterns for the files in a folder that is served at the root. Its name is relative to the app's folder or to the
    file that serves it; the folder of a built page may not be there yet."""
    served = served.removeprefix("./").strip("/")
    for place in (folder.path / served, (folder.path / file).parent / served):
        if place.is_dir():
            inside = sorted(one for one in place.iterdir() if re.fullmatch(r"[\w.-]+", one.name))
            found = [f"/{one.name}/*" for one in inside if one.is_dir()]
            endings = {one.suffix for one in inside if one.is_file() and re.fullmatch(r"\.\w+", one.suffix)}
            return found + [f"/*{ending}" for ending in sorted(endings - {".html", ".htm"})]
    return ["/assets/*"]
