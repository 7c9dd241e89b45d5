"""`make release-check`: whether what is here can be published; every reason why not at once, exit status 1.

python deploy/release/check.py dist [--tag v1.2.3]
"""

import argparse
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

from kit import IS_PLACEHOLDER, format_lock  # noqa: E402  (after the path)
from pins import find_pins  # noqa: E402

from proxy import __repository__, __version__  # noqa: E402


def find_reasons(dist: Path, tag: str) -> Iterator[str]:
    """A sentence for each thing that has to be mended first."""
    if IS_PLACEHOLDER:
        yield f"proxy/__init__.py: __repository__ is a placeholder ({__repository__}); write the repository's address"
    if tag and tag != f"v{__version__}":
        yield f"the tag is {tag}, and proxy/__init__.py says {__version__}: write the same into both"
    head = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if head is None or not head[1].startswith(__version__):
        yield f"CHANGELOG.md: its first section is not {__version__}; name it so"
    elif "unreleased" in head[1]:
        yield f"CHANGELOG.md: {head[1]}; write the day in place of (unreleased)"
    for place, repository, pin, version in find_pins():
        if not re.fullmatch("[0-9a-f]{40}", pin) or not version:
            yield f"{place}: {repository} is not pinned by a commit's hash with its tag in a comment; see make pins"
    wheel = dist / f"outrigger-{__version__}-py3-none-any.whl"
    if not wheel.exists():
        yield f"{wheel} is not there; run make dist"
        return
    lock = dist / "outrigger.lock"
    if not lock.exists() or lock.read_text() != format_lock(wheel):
        yield f"{lock} is not that of the wheel; run make dist"
    if not (dist / "outrigger.cdx.json").exists():
        yield f"{dist / 'outrigger.cdx.json'} is not there; run make sbom"
    names = zipfile.ZipFile(wheel).namelist()
    if any(name.startswith("tests/") for name in names):
        yield f"{wheel} has tests in it; see setup.py"
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    if changed:
        yield f"there are changes that no commit has: {changed.split()[-1]} …; commit them"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dist", type=Path)
    parser.add_argument("--tag", default="")
    arguments = parser.parse_args()
    reasons = list(find_reasons(arguments.dist, arguments.tag))
    for reason in reasons:
        print(f"release-check: {reason}", file=sys.stderr)
    if not reasons:
        print(f"Outrigger {__version__} can be published: tag it v{__version__} and push the tag.")
    sys.exit(1 if reasons else 0)


if __name__ == "__main__":
    main()
