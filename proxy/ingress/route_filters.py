"""What a route does to the fields and the bodies of its requests and answers, compiled once from the policy.

`routes[].headers` sets and takes out fields, `routes[].compress` codes what the app left plain. Both are rare, so a
route without them has no filters at all, and its requests pay nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from proxy.http.messages import HeaderList
from proxy.ingress.compression.compressed_response import (
    CompressedBody,
    ResponseSink,
    choose_response_coding,
    coded_head,
    edit_not_modified,
    is_compressible,
    vary_by_accept_encoding,
)
from proxy.ingress.compression.encoders import Encoders
from proxy.ingress.entity_tags import strengthen_tags
from proxy.ingress.message_head import EditedHead, RequestHead, ResponseHead, field_value, without_fields
from proxy.policy.schema import FieldValue, Route

_TAG_CONDITIONS = frozenset((b"if-none-match", b"if-match"))


class FieldEdits:
    """Fields to set and to take out. `names` are all of them, in lower case; `fields` those that are set."""

    def __init__(self, changes: Mapping[str, FieldValue | None]) -> None:
        self.names = frozenset(name.lower().encode() for name in changes)
        self.fields = tuple(
            (name.encode(), value.text.encode()) for name, value in changes.items() if value is not None
        )

    def apply(self, headers: HeaderList) -> HeaderList:
        return [*without_fields(headers, self.names), *self.fields]


class RouteFilters:
    """The filters of one route.

    - `request`, `response`: edits of fields, or None.
    - `encoders`: the codings to compress with, or None if the route does not compress.
    """

    def __init__(self, route: Route, encoders: Encoders | None) -> None:
        self.request = FieldEdits(route.headers.request) if route.headers.request else None
        self.response = FieldEdits(route.headers.response) if route.headers.response else None
        self.encoders = encoders if route.compress == "auto" else None
        # Whether this app's tags were strong when last seen, so that clients come back with ones that we made weak.
        self._made_weak = False

    def edit_request(self, x: RequestHead) -> tuple[frozenset[bytes], HeaderList]:
        """The names of request fields that do not reach the app as they came, and the fields in their place."""
        names, fields = (self.request.names, list(self.request.fields)) if self.request is not None else (_NONE, [])
        if self._made_weak and ("If-None-Match" in x.headers or "If-Match" in x.headers):
            fields += [
                (name, strengthen_tags(value))
                for name, value in x.raw_headers
                if name.lower() in _TAG_CONDITIONS and name.lower() not in names
            ]
            names = names | _TAG_CONDITIONS
        return names, fields

    def edit_fields(self, head: ResponseHead) -> ResponseHead:
        """The head of an answer of the app with the policy's fields."""
        return head if self.response is None else EditedHead(head, self.response.apply(head.headers))

    def choose_coding(self, x: RequestHead, head: ResponseHead, size: int | None) -> tuple[ResponseHead, str | None]:
        """The head as this client gets it, and the coding of its body, None for plain.

        `size` is that of the whole body in bytes, None if it is not known yet.
        """
        if self.encoders is None:
            return head, None
        tag = field_value(head.headers, b"etag")
        if not is_compressible(head, size):
            return (EditedHead(head, edit_not_modified(x, head.headers)) if head.status == 304 else head), None
        if tag is not None:
            self._made_weak = tag.startswith(b'"')
        offered = self.encoders.streams if size is None else self.encoders.whole
        coding = choose_response_coding(x, offered)
        if coding is None:
            return EditedHead(head, vary_by_accept_encoding(head.headers)), None
        return coded_head(head, coding), coding

    def compress_body(
        self, coding: str, sink: ResponseSink, loop: asyncio.AbstractEventLoop, *, stream: bool
    ) -> CompressedBody:
        """A sink that takes a plain body and hands it on in a coding."""
        assert self.encoders is not None
        return CompressedBody(self.encoders.make(coding, stream=stream), sink, loop)


_NONE: frozenset[bytes] = frozenset()


def compile_filters(routes: tuple[Route, ...]) -> Mapping[str, RouteFilters]:
    """The filters of the routes that have any, by name."""
    encoders = Encoders.load() if any(route.compress == "auto" for route in routes) else None
    return {
        route.name: RouteFilters(route, encoders)
        for route in routes
        if route.compress == "auto" or route.headers.request or route.headers.response
    }
