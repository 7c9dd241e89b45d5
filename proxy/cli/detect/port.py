"""Where an app listens: told by PORT, made to be, or fixed in a file whatever PORT says."""

from __future__ import annotations

import re
import shlex

from proxy.cli.detect.project_files import Folder, part

PORT = "$PORT"
_DEEPEST = 3  # scripts that start scripts
# --port, --server.port (Streamlit), --http-port and the like, --ServerApp.port (Jupyter), -P
_LONG = r"--(?:server[._-]|http[._-]|web[._-]|listen[._-]|ServerApp\.|NotebookApp\.)?port[= ]"
_OPTION = rf"(?<!\S)(?:{_LONG}|-[pP][= ]?|(?:--bind|-b|--listen|--http|--http-socket)[= ]?(?:[\w.\[\]*-]+)?:)"
_FIXED = re.compile(rf"(?:{_OPTION}|\bPORT=)(\d{{2,5}})\b")
_ASKS = re.compile(r"\$\{?PORT\b|\b(?:environ|getenv|env|config)\b\W[^\n]{0,20}\bPORT\b")
_RUNS = re.compile(r"\b(?:python[\d.]*|node|ts-node|tsx)\s+(?:-\S+\s+)*([\w./-]+)")
_LISTENS = re.compile(
    r"(?:uvicorn\.run|app\.run|\.listen|run_app|\.launch|\bserve|\.run_server)"
    r"\([^)\n]*?(?:port\s*=\s*|\(\s*)?\b(\d{4,5})\b"
)
_CONSTANT = re.compile(
    r"^\s*(?:export )?(?:const |let |var )?(?:server_?)?port\s*(?::\s*\w+\s*)?=\s*(\d{4,5})\b",
    re.MULTILINE | re.IGNORECASE,
)
_SERVERS = {"uvicorn", "daphne", "granian", "fastapi", "waitress-serve", "chainlit", "litellm", "open-webui", "marimo"}
_SERVERS |= {"jupyter", "jupyter-lab", "datasette", "voila", "panel", "bokeh", "mlflow", "robyn"}


def with_port(line: str) -> tuple[str, str]:
    """The line so that the app listens where PORT says, and what was changed, empty where nothing was."""
    hard = re.sub(rf"({_OPTION})(\d{{2,5}})\b", rf"\1{PORT}", line)
    if hard != line:
        return hard, "its port was a number in the command; it is PORT now"
    if re.search(r"\bPORT\b", line):
        return line, ""
    words = _words(line)
    names = {word.rpartition("/")[2] for word in words}
    told = "its server was told no port"
    if "gunicorn" in names:  # it listens on PORT by itself
        return line, ""
    if "hypercorn" in names:
        return f"{line} --bind 0.0.0.0:{PORT}", told
    if names & _SERVERS or {"flask", "run"} <= names:
        return f"{line} --port {PORT}", told
    if {"streamlit", "run"} <= names:
        return f"{line} --server.port {PORT}", told
    if "runserver" in names:
        if re.fullmatch(r"(.*:)?\d+", words[-1]):
            words = words[:-1]
        return f"{shlex.join(words)} 0.0.0.0:{PORT}", "runserver was told no port of the platform's"
    return line, ""


def unbound(folder: Folder, line: str) -> tuple[str, str]:
    """The same for gunicorn's file of settings, which PORT does not reach but the command line does."""
    words = _words(line)
    if "gunicorn" not in {word.rpartition("/")[2] for word in words} or re.search(r"\s(--bind|-b)\b", line):
        return line, ""
    named = re.search(r"\s(?:--config|-c)[= ]?(?:file:)?([\w./-]+)", line)
    file = named[1] if named else "gunicorn.conf.py"
    text = folder.text(file)
    if re.search(r"^\s*bind\s*=", text, re.MULTILINE) is None or re.search(r"\bPORT\b", text):
        return line, ""
    return f"{line} --bind 127.0.0.1:{PORT}", f"{file} binds an address of its own; --bind comes before it"


def public_port(folder: Folder, line: str, *, image: bool) -> int | None:
    """The port that the app had to the outside; of an image also the one that it exposes."""
    found = re.search(rf"(?:{_OPTION}|\bPORT=|:|\$\{{PORT:-)(\d{{2,5}})\b", line)
    if found is None and image:
        found = re.search(r"^\s*EXPOSE\s+(\d{2,5})", folder.text("Dockerfile"), re.MULTILINE | re.IGNORECASE)
    return int(found[1]) if found else None


def fixed_port(folder: Folder, line: str) -> tuple[int, str] | None:
    """The port that something behind the line fixes, and in which file; None where PORT is asked for, or nothing is
    seen."""
    where = ""
    for _ in range(_DEEPEST):
        if _ASKS.search(line):
            return None
        if where and (option := _FIXED.search(line)):
            return _usable(option[1], where)
        where, text = _behind(folder, line)
        if not where:
            break
        line = text
    if configured := _of_uwsgi(folder, line):
        return configured
    code = _RUNS.search(line)
    name = _file_of(folder, code[1]) if code else ""
    text = folder.text(name) if name else ""
    if not text or _ASKS.search(text):
        return None
    if found := _LISTENS.search(text) or _CONSTANT.search(text):
        return _usable(found[1], name)
    kind = (".py",) if name.endswith(".py") else (".js", ".ts", ".mjs", ".cjs")
    others = [(other, text) for other, text in folder.sources(*kind) if other != name]
    if any(_ASKS.search(text) for _, text in others):
        return None
    for other, text in others:  # what it takes in may be what listens
        if found := _LISTENS.search(text):
            return _usable(found[1], other)
    return None


def _of_uwsgi(folder: Folder, line: str) -> tuple[int, str] | None:
    """The port in uWSGI's file of settings, where the line names none."""
    if not re.search(r"\buwsgi\b", line) or re.search(r"\s--http", line):
        return None
    named = re.search(r"(?:--ini[= ]|--yaml[= ]|\s)([\w./-]+\.(?:ini|ya?ml))\b", line)
    text = folder.text(named[1]) if named else ""
    found = re.search(r"^\s*http(?:-socket)?\s*[=:]\s*\S*?:(\d{2,5})\s*$", text, re.MULTILINE)
    return _usable(found[1], named[1]) if found and named else None


def _file_of(folder: Folder, name: str) -> str:
    """The file that `python x.py`, `node x` and `node .` run."""
    if folder.has(name):
        return name
    if name in (".", "./"):
        name = str(folder.json("package.json").get("main") or "index.js")
    name = name.removeprefix("./").rstrip("/")
    return next((one for one in (name, f"{name}.js", f"{name}/index.js", f"{name}.ts") if folder.has(one)), "")


def script_of(line: str) -> str:
    """The shell script that a line runs, if any."""
    found = re.match(r"(?:\w+=\S*\s+)*(?:exec\s+)?(?:(?:ba|da)?sh\s+)?(?:\./)?([\w./-]+\.sh)\b", line)
    return found[1] if found else ""


def _behind(folder: Folder, line: str) -> tuple[str, str]:
    """What a line leads to: a file, and what is run there."""
    if re.fullmatch(r"(npm|yarn|pnpm)( run)? start", line.strip()):
        script = part(folder.json("package.json"), "scripts").get("start")
        return ("package.json", str(script)) if script else ("", "")
    script = script_of(line.strip())
    return (script, folder.text(script)) if script and folder.has(script) else ("", "")


def _usable(port: str, where: str) -> tuple[int, str] | None:
    return (int(port), where) if 1024 <= int(port) <= 65535 else None


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
