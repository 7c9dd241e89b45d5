"""The environment variables that an app's code reads, each with its default and where it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from proxy.cli.detect.project_files import Folder, location_of

# os.environ[...], os.environ.get(...), os.getenv(...), decouple's config(...), environs' env(...), env.str(...)
_PYTHON_READ = re.compile(
    r"\b(?:environ\[|environ\.get\(|getenv\(|config\(|env(?:\.\w+)?\()\s*['\"]([A-Za-z][A-Za-z0-9_]*)['\"]"
    r"(?:\s*,\s*(?:default\s*=\s*)?(?:['\"]([^'\"\n]*)['\"]|(\d+)))?"
)
# process.env.X and process.env["X"], with `|| "default"` or `?? "default"`.
_NODE_READ = re.compile(
    r"\bprocess\.env(?:\.|\[['\"])([A-Z][A-Z0-9_]*)(?:['\"]\])?(?:\s*(?:\|\||\?\?)\s*(?:['\"`]([^'\"`\n]*)['\"`]|(\d+)))?"
)
# A field of a pydantic BaseSettings, with its default as it is or in Field(…).
_SETTINGS_FIELD = re.compile(
    r"^[ \t]+([A-Za-z][A-Za-z0-9_]*)\s*:\s*[^=\n]+?(?:=\s*(?:Field\()?(?:['\"]([^'\"\n]*)['\"]|(\d+)).*)?$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class EnvRead:
    """One read of a variable. `default` is empty if there is none, or one that is neither plain text nor a number."""

    name: str
    default: str
    location: str  # FILE:LINE


def find_env_reads(folder: Folder) -> list[EnvRead]:
    return list(_iterate_reads(folder))


def _iterate_reads(folder: Folder) -> Iterator[EnvRead]:
    for name, text in folder.source_files(".py"):
        for hit in _PYTHON_READ.finditer(text):
            yield _make_read(name, text, hit)
        if "BaseSettings" in text:  # pydantic: a field is a variable of that name, in either case
            for hit in _SETTINGS_FIELD.finditer(text):
                yield _make_read(name, text, hit)
    for name, text in folder.source_files(".js", ".ts", ".mjs", ".cjs"):
        for hit in _NODE_READ.finditer(text):
            yield _make_read(name, text, hit)


def _make_read(name: str, text: str, hit: re.Match[str]) -> EnvRead:
    return EnvRead(hit[1].upper(), hit[2] or hit[3] or "", location_of(name, text, hit))
