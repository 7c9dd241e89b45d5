"""An environment of its own for each app, under .realapps/: made once, and again when what it needs has changed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location")
INSTALLS = 900  # seconds at most


def gateway(root: Path, place: Path) -> Path:
    """The gateway as users have it, in an environment of its own; its code is this tree's."""
    environ = place / "gateway"
    needs = root / "requirements.txt"
    if not _fresh(environ / ".stamp", needs):
        print("setting up the gateway (.realapps/gateway) …", flush=True)
        python = _environment(environ)
        _run([python, *PIP, "-r", str(needs)], root)
        site = _run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], root).strip()
        (Path(site) / "outrigger.pth").write_text(f"{root}\n")
        program = environ / "bin" / "outrigger"
        program.write_text(f'#!/bin/sh\nexec "{python}" -P -m proxy "$@"\n')
        program.chmod(0o755)
        (environ / ".stamp").write_text(needs.read_text())
    return environ / "bin" / "outrigger"


def install(folder: Path, place: Path) -> Path | None:
    """Copies the app's folder to PLACE/app and installs what it names; its environment, None for one of Node."""
    place.mkdir(parents=True, exist_ok=True)
    app = place / "app"
    shutil.copytree(
        folder, app, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", ".venv", ".git", ".outrigger")
    )
    environ = None
    needs = app / "requirements.txt"
    if needs.exists() or (app / "pyproject.toml").exists() or not (app / "package.json").exists():
        environ = place / "venv"
        named = folder / (needs.name if needs.exists() else "pyproject.toml")
        if not _fresh(environ / ".stamp", named):
            print(f"  installing ({environ}) …", flush=True)
            python = _environment(environ)
            _run([python, *PIP, *(["-r", str(needs)] if needs.exists() else ["."])], app)
            (environ / ".stamp").write_text(named.read_text() if named.exists() else "")
        if (app / "prepare.py").exists():
            _run([str(environ / "bin" / "python"), "prepare.py"], app)
    if (app / "package.json").exists() and not _fresh(place / ".npm", folder / "package.json"):
        print("  npm install …", flush=True)
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund"], app)
        if "build" in json.loads((app / "package.json").read_text()).get("scripts", {}):
            _run(["npm", "run", "build"], app)
        (place / ".npm").write_text((folder / "package.json").read_text())
    return environ


def versions(folder: Path, place: Path) -> str:
    """What it is made of, at which versions: as its own files pin them, with the interpreter."""
    names: list[str] = []
    needs = folder / "requirements.txt"
    if needs.exists():
        names += [line.replace("==", " ") for line in needs.read_text().splitlines() if "==" in line]
        names.append(f"Python {sys.version.split()[0]}")
    if (folder / "package.json").exists():
        packages = json.loads((folder / "package.json").read_text()).get("dependencies", {})
        names += [f"{name} {re.sub('[^0-9.]', '', version)}" for name, version in packages.items()]
        names.append(f"Node {_run(['node', '--version'], folder).strip().lstrip('v')}")
    return ", ".join(names)


def _environment(environ: Path) -> str:
    shutil.rmtree(environ, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(environ)], environ.parent)
    return str(environ / "bin" / "python")


def _fresh(stamp: Path, needs: Path) -> bool:
    """The stamp has what was installed: a checkout makes files new whose text is not."""
    return stamp.exists() and (not needs.exists() or stamp.read_text() == needs.read_text())


def _run(words: list[str], cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=INSTALLS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout
