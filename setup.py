"""What pyproject.toml cannot say: config/ is a package of the wheel (`proxy/config`), so that an installed gateway has
the policy reference at hand, and what editors, shells and `man` read is put where they look for it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# Set in one place; no address of nobody's goes into the wheel's metadata.
address = re.search(r'__repository__ = "(.*)"', Path("proxy/__init__.py").read_text(encoding="utf-8"))[1]

setup(
    project_urls={} if "/OWNER/" in address else {"Source": address},
    packages=[*find_packages(include=["proxy", "proxy.*"]), "proxy.config"],
    package_dir={"proxy.config": "config"},
    package_data={
        "proxy.config": ["reference.yaml"],
        "proxy.egress.billing.pricing": ["prices.json"],
        "proxy.admin": ["page/*"],
    },
    data_files=[
        ("share/outrigger", ["config/outrigger.schema.json"]),
        ("share/man/man1", ["deploy/shell/outrigger.1"]),
        ("share/bash-completion/completions", ["deploy/shell/outrigger"]),
        ("share/zsh/site-functions", ["deploy/shell/_outrigger"]),
        ("share/fish/vendor_completions.d", ["deploy/shell/outrigger.fish"]),
    ],
)
