"""`make pins`: whether each action of the workflows is pinned to the commit that its tag names.

A hash cannot be moved to another commit, as a tag can; whether it is the right one is asked here of the repositories
themselves. Exit status 1 for one that differs, 2 if they cannot be asked.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USES = re.compile(r"uses: ([\w.-]+/[\w.-]+)(?:/[\w./-]+)?@(\S+)(?: +# (v\S+))?")


def find_pins(folder: Path = ROOT / ".github" / "workflows") -> Iterator[tuple[str, str, str, str]]:
    """The place, repository, reference and tag of each action; the tag is empty if no comment names it."""
    for file in sorted(folder.glob("*.y*ml")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if "uses:" in line and not line.lstrip().startswith("#"):
                match = USES.search(line)
                assert match is not None, f"{file.name}:{number}: {line.strip()}"
                yield f"{file.name}:{number}", match[1], match[2], match[3] or ""


def commit_of(base: str, repository: str, tag: str) -> str | None:
    """The commit that a tag names, also if the tag is an object of its own; None if there is no such tag."""
    refs = [f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}"]
    done = subprocess.run(["git", "ls-remote", f"{base}/{repository}", *refs], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"pins: {repository} cannot be asked: {done.stderr.strip()}")
    found = dict(reversed(line.split("\t")) for line in done.stdout.splitlines())
    return found.get(refs[1]) or found.get(refs[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", default="https://github.com")
    parser.add_argument("--workflows", type=Path, default=ROOT / ".github" / "workflows")
    arguments = parser.parse_args()
    asked: dict[tuple[str, str], str | None] = {}
    wrong = 0
    for place, repository, pin, tag in find_pins(arguments.workflows):
        commit = asked.setdefault((repository, tag), commit_of(arguments.base, repository, tag))
        if commit != pin:
            wrong += 1
            print(f"{place}: {repository} is pinned to {pin}; {tag or 'no tag'} is {commit or 'not there'}")
    print(f"{len(asked)} actions, {wrong} pinned to another commit than their tag's")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
