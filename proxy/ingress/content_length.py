"""An answer that states its length more than once, as some frameworks behind some servers do."""

from __future__ import annotations


class HeadPieces:
    """A head that came in pieces, for the case that it must be read anew."""

    __slots__ = ("again", "data", "once")

    def __init__(self, data: bytes, *, once: bool = False) -> None:
        self.data = data
        self.once = once  # it may not be read again
        self.again = False  # it is read from its beginning, with each piece that comes

    def take(self, piece: bytes) -> bytes:
        """One more; what is to be parsed now."""
        self.data += piece
        return self.data if self.again else piece


def merge_lengths(data: bytes) -> bytes | None:
    """The same bytes with one Content-Length field for several equal ones; None where the head is not whole, or they
    differ.

    RFC 9110 section 8.6 lets a recipient do so, and browsers and curl do: the length is beyond doubt.
    """
    head, blank, body = data.partition(b"\r\n\r\n")
    kept: list[bytes] = []
    stated: list[bytes] = []
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() != b"content-length":
            kept.append(line)
        else:
            stated.append(value.strip(b" \t"))
    if not blank or len(stated) < 2 or len(set(stated)) > 1 or not stated[0].isdigit():
        return None
    return b"\r\n".join((*kept, b"Content-Length: " + stated[0])) + blank + body
