"""The dashboard's files: read when first asked for, with an ETag each."""

from __future__ import annotations

import hashlib
from importlib import resources

from proxy.admin.messages import AdminAnswer, AdminRequest, Header, plain

TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline: a name that should get past the page's own care can load nothing.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SAFE: tuple[Header, ...] = (
    ("Content-Security-Policy", POLICY),
    ("Referrer-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
)


class Assets:
    """About 100 KiB once all were asked for."""

    def __init__(self) -> None:
        self._folder = resources.files("proxy.admin") / "page"
        self._names = frozenset(item.name for item in self._folder.iterdir() if item.is_file())
        self._read: dict[str, bytes] = {}

    def has(self, name: str) -> bool:
        return name in self._names

    def get(self, name: str) -> bytes:
        if name not in self._read:
            self._read[name] = (self._folder / name).read_bytes()
        return self._read[name]

    def answer(self, request: AdminRequest, name: str) -> AdminAnswer:
        return self.page(request, name, self.get(name))

    def page(self, request: AdminRequest, name: str, body: bytes, *more: Header, status: int = 200) -> AdminAnswer:
        """A body of this kind of file, or 304 where the browser has it already."""
        etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        kept = [part.strip().removeprefix("W/") for part in (request.headers("if-none-match") or "").split(",")]
        headers = (("ETag", etag), *SAFE, *more)
        if status == 200 and (etag in kept or "*" in kept):
            return AdminAnswer(304, [("Cache-Control", "no-cache"), *headers], b"")
        return plain(status, TYPES[name.rpartition(".")[2]], body, *headers, cache="no-cache")
