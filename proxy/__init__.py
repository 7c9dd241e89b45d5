"""Outrigger: one process in front of a small web app."""

__version__ = "0.1.0"

# Where it is published. The pages to copy from repeat it, which a test holds; all of them at once:
# git grep -l OWNER/outrigger | xargs sed -i 's|OWNER/outrigger|you/outrigger|'
__repository__ = "https://github.com/OWNER/outrigger"
