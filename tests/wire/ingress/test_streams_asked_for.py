"""What a request says of the answer that it wants: only who takes nothing but a stream is refused before the app works."""

from __future__ import annotations

import pytest
from ingress_gateway import OK, ingress_gateway
from test_stream_limits import POLICY, ask, endless, open_streams

# The Model Context Protocol's clients say the first with each call, most of which are answered by JSON.
EITHER = ("application/json, text/event-stream", "text/event-stream, application/json;q=0.5", "text/event-stream, */*")
NOTHING_ELSE = ("text/event-stream", "Text/Event-Stream;q=1", "text/event-stream, application/x-ndjson")


@pytest.mark.parametrize("accept", EITHER)
async def test_who_takes_other_answers_too_is_asked_of_the_app(accept: str) -> None:
    async with ingress_gateway(endless(), POLICY % "true") as gateway, open_streams(gateway, "/events", "/events"):
        assert await ask(gateway, "/json", "ada", f"Accept: {accept}") == 200, OK
        assert await ask(gateway, "/events", "ada", f"Accept: {accept}") == 429, "the answer decides"


@pytest.mark.parametrize("accept", NOTHING_ELSE)
async def test_who_takes_nothing_else_is_refused_before_the_app_works(accept: str) -> None:
    async with ingress_gateway(endless(), POLICY % "true") as gateway, open_streams(gateway, "/events", "/events"):
        seen = len(gateway.app.heads)
        assert await ask(gateway, "/json", "ada", f"Accept: {accept}") == 429
        assert len(gateway.app.heads) == seen
