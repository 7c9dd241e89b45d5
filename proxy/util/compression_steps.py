"""Long data compressed and undone without holding up the event loop: a piece at a time, others have their turn between.

A piece of 64 KiB takes about a millisecond at level 1. The formats are zlib's own (RFC 1950) and gzip (RFC 1952).
"""

from __future__ import annotations

import asyncio
import zlib

PIECE = 64 * 1024  # bytes between two turns of the loop
ZLIB, GZIP = 15, 31  # `wbits` of the two formats


async def compress(data: bytes, wbits: int = ZLIB) -> bytes:
    encoder = zlib.compressobj(1, zlib.DEFLATED, wbits)
    pieces = []
    for at in range(0, len(data), PIECE):
        pieces.append(encoder.compress(data[at : at + PIECE]))
        await asyncio.sleep(0)
    pieces.append(encoder.flush())
    return b"".join(pieces)


async def decompress(data: bytes, most: int) -> bytes:
    """What `compress` made (zlib's format) undone. Raises ValueError if it is none, or comes to more than `most` bytes,
    which says that somebody else wrote it."""
    decoder = zlib.decompressobj()
    pieces, size, rest = [], 0, data
    try:
        while not decoder.eof and size <= most:
            piece = decoder.decompress(rest, PIECE)
            rest = decoder.unconsumed_tail
            if not piece and not rest:
                break  # the end is missing
            pieces.append(piece)
            size += len(piece)
            await asyncio.sleep(0)
    except zlib.error as error:
        raise ValueError(f"not compressed: {error}") from None
    if size > most or not decoder.eof:
        raise ValueError("not the whole of what was compressed")
    return b"".join(pieces)
