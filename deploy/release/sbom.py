"""`make sbom`: what a gateway is made of, as a CycloneDX document (JSON, ECMA-424): dist/outrigger.cdx.json.

It is made of requirements.lock, so of exactly what the lock installs, with the hashes of the files.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from proxy import __version__  # noqa: E402  (after the path)


def main() -> None:
    target = Path(sys.argv[1]) / "outrigger.cdx.json"
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(ROOT / "requirements.lock")]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "--of", "JSON", "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    document = json.loads(target.read_text())
    # pyproject.toml has no version of its own: it is the package's.
    document["metadata"]["component"]["version"] = __version__
    for component in document["components"]:
        component.pop("description", None)  # the lock's line, whose hashes are told below it
    target.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{target}: {len(document['components'])} packages")


if __name__ == "__main__":
    main()
