"""Loads aiohttp without what it takes along by itself, and makes the TLS context that is used in place of its own."""

from __future__ import annotations

import importlib
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from proxy.util.optional_modules import hide_modules

# Loaded if they are installed: 2 MiB, and its client would then offer codings that nobody here has a use for. What
# passes through is not decoded, and what the gateway asks for itself is small. The last two are for archives, which
# shutil would unpack: 0.3 MiB.
DECODERS = ("brotlicffi", "brotli", "backports.zstd", "compression.zstd", "bz2", "lzma")


def load_aiohttp() -> None:
    """Import aiohttp, if nobody has yet. To be called while there is one thread.

    It makes two TLS contexts as it is imported, and reads the system's certificates for each: 50 ms of a start and 3
    MiB, for gateways too that never call anybody by TLS. So they are made here without certificates, and trust nobody;
    whoever calls by TLS passes `trusted_context()`.
    """
    with hide_modules(*DECODERS), _certificates_out_of_sight():
        importlib.import_module("aiohttp")


@lru_cache(maxsize=1)
def trusted_context() -> ssl.SSLContext:
    """What to call others by TLS with: it trusts the system's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR.

    Its first use reads them, which holds the loop for about 25 ms once.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context


@contextmanager
def _certificates_out_of_sight() -> Iterator[None]:
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # which OpenSSL asks before it looks at its own places
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
