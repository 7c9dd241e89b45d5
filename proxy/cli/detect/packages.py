"""The packages that an app needs: those that its files list, and those that its code imports."""

from __future__ import annotations

import re
from collections.abc import Iterator

from proxy.cli.detect.project_files import Folder, get_table

# Where the packages of the app itself are listed; those of tests and tools are not asked for.
REQUIREMENT_FILES = (
    "requirements.txt",
    "requirements/base.txt",
    "requirements/prod.txt",
    "requirements/production.txt",
    "requirements.in",
    "requirements-prod.txt",
    "requirements/requirements.txt",
)
_MAX_DEPTH = 5  # requirement files that include others
# Modules that say something here, and the packages that bring them.
_PACKAGE_OF_MODULE = {
    "openai": "openai", "anthropic": "anthropic", "litellm": "litellm", "langchain_openai": "langchain-openai",
    "langchain_anthropic": "langchain-anthropic", "llama_index": "llama-index", "pydantic_ai": "pydantic-ai",
    "instructor": "instructor", "fastapi": "fastapi", "flask": "flask", "django": "django", "starlette": "starlette",
    "quart": "quart", "litestar": "litestar", "streamlit": "streamlit", "gradio": "gradio", "chainlit": "chainlit",
    "psycopg2": "psycopg2", "psycopg": "psycopg", "asyncpg": "asyncpg", "pg8000": "pg8000", "jwt": "pyjwt",
    "jose": "python-jose", "uvicorn": "uvicorn", "gunicorn": "gunicorn", "express": "express", "pg": "pg",
    "@anthropic-ai/sdk": "@anthropic-ai/sdk", "express-session": "express-session", "jsonwebtoken": "jsonwebtoken",
}  # fmt: skip
_PACKAGE_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
# `from a.b import …` and `import a, b as c`; group 1 or 2 has the modules.
_PYTHON_IMPORT = re.compile(r"^[ \t]*(?:from\s+([\w.]+)\s+import\b|import\s+([\w., \t]+))", re.MULTILINE)
# `import … from "x"`, `import "x"` and require("x").
_NODE_IMPORT = re.compile(r"(?:\bfrom\s*|\brequire\(\s*|\bimport\s+)['\"]([@\w][\w./-]*)['\"]")


def find_packages(folder: Folder) -> frozenset[str]:
    """Names of packages, in lower case and with dashes."""
    lines = [*_declared_packages(folder)]
    found = {re.sub(r"[._]+", "-", match[1].lower()) for line in lines if (match := _PACKAGE_NAME.match(line))}
    package = folder.read_json("package.json")
    found |= {name.lower() for name in get_table(package, "dependencies")}
    return frozenset(found | set(_imported_packages(folder)))


def _declared_packages(folder: Folder) -> Iterator[str]:
    project = folder.read_toml("pyproject.toml")
    yield from _strings_of(get_table(project, "project").get("dependencies"))
    for groups in (get_table(project, "project", "optional-dependencies"), get_table(project, "dependency-groups")):
        for group in groups.values():
            yield from _strings_of(group)
    yield from get_table(project, "tool", "poetry", "dependencies")
    for group in get_table(project, "tool", "poetry", "group").values():
        yield from get_table(group, "dependencies") if isinstance(group, dict) else ()
    yield from get_table(folder.read_toml("Pipfile"), "packages")
    for name in REQUIREMENT_FILES:
        yield from _read_requirements(folder, name, 0)
    if found := re.search(r"install_requires\s*=\s*\[([^\]]*)\]", folder.read_text("setup.py")):
        yield from re.findall(r"['\"]([^'\"]+)['\"]", found[1])
    if found := re.search(r"^install_requires\s*=((?:\n?[ \t]+\S.*)+)", folder.read_text("setup.cfg"), re.MULTILINE):
        yield from found[1].splitlines()


def _read_requirements(folder: Folder, name: str, depth: int) -> Iterator[str]:
    """The lines of a file in pip's requirements format; `-r` includes another file, relative to this one."""
    for line in folder.read_text(name).splitlines():
        if other := re.match(r"\s*(?:-r|--requirement)[ =]?\s*(\S+)", line):
            if depth < _MAX_DEPTH:
                here = name.rpartition("/")[0]
                yield from _read_requirements(folder, f"{here}/{other[1]}" if here else other[1], depth + 1)
        elif egg := re.search(r"#egg=([\w.-]+)", line):
            yield egg[1]
        else:
            yield line


def _imported_packages(folder: Folder) -> Iterator[str]:
    for _, text in folder.source_files(".py"):
        for one, several in _PYTHON_IMPORT.findall(text):
            for name in (one, *several.split(",")):
                module = name.strip().partition(" ")[0].partition(".")[0]
                if module in _PACKAGE_OF_MODULE:
                    yield _PACKAGE_OF_MODULE[module]
    for _, text in folder.source_files(".js", ".ts", ".mjs", ".cjs", ".tsx", ".jsx"):
        yield from (_PACKAGE_OF_MODULE[name] for name in _NODE_IMPORT.findall(text) if name in _PACKAGE_OF_MODULE)


def _strings_of(listed: object) -> list[str]:
    return [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
