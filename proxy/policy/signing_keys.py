"""Keys that tokens are checked with: whether one fits the algorithms that a policy names beside it (RFC 7518)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec


def find_key_misfit(key: str, algorithms: Sequence[str]) -> str | None:
    """Why no token can be checked with this key, in a clause without the key; None where it fits.

    PyJWT is loaded here, and so only where a policy names a key.
    """
    if find_spec("jwt") is None:
        return "the package PyJWT is not installed"
    import jwt

    known = jwt.algorithms.get_default_algorithms()
    for name in algorithms:
        if name not in known:
            return f"{name} needs the package cryptography"
        try:
            with warnings.catch_warnings(action="ignore"):
                # A private key is read without a complaint, and checks nothing.
                known[name].verify(b"", known[name].prepare_key(key), b"")
        except (jwt.PyJWTError, ValueError, TypeError):
            return f"it does not fit {name}"
        except AttributeError:
            return f"it is a private key, and {name} is checked with the public one"
    return None
