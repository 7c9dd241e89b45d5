"""`make lock`: requirements.lock and requirements-build.lock, every package with the hashes of its files.

One lock serves every Python from the oldest supported on and every platform: what only some need has a marker (uv's
universal resolution). What is locked already stays while requirements.txt allows it; `--upgrade` takes the newest.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAD = """\
# {what}, with the hashes of their files: for every supported
# Python and platform. Made by `make lock`{source}; install by
#     pip install --require-hashes -r {name}
"""


def write_lock(requirements: Path, name: str, what: str, source: str, *, oldest: str, upgrade: bool) -> None:
    """Compile requirements to ROOT/name. Exits with the compiler's status if it cannot."""
    target = ROOT / name
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        if target.exists():
            made.write_bytes(target.read_bytes())  # what is locked stays
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
        command += ["--python-version", oldest, "--no-header", "--no-annotate", *(["--upgrade"] if upgrade else [])]
        done = subprocess.run([*command, "--output-file", str(made), str(requirements)], stdout=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(done.returncode)
        text = "".join(line for line in made.read_text().splitlines(keepends=True) if not line.startswith("#"))
    target.write_text(HEAD.format(what=what, source=source, name=name) + text)


def main() -> None:
    upgrade = "--upgrade" in sys.argv[1:]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = project["project"]["requires-python"].removeprefix(">=")
    write_lock(
        ROOT / "requirements.txt",
        "requirements.lock",
        "The packages that a gateway is made of",
        " from requirements.txt",
        oldest=oldest,
        upgrade=upgrade,
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(project["build-system"]["requires"]) + "\n")
        file.flush()
        write_lock(
            Path(file.name),
            "requirements-build.lock",
            "What builds the wheel",
            " from pyproject.toml",
            oldest=oldest,
            upgrade=upgrade,
        )


if __name__ == "__main__":
    main()
