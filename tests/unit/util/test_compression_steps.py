"""Long data, compressed and undone a piece at a time."""

from __future__ import annotations

import os
import zlib

import pytest

from proxy.util.compression_steps import GZIP, PIECE, compress, decompress

SIZES = (0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7)


@pytest.mark.parametrize("size", SIZES)
async def test_it_comes_back_as_it_was(size):
    for data in (b"a" * size, os.urandom(size), (b"some text, " * (size // 11 + 1))[:size]):
        coded = await compress(data)
        assert zlib.decompress(coded) == data
        assert await decompress(coded, max(size, 1)) == data
        assert zlib.decompress(await compress(data, GZIP), GZIP) == data


async def test_what_comes_to_too_much_is_not_made():
    bomb = await compress(bytes(50_000_000))
    with pytest.raises(ValueError, match="not the whole"):
        await decompress(bomb, 1_000_000)


async def test_what_is_cut_or_nothing_of_ours_is_a_fault():
    coded = await compress(b"some text, " * 10_000)
    for broken in (b"", coded[:1], coded[:-1], coded[: len(coded) // 2], b"no zlib at all", coded[1:]):
        with pytest.raises(ValueError):
            await decompress(broken, 1_000_000)
