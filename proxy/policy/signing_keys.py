"""The keys that tokens are checked with (RFC 7517, RFC 7518), by PyJWT: loaded only if a policy names a key."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from proxy.util.optional_modules import hide_modules


def load_jwt(algorithms: Sequence[str]) -> Any:
    """PyJWT, with what it needs for these algorithms.

    It takes cryptography along if that is installed, 8 MiB that a shared secret (HS256 and its like) has no use for.
    """
    if all(name.startswith("HS") for name in algorithms):
        with hide_modules("cryptography"):
            return importlib.import_module("jwt")
    jwt = importlib.import_module("jwt")
    if not jwt.algorithms.has_crypto and find_spec("cryptography") is not None:
        # A reload has brought the first public key. What is loaded goes on with the secrets that it was loaded for.
        for name in [name for name in sys.modules if name == "jwt" or name.startswith("jwt.")]:
            del sys.modules[name]
        jwt = importlib.import_module("jwt")
    return jwt


def find_key_misfit(key: str, algorithms: Sequence[str]) -> str | None:
    """Why no token can be checked with this key, in a clause that does not quote the key; None if it fits the
    algorithms that the policy names beside it (RFC 7518).
    """
    if find_spec("jwt") is None:
        return "the package PyJWT is not installed"
    jwt = load_jwt(algorithms)
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
