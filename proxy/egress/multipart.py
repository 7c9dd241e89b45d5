"""An upload's fields, read as they pass (multipart/form-data, RFC 7578 and RFC 2046 section 5.1).

Nothing is delayed or changed, and of a file nothing is kept but as many bytes as a delimiter has, since that may be
split over any two chunks.
"""

from __future__ import annotations

import re

MAX_PART_HEAD = 8 * 1024  # bytes of a part's header fields
MAX_FIELD_VALUE = 1024  # bytes of a field that is kept
MAX_FIELDS = 64

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb';\s*name=(?:"([^"\r\n]{1,100})"|([^\s;"]{1,100}))', re.IGNORECASE)
_FILE = re.compile(rb";\s*filename\*?=", re.IGNORECASE)

# IN_BODY → BEHIND_DELIMITER at a delimiter; from there to IN_HEAD at the end of the line, or to AT_END at two hyphens;
# IN_HEAD → IN_BODY at the blank line. AT_END is final: what follows is no part (RFC 2046 section 5.1.1).
IN_BODY, BEHIND_DELIMITER, IN_HEAD, AT_END = range(4)


def parse_boundary(content_type: str) -> bytes | None:
    found = _BOUNDARY.search(content_type)
    return (found[1] or found[2]).encode("latin-1", "replace") if found is not None else None


class MultipartScanner:
    """Fed with the bytes as they pass. `fields` has the small ones so far, the last of a name; `repeated` has the names
    that came with two values, of which servers take the first or the last."""

    __slots__ = ("_delimiter", "_held", "_name", "_state", "_value", "fields", "repeated", "size")

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.repeated: set[str] = set()
        self.size = 0  # bytes so far
        self._delimiter = b"\r\n--" + boundary
        self._held = b"\r\n"  # the first delimiter may be the very first line
        self._state = IN_BODY
        self._name: str | None = None  # of the part under way, if it is a field
        self._value = bytearray()

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the upload."""
        self.size += len(data)
        held = self._held + data
        while True:
            if self._state == IN_BODY:
                at = held.find(self._delimiter)
                if at < 0:
                    # These may be the beginning of a delimiter that the next chunk completes.
                    keep = len(self._delimiter) - 1
                    self._read_value(held[:-keep])
                    self._held = held[-keep:]
                    return
                self._read_value(held[:at])
                self._end_part()
                held, self._state = held[at + len(self._delimiter) :], BEHIND_DELIMITER
            elif self._state == BEHIND_DELIMITER:
                if held.startswith(b"--"):
                    self._state, self._held = AT_END, b""
                    return
                end = held.find(b"\n")
                if end < 0:
                    self._held = held if len(held) <= MAX_PART_HEAD else b""
                    return
                held, self._state = b"\r\n" + held[end + 1 :], IN_HEAD
            elif self._state == IN_HEAD:
                end = held.find(b"\r\n\r\n")
                if end < 0 and len(held) <= MAX_PART_HEAD:
                    self._held = held
                    return
                self._begin_part(held[: end if end >= 0 else MAX_PART_HEAD])
                held, self._state = held[end + 2 :] if end >= 0 else held, IN_BODY
            else:
                self._held = b""
                return

    def _begin_part(self, head: bytes) -> None:
        self._name, self._value = None, bytearray()
        found = _DISPOSITION.search(head)
        if found is None or _FILE.search(found[1]) is not None:
            return
        name = _NAME.search(found[1])
        if name is not None and len(self.fields) < MAX_FIELDS:
            self._name = (name[1] or name[2]).decode("utf-8", "replace")

    def _read_value(self, data: bytes) -> None:
        if self._name is None:
            return
        self._value += data
        if len(self._value) > MAX_FIELD_VALUE + 2:
            self._name = None

    def _end_part(self) -> None:
        name, value = self._name, bytes(self._value[2:])  # behind the blank line's end
        self._name = None
        if name is None:
            return
        text = value.decode("utf-8", "replace")
        if self.fields.get(name, text) != text:
            self.repeated.add(name)
        self.fields[name] = text
