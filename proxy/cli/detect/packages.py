"""The packages that an app needs: as its files list them, and where none does, as its code imports them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from proxy.cli.detect.project_files import Folder, part

LISTS = (
    "requirements.txt",
    "requirements/base.txt",
    "requirements/prod.txt",
    "requirements/production.txt",
    "requirements.in",
    "requirements-prod.txt",
    "requirements/requirements.txt",
)
_DEEPEST = 5  # lists that take in lists
# Modules that say something here, and the packages that bring them.
_BRINGS = {
    "openai": "openai", "anthropic": "anthropic", "litellm": "litellm", "langchain_openai": "langchain-openai",
    "langchain_anthropic": "langchain-anthropic", "llama_index": "llama-index", "pydantic_ai": "pydantic-ai",
    "instructor": "instructor", "fastapi": "fastapi", "flask": "flask", "django": "django", "starlette": "starlette",
    "quart": "quart", "litestar": "litestar", "streamlit": "streamlit", "gradio": "gradio", "chainlit": "chainlit",
    "psycopg2": "psycopg2", "psycopg": "psycopg", "asyncpg": "asyncpg", "pg8000": "pg8000", "jwt": "pyjwt",
    "jose": "python-jose", "uvicorn": "uvicorn", "gunicorn": "gunicorn", "express": "express", "pg": "pg",
    "@anthropic-ai/sdk": "@anthropic-ai/sdk", "express-session": "express-session", "jsonwebtoken": "jsonwebtoken",
}  # fmt: skip
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_PYTHON = re.compile(r"^[ \t]*(?:from\s+([\w.]+)\s+import\b|import\s+([\w., \t]+))", re.MULTILINE)
_NODE = re.compile(r"(?:\bfrom\s*|\brequire\(\s*|\bimport\s+)['\"]([@\w][\w./-]*)['\"]")


def find_needs(folder: Folder) -> frozenset[str]:
    """Names of packages, in lower case and with dashes."""
    lines = [*_listed(folder)]
    found = {re.sub(r"[._]+", "-", match[1].lower()) for line in lines if (match := _NAME.match(line))}
    package = folder.json("package.json")
    found |= {name.lower() for name in part(package, "dependencies")}
    return frozenset(found | set(_imported(folder)))


def _listed(folder: Folder) -> Iterator[str]:
    project = folder.toml("pyproject.toml")
    yield from _texts(part(project, "project").get("dependencies"))
    for groups in (part(project, "project", "optional-dependencies"), part(project, "dependency-groups")):
        for group in groups.values():
            yield from _texts(group)
    yield from part(project, "tool", "poetry", "dependencies")
    for group in part(project, "tool", "poetry", "group").values():
        yield from part(group, "dependencies") if isinstance(group, dict) else ()
    yield from part(folder.toml("Pipfile"), "packages")
    for name in LISTS:
        yield from _of_list(folder, name, 0)
    if found := re.search(r"install_requires\s*=\s*\[([^\]]*)\]", folder.text("setup.py")):
        yield from re.findall(r"['\"]([^'\"]+)['\"]", found[1])
    if found := re.search(r"^install_requires\s*=((?:\n?[ \t]+\S.*)+)", folder.text("setup.cfg"), re.MULTILINE):
        yield from found[1].splitlines()


def _of_list(folder: Folder, name: str, depth: int) -> Iterator[str]:
    """pip's requirements file format: `-r` takes another in, relative to this one."""
    for line in folder.text(name).splitlines():
        if other := re.match(r"\s*(?:-r|--requirement)[ =]?\s*(\S+)", line):
            if depth < _DEEPEST:
                here = name.rpartition("/")[0]
                yield from _of_list(folder, f"{here}/{other[1]}" if here else other[1], depth + 1)
        elif egg := re.search(r"#egg=([\w.-]+)", line):
            yield egg[1]
        else:
            yield line


def _imported(folder: Folder) -> Iterator[str]:
    for _, text in folder.sources(".py"):
        for one, several in _PYTHON.findall(text):
            for name in (one, *several.split(",")):
                module = name.strip().partition(" ")[0].partition(".")[0]
                if module in _BRINGS:
                    yield _BRINGS[module]
    for _, text in folder.sources(".js", ".ts", ".mjs", ".cjs", ".tsx", ".jsx"):
        yield from (_BRINGS[name] for name in _NODE.findall(text) if name in _BRINGS)


def _texts(listed: object) -> list[str]:
    return [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
