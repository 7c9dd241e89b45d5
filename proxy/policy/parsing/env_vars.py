"""`${NAME}` and `${NAME:-default}` in the values of a policy; `$${` stands for `${` itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

MISSING_VARIABLE = "the environment has no"
# The name is optional here, so that a `${` without one is found and refused, not passed on as text.
_REFERENCE = re.compile(r"\$?\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?", re.ASCII)


def substitute_variables(text: str, environ: Mapping[str, str]) -> str:
    """The text with its references resolved. Raises ValueError with one clause; never quotes a value.

    As in a shell, the default also takes the place of an empty variable.
    """
    if "${" not in text:
        return text

    def resolve(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        name, default = match.groups()
        if name is None:
            raise ValueError("a ${ is not followed by a name and a closing brace")
        value = environ.get(name)
        if default is not None:
            value = value or default
        if value is None:
            raise ValueError(f"{MISSING_VARIABLE} {name}")
        # A variable whose bytes are not UTF-8 comes as lone surrogates (PEP 383), which no value may contain.
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError(f"the variable {name} is not UTF-8")
        return value

    return _REFERENCE.sub(resolve, text)
