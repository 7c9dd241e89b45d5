"""However users, fields, answers, reloads and emptyings are mixed: no answer reaches anybody it was not made for.

The app says in each answer whom it is for, and what it may be used for. The oracle is a few lines: who gets it must be
whom it is for, or it must be marked for all and the route keep answers for all.
"""

from __future__ import annotations

import asyncio
import random

import pytest
from cached_app import CachedApp, ask
from ingress_gateway import ingress_gateway

IDENTITY = "identity: {user: [{header: X-User}]}\n"
USERS = ("ann", "bob", "")
COOKIES = ("", "s=1", "s=2")
KEYS = ("", "Bearer 1", "Bearer 2")
SAYS = (
    "max-age=60", "private, max-age=60", "public, max-age=60", "no-store", "no-cache", "max-age=0", "s-maxage=60",
    "must-revalidate, max-age=0", "", "private", "public, max-age=0, stale-if-error=60, stale-while-revalidate=60",
)  # fmt: skip


def answer_for(draw: random.Random):
    """Each answer names its request's user, cookie and key; now and then it fails, sets a cookie, or says 304."""

    def answer(method, target, fields, number):
        whose = "|".join((fields.get("x-user", ""), fields.get("cookie", ""), fields.get("authorization", "")))
        said = draw.choice(SAYS)
        status = draw.choice(("200 OK",) * 8 + ("503 Busy", "404 Not Found", "302 Found"))
        lines = [f"HTTP/1.1 {status}", f"Cache-Control: {said}", "Content-Type: text/plain"]
        if draw.random() < 0.3:
            lines.append(f'ETag: "{whose}"'.replace(" ", "-"))
            # An app that knows its own: a tag of another user is never confirmed.
            if fields.get("if-none-match") == lines[-1].removeprefix("ETag: "):
                return ("\r\n".join(["HTTP/1.1 304 Not Modified", *lines[1:]]) + "\r\n\r\n").encode()
        if draw.random() < 0.1:
            lines.append(f"Set-Cookie: of={whose.replace(';', '')}")
        if draw.random() < 0.2:
            lines.append("Vary: Accept-Language")
        body = f"{whose}|{said}".encode() + b" " * draw.choice((0, 600))
        if draw.random() < 0.1:
            return None
        cut = draw.random() < 0.01
        lines.append(f"Content-Length: {len(body) + (10 if cut else 0)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else body)

    return answer


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scope", ["user", "public"])
async def test_an_answer_is_given_to_nobody_it_was_not_made_for(scope: str, seed: int) -> None:
    draw = random.Random(f"{scope}{seed}")
    policy = IDENTITY + (
        "routes: [{name: all, match: {path: /*}, timeout: 500ms, compress: auto, cache: "
        f"{{scope: {scope}, ttl: 60s, max: 64KiB, stale_if_error: 60s, stale_while_revalidate: 60s}}}}]"
    )
    async with ingress_gateway(CachedApp(answer_for(draw)), policy) as g:

        async def once() -> None:
            user, cookie, key = draw.choice(USERS), draw.choice(COOKIES), draw.choice(KEYS)
            fields = [
                f"{name}: {value}"
                for name, value in (("X-User", user), ("Cookie", cookie), ("Authorization", key))
                if value
            ]
            if draw.random() < 0.3:
                fields.append(f"Accept-Language: {draw.choice(('de', 'en'))}")
            if draw.random() < 0.1:
                g.service.cache.purge("all", "/1" if draw.random() < 0.5 else None)
            method = draw.choice(("GET",) * 8 + ("HEAD", "POST"))
            answer = await ask(g, f"/{draw.randrange(3)}", *fields, method=method)
            mine = f"{user}|{cookie}|{key}"
            for other in answer.fields.get("set-cookie", "").split(", "):
                assert other in ("", f"of={mine.replace(';', '')}"), (answer.fields, mine)
            whose, _, said = answer.body.decode().strip().rpartition("|")
            if not said or answer.status >= 500 or whose == mine:
                return
            assert scope == "public", (whose, mine)
            anonymous_both = not (cookie or key) and whose.split("|")[1:] == ["", ""]
            assert "private" not in said
            assert anonymous_both or "public" in said, (whose, mine, said)

        for _ in range(15):
            await asyncio.gather(*(once() for _ in range(12)))
