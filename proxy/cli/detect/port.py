"""The port that an app listens on: PORT's, made so by a change of its command, or one that a file fixes."""

from __future__ import annotations

import re
import shlex

from proxy.cli.detect.project_files import Folder, get_table

PORT_VARIABLE = "$PORT"
_MAX_DEPTH = 3  # scripts that start scripts
# --port, --server.port (Streamlit), --http-port and the like, --ServerApp.port (Jupyter), -P
_LONG_PORT_OPTION = r"--(?:server[._-]|http[._-]|web[._-]|listen[._-]|ServerApp\.|NotebookApp\.)?port[= ]"
_PORT_OPTION = (
    rf"(?<!\S)(?:{_LONG_PORT_OPTION}|-[pP][= ]?|(?:--bind|-b|--listen|--http|--http-socket)[= ]?(?:[\w.\[\]*-]+)?:)"
)
# A port that is written out, behind an option or as an assignment before the command.
_FIXED_PORT = re.compile(rf"(?:{_PORT_OPTION}|\bPORT=)(\d{{2,5}})\b")
# A command or a code that takes PORT from the environment: then nothing is fixed.
_READS_PORT = re.compile(r"\$\{?PORT\b|\b(?:environ|getenv|env|config)\b\W[^\n]{0,20}\bPORT\b")
# The file that an interpreter runs, behind options of its own.
_RUN_FILE = re.compile(r"\b(?:python[\d.]*|node|ts-node|tsx)\s+(?:-\S+\s+)*([\w./-]+)")
# A call that listens, with a port as its first argument or by keyword.
_LISTEN_CALL = re.compile(
    r"(?:uvicorn\.run|app\.run|\.listen|run_app|\.launch|\bserve|\.run_server)"
    r"\([^)\n]*?(?:port\s*=\s*|\(\s*)?\b(\d{4,5})\b"
)
# `PORT = 8000`, `const port = 3000`, `server_port: int = 8000`, at the beginning of a line.
_PORT_CONSTANT = re.compile(
    r"^\s*(?:export )?(?:const |let |var )?(?:server_?)?port\s*(?::\s*\w+\s*)?=\s*(\d{4,5})\b",
    re.MULTILINE | re.IGNORECASE,
)
_SERVERS_WITH_PORT_OPTION = {
    "uvicorn",
    "daphne",
    "granian",
    "fastapi",
    "waitress-serve",
    "chainlit",
    "litellm",
    "open-webui",
    "marimo",
}
_SERVERS_WITH_PORT_OPTION |= {"jupyter", "jupyter-lab", "datasette", "voila", "panel", "bokeh", "mlflow", "robyn"}


def set_port(line: str) -> tuple[str, str]:
    """The line changed so that the app listens on PORT, and what was changed, empty if nothing was."""
    hard = re.sub(rf"({_PORT_OPTION})(\d{{2,5}})\b", rf"\1{PORT_VARIABLE}", line)
    if hard != line:
        return hard, "its port was a number in the command; it is PORT now"
    if re.search(r"\bPORT\b", line):
        return line, ""
    words = _split_words(line)
    names = {word.rpartition("/")[2] for word in words}
    told = "its server was told no port"
    if "gunicorn" in names:  # it reads PORT by itself (docs.gunicorn.org, settings, bind)
        return line, ""
    if "hypercorn" in names:
        return f"{line} --bind 0.0.0.0:{PORT_VARIABLE}", told
    if names & _SERVERS_WITH_PORT_OPTION or {"flask", "run"} <= names:
        return f"{line} --port {PORT_VARIABLE}", told
    if {"streamlit", "run"} <= names:
        return f"{line} --server.port {PORT_VARIABLE}", told
    if "runserver" in names:
        if re.fullmatch(r"(.*:)?\d+", words[-1]):
            words = words[:-1]
        return f"{shlex.join(words)} 0.0.0.0:{PORT_VARIABLE}", "runserver was told no port of the platform's"
    return line, ""


def set_gunicorn_bind(folder: Folder, line: str) -> tuple[str, str]:
    """The same for gunicorn's file of settings, which PORT does not reach but the command line does."""
    words = _split_words(line)
    if "gunicorn" not in {word.rpartition("/")[2] for word in words} or re.search(r"\s(--bind|-b)\b", line):
        return line, ""
    named = re.search(r"\s(?:--config|-c)[= ]?(?:file:)?([\w./-]+)", line)
    file = named[1] if named else "gunicorn.conf.py"
    text = folder.read_text(file)
    if re.search(r"^\s*bind\s*=", text, re.MULTILINE) is None or re.search(r"\bPORT\b", text):
        return line, ""
    return f"{line} --bind 127.0.0.1:{PORT_VARIABLE}", f"{file} binds an address of its own; --bind comes before it"


def find_public_port(folder: Folder, line: str, *, image: bool) -> int | None:
    """The port that the app had to the outside; of an image also the one that it exposes."""
    found = re.search(rf"(?:{_PORT_OPTION}|\bPORT=|:|\$\{{PORT:-)(\d{{2,5}})\b", line)
    if found is None and image:
        found = re.search(r"^\s*EXPOSE\s+(\d{2,5})", folder.read_text("Dockerfile"), re.MULTILINE | re.IGNORECASE)
    return int(found[1]) if found else None


def find_fixed_port(folder: Folder, line: str) -> tuple[int, str] | None:
    """The port that something behind the line fixes, and in which file; None if PORT is read, or no port is seen."""
    where = ""
    for _ in range(_MAX_DEPTH):
        if _READS_PORT.search(line):
            return None
        if where and (option := _FIXED_PORT.search(line)):
            return _usable_port(option[1], where)
        where, text = _follow_script(folder, line)
        if not where:
            break
        line = text
    # The line names nothing: what it starts may, by a file of settings or in its code.
    if configured := _find_uwsgi_port(folder, line):
        return configured
    code = _RUN_FILE.search(line)
    name = _find_code_file(folder, code[1]) if code else ""
    text = folder.read_text(name) if name else ""
    if not text or _READS_PORT.search(text):
        return None
    if found := _LISTEN_CALL.search(text) or _PORT_CONSTANT.search(text):
        return _usable_port(found[1], name)
    kind = (".py",) if name.endswith(".py") else (".js", ".ts", ".mjs", ".cjs")
    others = [(other, text) for other, text in folder.source_files(*kind) if other != name]
    if any(_READS_PORT.search(text) for _, text in others):
        return None
    for other, text in others:  # a module that it imports may be what listens
        if found := _LISTEN_CALL.search(text):
            return _usable_port(found[1], other)
    return None


def _find_uwsgi_port(folder: Folder, line: str) -> tuple[int, str] | None:
    """The port in uWSGI's file of settings, if the line itself names none."""
    if not re.search(r"\buwsgi\b", line) or re.search(r"\s--http", line):
        return None
    named = re.search(r"(?:--ini[= ]|--yaml[= ]|\s)([\w./-]+\.(?:ini|ya?ml))\b", line)
    text = folder.read_text(named[1]) if named else ""
    found = re.search(r"^\s*http(?:-socket)?\s*[=:]\s*\S*?:(\d{2,5})\s*$", text, re.MULTILINE)
    return _usable_port(found[1], named[1]) if found and named else None


def _find_code_file(folder: Folder, name: str) -> str:
    """The file that `python x.py`, `node x` and `node .` run."""
    if folder.has_file(name):
        return name
    if name in (".", "./"):
        name = str(folder.read_json("package.json").get("main") or "index.js")
    name = name.removeprefix("./").rstrip("/")
    return next((one for one in (name, f"{name}.js", f"{name}/index.js", f"{name}.ts") if folder.has_file(one)), "")


def shell_script_of(line: str) -> str:
    """The shell script that a line runs, if any."""
    found = re.match(r"(?:\w+=\S*\s+)*(?:exec\s+)?(?:(?:ba|da)?sh\s+)?(?:\./)?([\w./-]+\.sh)\b", line)
    return found[1] if found else ""


def _follow_script(folder: Folder, line: str) -> tuple[str, str]:
    """What a line leads to: a file, and what is run there."""
    if re.fullmatch(r"(npm|yarn|pnpm)( run)? start", line.strip()):
        script = get_table(folder.read_json("package.json"), "scripts").get("start")
        return ("package.json", str(script)) if script else ("", "")
    script = shell_script_of(line.strip())
    return (script, folder.read_text(script)) if script and folder.has_file(script) else ("", "")


def _usable_port(port: str, where: str) -> tuple[int, str] | None:
    return (int(port), where) if 1024 <= int(port) <= 65535 else None


def _split_words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
