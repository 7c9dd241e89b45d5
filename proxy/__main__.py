"""`python -m proxy` and `outrigger`."""

from __future__ import annotations

import os
import sys

from proxy.cli import main as command


def main() -> None:
    sys.exit(command(sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
