"""Outrigger: one process in front of a small web app."""

__version__ = "0.1.0"

# Where it is published: set here and nowhere else. `make release-check` fails while it is a placeholder; until then
# `make dist` makes a lock that names the wheel as a file.
__repository__ = "https://github.com/OWNER/outrigger"
