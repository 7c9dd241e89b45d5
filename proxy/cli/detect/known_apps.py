"""Programs that are an app by themselves, and frameworks that have a start command of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from proxy.cli.detect.project_files import Folder
from proxy.cli.detect.start_command import StartCommand

# Health paths that ask nobody, as their own pages have them; litellm's /health asks every model.
HEALTH_PATHS = {
    "streamlit": "/_stcore/health",
    "litellm": "/health/liveliness",
    "open-webui": "/health",
    "marimo": "/health",
}
# The names that documentation and templates use for the file that is started, the likeliest first.
USUAL_FILE_NAMES = ("app.py", "main.py", "streamlit_app.py", "chainlit_app.py", "demo.py", "Home.py", "run.py")
_GRADIO_IMPORT = re.compile(r"^(?:import gradio|from gradio)\b", re.MULTILINE)


def known_start_command(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    """The start that its own pages propose; `run` stands before it (`uv run `)."""
    return next((found for make in _START_FINDERS if (found := make(folder, run, packages)) is not None), None)


def set_gradio_port(folder: Folder, packages: Collection[str], line: str) -> tuple[str, str]:
    """Gradio listens where GRADIO_SERVER_PORT says, unless its code says otherwise."""
    if (
        "gradio" not in packages
        or "GRADIO_SERVER_PORT" in line
        or not re.match(r"(?:\S+ run )?python[\d.]* \S+\.py\b", line)
    ):
        return line, ""
    text = "\n".join(text for _, text in folder.source_files(".py"))
    # A port in the code goes before the variable.
    if ".launch(" not in text or re.search(r"\bserver_port\s*=|\bPORT\b", text):
        return line, ""
    return (
        f"GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=$PORT {line}",
        "Gradio is told its port by GRADIO_SERVER_PORT",
    )


def known_health_path(line: str) -> str:
    """The health path of the program that a line starts, empty if it is not known."""
    return next((path for name, path in HEALTH_PATHS.items() if re.search(rf"(?:^|[\s/]){name}\s", line)), "")


def _streamlit_start(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    """Its own health path is in docs.streamlit.io/deploy/tutorials/docker."""
    name = _find_main_file(folder, r"^(?:import streamlit|from streamlit)\b") if "streamlit" in packages else ""
    options = "--server.address 0.0.0.0 --server.headless true --server.port $PORT"
    return (
        StartCommand(f"{run}streamlit run {name} {options}", name, health_path=HEALTH_PATHS["streamlit"])
        if name
        else None
    )


def _chainlit_start(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    """docs.chainlit.io/deploy/overview."""
    name = _find_main_file(folder, r"^(?:import chainlit|from chainlit)\b") if "chainlit" in packages else ""
    return StartCommand(f"{run}chainlit run {name} --headless --host 0.0.0.0 --port $PORT", name) if name else None


def _gradio_start(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    name = _find_main_file(folder, _GRADIO_IMPORT.pattern, r"\.launch\(") if "gradio" in packages else ""
    return StartCommand(f"{run}python {name}", name) if name else None


def _marimo_start(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    name = _find_main_file(folder, r"^import marimo\b") if "marimo" in packages else ""
    return (
        StartCommand(
            f"{run}marimo run {name} --headless --host 0.0.0.0 --port $PORT", name, health_path=HEALTH_PATHS["marimo"]
        )
        if name
        else None
    )


def _open_webui_start(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    if "open-webui" not in packages:
        return None
    return StartCommand(f"{run}open-webui serve --host 0.0.0.0 --port $PORT", "its package", health_path="/health")


def _litellm_start(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    """Its /health asks every model; /health/liveliness asks nobody (docs.litellm.ai/docs/proxy/health)."""
    for name in ("config.yaml", "config.yml", "litellm_config.yaml", "litellm.yaml", "proxy_config.yaml"):
        if "litellm" in packages and folder.read_yaml(name).get("model_list"):
            return StartCommand(
                f"{run}litellm --config {name} --host 0.0.0.0 --port $PORT", name, health_path=HEALTH_PATHS["litellm"]
            )
    return None


def _jupyter_start(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    if not {"jupyterlab", "notebook", "jupyter"} & set(packages):
        return None
    # JupyterLab opens notebooks as well, so it is taken if both are there.
    kind = "notebook" if "notebook" in packages and "jupyterlab" not in packages else "lab"
    return StartCommand(
        f"{run}jupyter {kind} --no-browser --ip 0.0.0.0 --port $PORT", "its package", health_path="/api"
    )


def _datasette_start(folder: Folder, run: str, packages: Collection[str]) -> StartCommand | None:
    if "datasette" not in packages:
        return None
    # Only plain names: these become words of a shell line.
    files = sorted(path.name for path in folder.path.glob("*.db") if re.fullmatch(r"[\w.-]+", path.name))
    names = " ".join([*files, "-h 0.0.0.0 -p $PORT"])
    return StartCommand(f"{run}datasette serve {names}", "its package", health_path="/-/versions.json")


# The first that finds something is taken, so programs stand before the frameworks that they are built on.
_START_FINDERS: tuple[Callable[[Folder, str, Collection[str]], StartCommand | None], ...]
_START_FINDERS = (
    _streamlit_start,
    _chainlit_start,
    _gradio_start,
    _marimo_start,
    _open_webui_start,
    _litellm_start,
    _jupyter_start,
    _datasette_start,
)


def _find_main_file(folder: Folder, *patterns: str) -> str:
    """The file that has them all, the usual names and those not below a folder first."""
    names = [
        name for name, text in folder.source_files(".py") if all(re.search(one, text, re.MULTILINE) for one in patterns)
    ]
    return min(
        names,
        key=lambda name: (
            name.count("/"),
            USUAL_FILE_NAMES.index(name) if name in USUAL_FILE_NAMES else len(USUAL_FILE_NAMES),
        ),
        default="",
    )
