"""Programs that are an app by themselves, and frameworks that have a start command of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from proxy.cli.detect.project_files import Folder
from proxy.cli.detect.start_command import Start

# Health paths that ask nobody, as their own pages have them; litellm's /health asks every model.
HEALTHY = {
    "streamlit": "/_stcore/health",
    "litellm": "/health/liveliness",
    "open-webui": "/health",
    "marimo": "/health",
}
FIRST = ("app.py", "main.py", "streamlit_app.py", "chainlit_app.py", "demo.py", "Home.py", "run.py")
_GRADIO = re.compile(r"^(?:import gradio|from gradio)\b", re.MULTILINE)


def product(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    """The start that its own pages propose; `run` stands before it (`uv run `)."""
    return next((found for make in _MAKERS if (found := make(folder, run, needs)) is not None), None)


def gradio_port(folder: Folder, needs: Collection[str], line: str) -> tuple[str, str]:
    """Gradio listens where GRADIO_SERVER_PORT says, unless its code says otherwise."""
    if (
        "gradio" not in needs
        or "GRADIO_SERVER_PORT" in line
        or not re.match(r"(?:\S+ run )?python[\d.]* \S+\.py\b", line)
    ):
        return line, ""
    text = "\n".join(text for _, text in folder.sources(".py"))
    if ".launch(" not in text or re.search(r"\bserver_port\s*=|\bPORT\b", text):
        return line, ""
    return (
        f"GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=$PORT {line}",
        "Gradio is told its port by GRADIO_SERVER_PORT",
    )


def health_of(line: str) -> str:
    """The health path of the program that a line starts, empty where it is not known."""
    return next((path for name, path in HEALTHY.items() if re.search(rf"(?:^|[\s/]){name}\s", line)), "")


def _streamlit(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    """Its own health path is in docs.streamlit.io/deploy/tutorials/docker."""
    name = _first(folder, r"^(?:import streamlit|from streamlit)\b") if "streamlit" in needs else ""
    options = "--server.address 0.0.0.0 --server.headless true --server.port $PORT"
    return Start(f"{run}streamlit run {name} {options}", name, health=HEALTHY["streamlit"]) if name else None


def _chainlit(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    """docs.chainlit.io/deploy/overview."""
    name = _first(folder, r"^(?:import chainlit|from chainlit)\b") if "chainlit" in needs else ""
    return Start(f"{run}chainlit run {name} --headless --host 0.0.0.0 --port $PORT", name) if name else None


def _gradio(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    name = _first(folder, _GRADIO.pattern, r"\.launch\(") if "gradio" in needs else ""
    return Start(f"{run}python {name}", name) if name else None


def _marimo(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    name = _first(folder, r"^import marimo\b") if "marimo" in needs else ""
    return (
        Start(f"{run}marimo run {name} --headless --host 0.0.0.0 --port $PORT", name, health=HEALTHY["marimo"])
        if name
        else None
    )


def _open_webui(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    if "open-webui" not in needs:
        return None
    return Start(f"{run}open-webui serve --host 0.0.0.0 --port $PORT", "its package", health="/health")


def _litellm(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    """Its /health asks every model; /health/liveliness asks nobody (docs.litellm.ai/docs/proxy/health)."""
    for name in ("config.yaml", "config.yml", "litellm_config.yaml", "litellm.yaml", "proxy_config.yaml"):
        if "litellm" in needs and folder.yaml(name).get("model_list"):
            return Start(f"{run}litellm --config {name} --host 0.0.0.0 --port $PORT", name, health=HEALTHY["litellm"])
    return None


def _jupyter(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    if not {"jupyterlab", "notebook", "jupyter"} & set(needs):
        return None
    kind = "notebook" if "notebook" in needs and "jupyterlab" not in needs else "lab"
    return Start(f"{run}jupyter {kind} --no-browser --ip 0.0.0.0 --port $PORT", "its package", health="/api")


def _datasette(folder: Folder, run: str, needs: Collection[str]) -> Start | None:
    if "datasette" not in needs:
        return None
    files = sorted(path.name for path in folder.path.glob("*.db") if re.fullmatch(r"[\w.-]+", path.name))
    names = " ".join([*files, "-h 0.0.0.0 -p $PORT"])
    return Start(f"{run}datasette serve {names}", "its package", health="/-/versions.json")


_MAKERS: tuple[Callable[[Folder, str, Collection[str]], Start | None], ...]
_MAKERS = (_streamlit, _chainlit, _gradio, _marimo, _open_webui, _litellm, _jupyter, _datasette)


def _first(folder: Folder, *patterns: str) -> str:
    """The file that has them all, the usual names and those not below a folder first."""
    names = [
        name for name, text in folder.sources(".py") if all(re.search(one, text, re.MULTILINE) for one in patterns)
    ]
    return min(
        names, key=lambda name: (name.count("/"), FIRST.index(name) if name in FIRST else len(FIRST)), default=""
    )
