"""The content codings that the gateway can produce, and which of them a client gets (RFC 9110 section 12.5.3).

gzip (RFC 1952) is in the standard library. br (RFC 7932) is the package `brotli`. zstd (RFC 8878, RFC 9659) is in the
standard library from Python 3.14 on, before it the package `backports.zstd`, which has the same interface. The two
packages are imported only if a route says `compress: auto`, and are done without if they are not installed.

Levels are those at which CPU is spent well: gzip 4 takes half of what its default 6 does, and leaves answers 2 % to
11 % longer. zstd compresses as well as either at a third of the CPU, so it comes first where a client takes it.

An answer of unknown length may be a stream that stays open for hours, and there may be hundreds of them, so what counts
is what an encoder keeps: 65 KiB (gzip) and 100 KiB (zstd) with the small windows here, against 650 KiB and more by
default. br needs 300 KiB at least, so for streams it comes last.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, Protocol

GZIP, BROTLI, ZSTD = "gzip", "br", "zstd"
GZIP_LEVEL = 4
GZIP_WINDOW_BITS, GZIP_STREAM_WINDOW_BITS, GZIP_STREAM_MEMORY = 16 + 15, 16 + 13, 6  # 16: with gzip's head and tail
BROTLI_QUALITY, BROTLI_STREAM_QUALITY, BROTLI_STREAM_WINDOW_BITS = 4, 3, 14
ZSTD_LEVEL, ZSTD_WINDOW_LOG, ZSTD_TABLE_LOG = 3, 17, 14  # RFC 9659: a window of 8 MiB at most
ZSTD_STREAM_LEVEL, ZSTD_STREAM_WINDOW_LOG, ZSTD_STREAM_TABLE_LOG = 1, 15, 12

MAX_IDLE = 4  # compressors that are kept for the next answer, 240 KiB each


class Encoder(Protocol):
    """Compresses one answer."""

    def compress(self, data: bytes) -> bytes:
        """What can be sent so far, which may be nothing."""

    def flush(self) -> bytes:
        """All that was held back, so that the client can decode everything that came in until now."""

    def finish(self) -> bytes: ...


class GzipEncoder:
    def __init__(self, *, stream: bool) -> None:
        if stream:
            self._object = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_STREAM_WINDOW_BITS, GZIP_STREAM_MEMORY)
        else:
            self._object = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW_BITS)
        self.compress = self._object.compress

    def flush(self) -> bytes:
        return self._object.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._object.flush()


class BrotliEncoder:
    def __init__(self, module: Any, *, stream: bool) -> None:
        if stream:
            self._object = module.Compressor(quality=BROTLI_STREAM_QUALITY, lgwin=BROTLI_STREAM_WINDOW_BITS)
        else:
            self._object = module.Compressor(quality=BROTLI_QUALITY)

    def compress(self, data: bytes) -> bytes:
        return bytes(self._object.process(data))

    def flush(self) -> bytes:
        return bytes(self._object.flush())

    def finish(self) -> bytes:
        return bytes(self._object.finish())


class ZstdEncoder:
    """`idle` has compressors that have finished an answer, for the next one: what a new one costs is its memory, which
    the system gives page by page, and that is more than the compression of a small answer."""

    def __init__(self, module: Any, *, stream: bool, idle: list[Any]) -> None:
        names = module.CompressionParameter
        tables = ZSTD_STREAM_TABLE_LOG if stream else ZSTD_TABLE_LOG
        self._module = module
        self._idle = None if stream else idle
        self._object = (
            idle.pop()
            if idle and not stream
            else module.ZstdCompressor(
                options={
                    names.compression_level: ZSTD_STREAM_LEVEL if stream else ZSTD_LEVEL,
                    names.window_log: ZSTD_STREAM_WINDOW_LOG if stream else ZSTD_WINDOW_LOG,
                    names.hash_log: tables,
                    names.chain_log: tables,
                }
            )
        )

    def compress(self, data: bytes) -> bytes:
        return bytes(self._object.compress(data))

    def flush(self) -> bytes:
        return bytes(self._object.flush(self._module.ZstdCompressor.FLUSH_BLOCK))

    def finish(self) -> bytes:
        tail = bytes(self._object.flush(self._module.ZstdCompressor.FLUSH_FRAME))
        # The next answer begins a frame of its own. One that breaks off leaves its compressor to the collector.
        if self._idle is not None and len(self._idle) < MAX_IDLE:
            self._idle.append(self._object)
        return tail


class Encoders:
    """The codings that are there, in the order of preference for whole answers (`whole`) and for `streams`.

    `decoders` has a function for each that decodes a whole body.
    """

    def __init__(self, *, brotli: Any = None, zstd: Any = None) -> None:
        self._brotli = brotli
        self._zstd = zstd
        self._idle_zstd: list[Any] = []
        self.whole = tuple(name for name, there in ((ZSTD, zstd), (BROTLI, brotli), (GZIP, zlib)) if there is not None)
        self.streams = tuple(name for name in (ZSTD, GZIP, BROTLI) if name in self.whole)
        decoders: dict[str, Callable[[bytes], bytes]] = {GZIP: lambda body: zlib.decompress(body, GZIP_WINDOW_BITS)}
        if brotli is not None:
            decoders[BROTLI] = brotli.decompress
        if zstd is not None:
            decoders[ZSTD] = zstd.decompress
        self.decoders: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(decoders)

    @classmethod
    def load(cls) -> Encoders:
        """Import what is installed."""
        return cls(brotli=_import_first("brotli"), zstd=_import_first("compression.zstd", "backports.zstd"))

    def make(self, coding: str, *, stream: bool) -> Encoder:
        """An encoder for one answer. `stream`: its length is unknown, and it may stay open for long."""
        if coding == ZSTD:
            return ZstdEncoder(self._zstd, stream=stream, idle=self._idle_zstd)
        if coding == BROTLI:
            return BrotliEncoder(self._brotli, stream=stream)
        return GzipEncoder(stream=stream)


def _import_first(*names: str) -> Any:
    """The first of these modules that is there, or None."""
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def choose_coding(accept_encoding: str | None, offered: tuple[str, ...]) -> str | None:
    """The coding for a client: of those that it likes best, the first that is offered. None: send it plain.

    A coding with q=0 is never chosen. A client that says nothing takes anything, by the letter of the RFC; it gets the
    answer plain, since whoever does not ask for a coding can seldom undo one.
    """
    return _choose_coding(accept_encoding, offered) if accept_encoding else None


@lru_cache(256)
def _choose_coding(accept_encoding: str, offered: tuple[str, ...]) -> str | None:
    # Browsers and SDKs have a few spellings between them, so the parsing is nearly always done already.
    weights = parse_accept_encoding(accept_encoding)
    others = weights.get("*", 0.0)
    best, best_weight = None, 0.0
    for coding in offered:
        weight = weights.get(coding, weights.get("x-gzip", others) if coding == GZIP else others)
        if weight > best_weight:
            best, best_weight = coding, weight
    # Plain is acceptable unless refused, and preferred only if a client says so.
    return None if best_weight < weights.get("identity", 0.0) else best


def parse_accept_encoding(text: str) -> dict[str, float]:
    """The weight of each coding that is named, by its name in lower case. A weight that is none counts as 0."""
    weights: dict[str, float] = {}
    for item in text.lower().split(","):
        name, *parameters = [part.strip() for part in item.split(";")]
        if name:
            weights.setdefault(name, _parse_weight(parameters))
    return weights


def _parse_weight(parameters: list[str]) -> float:
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                return 0.0
            return weight if 0.0 <= weight <= 1.0 else 0.0
    return 1.0
