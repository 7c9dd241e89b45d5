"""The wheel and the source archive hold what they need and nothing else, and run without the repository."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from proxy import __version__
from proxy.cli.detect.policy_template import EDITOR_SCHEMA

ROOT = Path(__file__).parents[3]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OUTRIGGER", "VIRTUAL"))}


def run(*command: object, cwd: Path, status: int = 0, **environ: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**CLEAN, **environ}, capture_output=True, text=True, timeout=140
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def archives(tmp_path_factory) -> Path:
    """dist/ of the files as they are, built once for all processes of this run, from a copy: a build leaves things."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "archives"
    shared.mkdir(exist_ok=True)
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
            for name in files:
                if not name.startswith("tests/") and (ROOT / name).is_file():
                    (shared / "source" / name).parent.mkdir(parents=True, exist_ok=True)
                    (shared / "source" / name).write_bytes((ROOT / name).read_bytes())
            run(sys.executable, "-m", "build", "--no-isolation", "--outdir", shared / "dist", cwd=shared / "source")
            (shared / "done").touch()
    return shared / "dist"


@pytest.fixture(scope="session")
def installed(archives, tmp_path_factory) -> Path:
    """An environment of its own with the wheel in it. Its packages are those of the environment that tests run in."""
    home = tmp_path_factory.mktemp("installed") / ".outrigger"
    venv.create(home, symlinks=True)
    (wheel,) = archives.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    (packages,) = home.glob("lib/python3*/site-packages")
    ours = next(one for one in sys.path if one.endswith("site-packages"))
    (packages / "dependencies.pth").write_text(f"{ours}\n")
    return home


def test_the_wheel_is_the_package_its_data_and_what_editors_shells_and_man_read(archives):
    (wheel,) = archives.glob("*.whl")
    assert wheel.name == f"outrigger-{__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {str(file.relative_to(ROOT)) for file in ROOT.glob("proxy/**/*.py")}
    data = {str(file.relative_to(ROOT)) for file in ROOT.glob("proxy/admin/page/*")}
    share = f"outrigger-{__version__}.data/data/share"
    assert names == code | data | {
        "outrigger.py",
        "proxy/config/reference.yaml",
        "proxy/egress/billing/pricing/prices.json",
        f"{share}/outrigger/outrigger.schema.json",
        f"{share}/man/man1/outrigger.1",
        f"{share}/bash-completion/completions/outrigger",
        f"{share}/zsh/site-functions/_outrigger",
        f"{share}/fish/vendor_completions.d/outrigger.fish",
    }


def test_the_source_archive_is_what_a_wheel_is_built_from(archives):
    (archive,) = archives.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    others = {name.partition("/")[0] for name in names}
    assert others <= {
        "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "config", "deploy", "outrigger.egg-info", "outrigger.py",
        "proxy", "pyproject.toml", "requirements.txt", "setup.cfg", "setup.py",
    }  # fmt: skip
    assert {name for name in names if name.startswith("deploy/")} == {
        f"deploy/shell/{file.name}" for file in (ROOT / "deploy" / "shell").iterdir()
    }


def test_twine_finds_nothing_wrong_with_either(archives):
    said = run(sys.executable, "-m", "twine", "check", "--strict", *archives.glob("outrigger-*"), cwd=archives)
    assert said.count("PASSED") == 2


def test_the_command_runs_from_the_wheel_alone_in_a_folder_without_the_repository(installed, tmp_path):
    outrigger = installed / "bin" / "outrigger"
    assert run(outrigger, "--version", cwd=tmp_path) == f"outrigger {__version__}\n"
    (tmp_path / "main.py").write_text("from fastapi import FastAPI\napp = FastAPI()\n")
    (tmp_path / "requirements.txt").write_text("fastapi\nuvicorn\n")
    assert "Wrote outrigger.yaml" in run(outrigger, "init", cwd=tmp_path)
    assert "outrigger.yaml: ok" in run(outrigger, "check", cwd=tmp_path)
    assert run(outrigger, "schema", cwd=tmp_path) == (ROOT / "config" / "outrigger.schema.json").read_text()
    assert run(installed / "bin" / "python", "-m", "proxy", "--version", cwd=tmp_path).startswith("outrigger ")
    # The first line that `init` wrote leads an editor to the schema of this very version.
    first = (tmp_path / "outrigger.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={EDITOR_SCHEMA}"
    assert (installed.parent / EDITOR_SCHEMA).read_text() == (ROOT / "config" / "outrigger.schema.json").read_text()


def test_a_package_of_the_apps_that_is_called_proxy_too_takes_nothing_from_either(installed, tmp_path):
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__init__.py").write_text("raise SystemExit('the app was imported')\n")
    outrigger = installed / "bin" / "outrigger"
    assert run(outrigger, "--version", cwd=tmp_path, PYTHONPATH=str(tmp_path)) == f"outrigger {__version__}\n"
    (tmp_path / "proxy" / "__init__.py").write_text("print('the app')\n")
    app = f"{shlex.quote(sys.executable)} -c 'import proxy'"
    said = run(outrigger, "--", app, cwd=tmp_path, OUTRIGGER="off", PYTHONPATH=str(tmp_path))
    assert said == "the app\n"


def test_another_package_in_the_place_of_ours_is_refused_in_a_sentence(installed, tmp_path):
    (packages,) = installed.glob("lib/python3*/site-packages")
    ours = (packages / "proxy" / "__init__.py").read_text()
    try:
        (packages / "proxy" / "__init__.py").write_text("__version__ = '2.4.10'\n")  # as PyPI's proxy.py would be
        said = run(installed / "bin" / "outrigger", "--version", cwd=tmp_path, status=2)
    finally:
        (packages / "proxy" / "__init__.py").write_text(ours)
    assert said.count("\n") == 1
    assert re.match(r"outrigger: another package `proxy` is installed here \(.*\); install Outrigger into an env", said)


@pytest.mark.skipif("OUTRIGGER_DEPLOY" not in os.environ, reason="installs from the registry; with OUTRIGGER_DEPLOY=1")
def test_pip_installs_it_by_hash_alone_as_the_readme_says(archives, tmp_path):
    (wheel,) = archives.glob("*.whl")
    (tmp_path / wheel.name).write_bytes(wheel.read_bytes())
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'deploy' / 'release')!r}); from pathlib import Path; import kit"
    lock = run(sys.executable, "-c", f"{code}; print(kit.format_lock(Path({str(wheel)!r})))", cwd=ROOT)
    (tmp_path / "outrigger.lock").write_text(re.sub(r"^outrigger @ \S+", f"./{wheel.name}", lock, flags=re.MULTILINE))
    venv.create(tmp_path / ".outrigger", symlinks=True, with_pip=True)
    run(".outrigger/bin/pip", "install", "--quiet", "--require-hashes", "-r", "outrigger.lock", cwd=tmp_path)
    assert run(".outrigger/bin/outrigger", "--version", cwd=tmp_path) == f"outrigger {__version__}\n"
    # A file that is another one by a byte is refused.
    with open(tmp_path / wheel.name, "ab") as file:
        file.write(b"\0")
    run(".outrigger/bin/pip", "install", "--quiet", "--force-reinstall", "--require-hashes", "-r", "outrigger.lock",
        cwd=tmp_path, status=1)  # fmt: skip
