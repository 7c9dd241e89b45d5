"""The dashboard's static files: read when first asked for, each with an ETag."""

from __future__ import annotations

import hashlib
from pathlib import Path

from proxy.admin.messages import AdminRequest, AdminResponse, Header, build_response

CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing from elsewhere and nothing inline: text that the page failed to escape can neither run nor load anything.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS: tuple[Header, ...] = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("Referrer-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
)


class DashboardAssets:
    """The files in memory; about 100 KiB once all were asked for."""

    def __init__(self) -> None:
        self._folder = Path(__file__).parent / "page"
        self._names = frozenset(item.name for item in self._folder.iterdir() if item.is_file())
        self._read: dict[str, bytes] = {}

    def contains(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str) -> bytes:
        if name not in self._read:
            self._read[name] = (self._folder / name).read_bytes()
        return self._read[name]

    def build_file_response(self, request: AdminRequest, name: str) -> AdminResponse:
        return self.build_response(request, name, self.read(name))

    def build_response(
        self, request: AdminRequest, name: str, body: bytes, *more: Header, status: int = 200
    ) -> AdminResponse:
        """A response with `body` as the file `name`, or 304 if the browser has it already (RFC 9110 section 13.1.2)."""
        etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        # If-None-Match compares weakly, so the W/ of a proxy that compresses is ignored (RFC 9110 section 8.8.3.2).
        kept = [part.strip().removeprefix("W/") for part in (request.headers("if-none-match") or "").split(",")]
        headers = (("ETag", etag), *SECURITY_HEADERS, *more)
        if status == 200 and (etag in kept or "*" in kept):
            return AdminResponse(304, [("Cache-Control", "no-cache"), *headers], b"")
        return build_response(status, CONTENT_TYPES[name.rpartition(".")[2]], body, *headers, cache="no-cache")
