"""`make dist`, after the wheel was built: dist/outrigger.lock, the one file that an app's repository needs.

It has the wheel itself and every package that it needs, each with the hashes of its files. The wheel is named by its
address in the release, or, before the repository's address is set, by its file beside the lock.

    python deploy/release/kit.py dist
"""

import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from proxy import __repository__, __version__  # noqa: E402  (after the path)

IS_PLACEHOLDER = "/OWNER/" in __repository__
HEAD = """\
# Outrigger {version} and every package that it is made of, each with the hashes of its files. Put it into your app's
# repository and install it into an environment of its own:
#     python3 -m venv --clear .outrigger && .outrigger/bin/pip install --require-hashes -r outrigger.lock
"""


def format_lock(wheel: Path) -> str:
    """The text of outrigger.lock for a wheel."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    place = f"./{wheel.name}"
    if not IS_PLACEHOLDER:
        place = f"outrigger @ {__repository__}/releases/download/v{__version__}/{wheel.name}"
    packages = (ROOT / "requirements.lock").read_text().splitlines(keepends=True)
    rest = "".join(line for line in packages if not line.startswith("#"))
    return f"{HEAD.format(version=__version__)}{place} --hash=sha256:{digest}\n{rest}"


def main() -> None:
    folder = Path(sys.argv[1])
    wheel = folder / f"outrigger-{__version__}-py3-none-any.whl"
    (folder / "outrigger.lock").write_text(format_lock(wheel))
    print(f"{folder / 'outrigger.lock'} and {wheel}")


if __name__ == "__main__":
    main()
