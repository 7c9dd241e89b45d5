"""Answers that are kept (`routes[].cache`), over real sockets: RFC 9111, 9211 and what the contract adds."""

import asyncio
import re

import pytest
from cached_app import CachedApp, ask, says
from ingress_gateway import ingress_gateway, until

PUBLIC = "routes: [{name: all, match: {path: /*}, cache: {scope: public}}]"
USER = "routes: [{name: all, match: {path: /*}, cache: {}}]"
FRESH = "Cache-Control: max-age=60"


async def counted(g):
    """`http_cache_total` by result, once it has counted a request whose answer is here."""
    await asyncio.sleep(0)
    lines = [line for line in (await g.text()).splitlines() if line.startswith("outrigger_http_cache_total{")]
    return {re.search('result="([a-z]+)"', line)[1]: float(line.split()[-1]) for line in lines}


async def test_a_fresh_answer_is_a_hit_and_says_its_age():
    async with ingress_gateway(app := CachedApp(says(FRESH, "X-Own: a")), PUBLIC) as g:
        first = await ask(g)
        again = await ask(g)
        assert await counted(g) == {"hit": 1, "miss": 1, "stale": 0, "revalidated": 0, "bypass": 0}
    assert (first.cache, "age" in first.fields) == ("fwd=uri-miss; stored", False)
    assert (again.cache, again.fields["age"], again.body, again.fields["x-own"]) == ("hit", "0", first.body, "a")
    assert len(app.asked) == 1


@pytest.mark.parametrize(
    "fields",
    [(), ("Cache-Control: no-store",), ("Cache-Control: private, max-age=60",), (FRESH, "Set-Cookie: a=b"), ("Cache-Control: max-age=0",), (FRESH, "Vary: *"), (FRESH, "Content-Type: text/event-stream")],
)  # fmt: skip
async def test_what_may_not_be_given_again_is_asked_for_each_time(fields):
    async with ingress_gateway(app := CachedApp(says(*fields)), PUBLIC) as g:
        await ask(g)
        again = await ask(g)
    assert again.body == b"answer 2"
    assert again.cache.startswith("fwd=")
    assert len(app.asked) == 2


async def test_ttl_is_for_answers_that_say_nothing_and_for_statuses_that_are_safe_to_guess_about():
    policy = PUBLIC.replace("scope: public", "scope: public, ttl: 1m")
    statuses = {"/200": True, "/203": True, "/204": True, "/301": True, "/308": True, "/404": True, "/410": True, "/201": False, "/302": False, "/403": False, "/500": False}  # fmt: skip
    app = CachedApp(
        lambda method, target, fields, number: says(status=f"{target[1:4]} X", body="" if target == "/204" else None)(
            method, target, fields, number
        )
    )
    async with ingress_gateway(app, policy) as g:
        for target, kept in statuses.items():
            await ask(g, target)
            assert ((await ask(g, target)).cache == "hit") is kept, target


async def test_ttl_yields_to_what_the_app_says():
    policy = PUBLIC.replace("scope: public", "scope: public, ttl: 1m")
    async with ingress_gateway(CachedApp(says("Cache-Control: max-age=0")), policy) as g:
        await ask(g)
        assert (await ask(g)).body == b"answer 2"


# ── whose answer it is ───────────────────────────────────────────────────────────────────────

IDENTIFIED = "identity: {user: [{header: X-User}]}\n"


async def test_in_the_scope_of_a_user_nobody_else_gets_an_answer():
    async with ingress_gateway(CachedApp(says("Cache-Control: private, max-age=60")), IDENTIFIED + USER) as g:
        first = await ask(g, "/", "X-User: ann", "Cookie: a=1", "Authorization: Bearer x")
        assert (await ask(g, "/", "X-User: ann", "Cookie: a=1", "Authorization: Bearer x")).body == first.body
        for fields in (
            ("X-User: bob", "Cookie: a=1", "Authorization: Bearer x"),
            ("X-User: ann", "Cookie: a=2", "Authorization: Bearer x"),
            ("X-User: ann", "Cookie: a=1", "Authorization: Bearer y"),
            ("X-User: ann", "Cookie: a=1"),
            ("X-User: ann",),
            (),
        ):
            assert (await ask(g, "/", *fields)).body != first.body, fields


@pytest.mark.parametrize("field", ["Authorization: Bearer x", "Cookie: a=1"])
async def test_in_public_scope_who_shows_who_he_is_gets_nothing_but_what_is_marked_public(field):
    async with ingress_gateway(CachedApp(says(FRESH)), PUBLIC) as g:
        await ask(g)
        assert (await ask(g)).cache == "hit"
        assert (await ask(g, "/", field)).body == b"answer 2"
        assert (await ask(g, "/", field)).body == b"answer 3"
        assert (await ask(g)).body == b"answer 1"
    async with ingress_gateway(CachedApp(says("Cache-Control: public, max-age=60")), PUBLIC) as g:
        await ask(g, "/", field)
        assert (await ask(g, "/", field)).cache == "hit"
        assert (await ask(g)).cache == "hit"


async def test_an_answer_to_one_with_credentials_is_given_to_nobody_without():
    async with ingress_gateway(CachedApp(says("Cache-Control: s-maxage=60")), PUBLIC) as g:
        await ask(g, "/", "Authorization: Bearer x")
        assert (await ask(g)).body == b"answer 2"


async def test_a_cookie_is_set_again_only_for_who_came_with_the_same_credentials():
    async with ingress_gateway(CachedApp(says(FRESH, "Set-Cookie: s=1")), USER) as g:
        await ask(g)
        assert (await ask(g)).body == b"answer 2"
        await ask(g, "/", "Cookie: s=1")
        assert (await ask(g, "/", "Cookie: s=1")).cache == "hit"


async def test_what_belongs_to_one_exchange_is_never_kept():
    policy = PUBLIC.replace("cache:", "rate_limit: 10/h, cache:")
    fields = (FRESH, "X-Request-Id: of-the-app", "RateLimit: x", "X-RateLimit-Limit: 7", "X-Cost-Used-Today: 9")
    async with ingress_gateway(CachedApp(says(*fields)), policy) as g:
        await ask(g)
        again = await ask(g, "/", "X-Request-Id: mine")
    assert again.cache == "hit"
    assert again.fields["x-request-id"] == "mine"
    assert again.fields["x-ratelimit-limit"] == "10"
    assert again.fields["x-ratelimit-remaining"] == "8"  # a hit counts
    assert again.fields["ratelimit"].startswith('"all";r=8')
    assert "x-cost-used-today" not in again.fields


async def test_limits_come_before_a_hit():
    async with ingress_gateway(CachedApp(says(FRESH)), PUBLIC.replace("cache:", "rate_limit: 2/h, cache:")) as g:
        await ask(g)
        assert (await ask(g)).status == 200
        assert (await ask(g)).status == 429


# ── what the key is, and Vary ────────────────────────────────────────────────────────────────


async def test_host_and_target_are_the_key_byte_for_byte():
    async with ingress_gateway(app := CachedApp(says(FRESH)), PUBLIC) as g:
        for target in ("/a", "/a?", "/a?x=1", "/a?x=2", "/%61", "/A", "/a/"):
            assert (await ask(g, target)).cache != "hit", target
        head = b"GET /a HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n"
        assert b"fwd=uri-miss" in await g.raw(head)
    assert len(app.asked) == 8


async def test_vary_keeps_an_answer_for_each_value():
    def answer(method, target, fields, number):
        return says(FRESH, "Vary: Accept-Language", body=fields.get("accept-language", "none"))(
            method, target, fields, number
        )

    async with ingress_gateway(app := CachedApp(answer), PUBLIC) as g:
        for language in ("en", "de", "en", "de"):
            assert (await ask(g, "/", f"Accept-Language: {language}")).body == language.encode()
        assert (await ask(g)).body == b"none"
        assert (await ask(g, "/", "Accept-Language: de")).cache == "hit"
        assert (await ask(g, "/", "Accept-Language: fr")).cache == "fwd=vary-miss; stored"
        assert (await ask(g, "/", "Accept-Language: en , fr")).cache == "fwd=vary-miss; stored"
        assert (await ask(g, "/", "Accept-Language: en,fr")).cache == "hit"
    assert len(app.asked) == 5


async def test_an_answer_that_varies_by_what_each_request_has_of_its_own_is_not_kept():
    async with ingress_gateway(CachedApp(says(FRESH, "Vary: X-Request-Id")), PUBLIC) as g:
        await ask(g)
        assert (await ask(g)).body == b"answer 2"


# ── asking again ─────────────────────────────────────────────────────────────────────────────


async def test_a_stale_answer_is_confirmed_by_its_validator_and_takes_over_the_new_fields():
    def answer(method, target, fields, number):
        if fields.get("if-none-match") == '"v1"':
            return b'HTTP/1.1 304 Not Modified\r\nETag: "v1"\r\nCache-Control: max-age=60\r\nX-Own: new\r\n\r\n'
        return says('ETag: "v1"', "Cache-Control: max-age=0", "X-Own: old")(method, target, fields, number)

    async with ingress_gateway(app := CachedApp(answer), PUBLIC) as g:
        assert (await ask(g)).fields["x-own"] == "old"
        again = await ask(g)
        assert (again.status, again.body, again.fields["x-own"]) == (200, b"answer 1", "new")
        assert again.cache == "fwd=stale; fwd-status=304"
        assert (await ask(g)).cache == "hit"
        assert (await counted(g))["revalidated"] == 1
    assert len(app.asked) == 2


async def test_a_client_with_a_copy_of_its_own_hears_304_from_the_cache():
    async with ingress_gateway(
        app := CachedApp(says(FRESH, 'ETag: "v1"', "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT")), PUBLIC
    ) as g:
        # The first to come fills the cache all the same.
        first = await ask(g, "/", 'If-None-Match: W/"v1"')
        assert (first.status, first.body) == (304, b"")
        assert "if-none-match" not in app.fields[0]
        whole = await ask(g)
        assert (whole.cache, whole.body) == ("hit", b"answer 1")
        assert (await ask(g, "/", 'If-None-Match: "x", "v1"')).status == 304
        assert (await ask(g, "/", 'If-None-Match: "x"')).status == 200
        assert (await ask(g, "/", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT")).status == 304
        assert (await ask(g, "/", "If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT")).status == 200
    assert len(app.asked) == 1


async def test_no_cache_is_asked_about_each_time_and_max_age_of_a_client_is_not_obeyed():
    async with ingress_gateway(CachedApp(says("Cache-Control: no-cache, max-age=60")), PUBLIC) as g:
        await ask(g)
        assert (await ask(g)).body == b"answer 2"
    async with ingress_gateway(CachedApp(says(FRESH)), PUBLIC) as g:
        await ask(g)
        for said in ("Cache-Control: no-cache", "Cache-Control: max-age=0", "Pragma: no-cache"):
            assert (await ask(g, "/", said)).cache == "hit", said
        assert (await ask(g, "/else", "Cache-Control: no-store")).cache == "fwd=uri-miss"
        assert (await ask(g, "/else")).cache == "fwd=uri-miss; stored"


async def test_head_is_answered_out_of_what_get_has_kept():
    async with ingress_gateway(app := CachedApp(says(FRESH)), PUBLIC) as g:
        await ask(g)
        head = await ask(g, method="HEAD")
        assert (head.cache, head.body, head.fields["content-length"]) == ("hit", b"", "8")
        await ask(g, "/h", method="HEAD")
        assert (await ask(g, "/h", method="HEAD")).cache == "hit"
        assert (await ask(g, "/h")).body == b"answer 3"
    assert [method for method, _ in app.asked] == ["GET", "HEAD", "GET"]


@pytest.mark.parametrize(
    ("asked", "status", "body", "said"),
    [
        ("bytes=0-3", 206, b"answ", "bytes 0-3/8"),
        ("bytes=2-", 206, b"swer 1", "bytes 2-7/8"),
        ("bytes=-2", 206, b" 1", "bytes 6-7/8"),
        ("bytes=0-99", 206, b"answer 1", "bytes 0-7/8"),
        ("bytes=8-", 416, b"", "bytes */8"),
        ("bytes=0-1,3-4", 200, b"answer 1", None),
        ("bytes=5-2", 200, b"answer 1", None),
        ("lines=1-2", 200, b"answer 1", None),
    ],
)
async def test_a_range_is_cut_out_of_what_is_kept(asked, status, body, said):
    async with ingress_gateway(app := CachedApp(says(FRESH, 'ETag: "v1"')), PUBLIC) as g:
        await ask(g)
        part = await ask(g, "/", f"Range: {asked}")
        assert (part.status, part.body, part.fields.get("content-range")) == (status, body, said)
        assert part.cache == "hit"
        assert (await ask(g, "/", "Range: bytes=0-1", 'If-Range: "v1"')).status == 206
        assert (await ask(g, "/", "Range: bytes=0-1", 'If-Range: "v2"')).status == 200
    assert len(app.asked) == 1


async def test_a_part_of_the_app_passes_and_is_not_kept():
    def answer(method, target, fields, number):
        if "range" in fields:
            return b"HTTP/1.1 206 Partial Content\r\nCache-Control: max-age=60\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nan"
        return says(FRESH)(method, target, fields, number)

    async with ingress_gateway(CachedApp(answer), PUBLIC) as g:
        assert (await ask(g, "/", "Range: bytes=0-1")).status == 206
        assert (await ask(g)).body == b"answer 2"


# ── stale ────────────────────────────────────────────────────────────────────────────────────


async def test_while_it_is_asked_about_a_stale_answer_is_given_at_once():
    policy = PUBLIC.replace("scope: public", "scope: public, stale_while_revalidate: 1m")
    async with ingress_gateway(app := CachedApp(says("Cache-Control: max-age=0", "Age: 5")), policy) as g:
        await ask(g)
        app.hold = asyncio.Event()
        stale = await ask(g)
        assert stale.body == b"answer 1"
        assert stale.cache.startswith("hit; ttl=-")
        await until(lambda: len(app.asked) == 2)
        assert (await ask(g)).body == b"answer 1"  # and nobody else asks meanwhile
        app.hold.set()
        for _ in range(200):
            if (await ask(g)).body != b"answer 1":
                break
            await asyncio.sleep(0.01)
        assert (await ask(g)).body != b"answer 1"


@pytest.mark.parametrize("failure", ["500", "502", "503", "504", "closes", "refuses", "is away"])
async def test_a_stale_answer_stands_in_for_an_error_and_at_once(failure):
    policy = PUBLIC.replace("scope: public", "scope: public, stale_if_error: 1h")

    def answer(method, target, fields, number):
        if number == 1:
            return says("Cache-Control: max-age=0")(method, target, fields, number)
        return (
            None if failure == "closes" else says(status=f"{failure} X", body="broken")(method, target, fields, number)
        )

    async with ingress_gateway(app := CachedApp(answer), policy) as g:
        g.service.relay.restart_wait = 60.0
        await ask(g)
        if failure == "refuses":
            await app.stop()
            g.service.pool.close_idle()
        elif failure == "is away":
            app.is_ready, app.state = False, "restarting"
        async with asyncio.timeout(20):
            stale = await ask(g)
        assert (stale.status, stale.body) == (200, b"answer 1")
        assert stale.cache.startswith("fwd=stale")
        assert "age" in stale.fields
        assert (await counted(g))["stale"] == 1


async def test_must_revalidate_beats_both():
    policy = PUBLIC.replace("scope: public", "scope: public, stale_if_error: 1h, stale_while_revalidate: 1h")

    def answer(method, target, fields, number):
        if number == 1:
            return says("Cache-Control: max-age=0, must-revalidate")(method, target, fields, number)
        return says(status="503 X", body="broken")(method, target, fields, number)

    async with ingress_gateway(CachedApp(answer), policy) as g:
        await ask(g)
        assert (await ask(g)).status == 503


async def test_a_timeout_is_stood_in_for_too():
    policy = PUBLIC.replace("cache: {scope: public", "timeout: 300ms, cache: {scope: public, stale_if_error: 1h")
    async with ingress_gateway(app := CachedApp(says("Cache-Control: max-age=0")), policy) as g:
        await ask(g)
        app.hold = asyncio.Event()
        assert (await ask(g)).body == b"answer 1"


# ── one fill at a time ───────────────────────────────────────────────────────────────────────


async def test_one_request_fills_and_the_others_wait_for_it():
    async with ingress_gateway(app := CachedApp(says(FRESH)), PUBLIC) as g:
        app.hold = asyncio.Event()
        asking = [asyncio.create_task(ask(g)) for _ in range(10)]
        await until(lambda: len(app.asked) == 1 and sum(g.service.accounting.in_flight.values()) == 10)
        app.hold.set()
        answers = await asyncio.gather(*asking)
    assert {answer.body for answer in answers} == {b"answer 1"}
    assert sorted(answer.cache for answer in answers) == ["fwd=uri-miss; stored", *["hit"] * 9]
    assert len(app.asked) == 1


@pytest.mark.parametrize("fields", [("Cache-Control: no-store",), ("Content-Type: text/event-stream", FRESH)])
async def test_they_go_on_at_once_if_it_is_not_kept(fields):
    release = asyncio.Event()

    async def script(reader, writer):
        await app.head(reader)
        app.asked.append(("GET", "/"))
        await release.wait()
        writer.write(
            "\r\n".join(("HTTP/1.1 200 OK", *fields, "Transfer-Encoding: chunked")).encode() + b"\r\n\r\n2\r\nok\r\n"
        )
        await writer.drain()
        await reader.read()  # never ends by itself

    app = CachedApp(says())
    app._script = script
    async with ingress_gateway(app, PUBLIC) as g:
        asking = [asyncio.create_task(ask(g)) for _ in range(5)]
        await until(lambda: len(app.asked) == 1 and sum(g.service.accounting.in_flight.values()) == 5)
        release.set()
        # Though the first one's body never ends, all of them are at the app now.
        await until(lambda: len(app.asked) == 5)
        for task in asking:
            task.cancel()


async def test_if_the_first_client_leaves_one_who_waits_takes_over():
    async with ingress_gateway(app := CachedApp(says(FRESH)), PUBLIC) as g:
        app.hold = asyncio.Event()
        _, first = await g.connect()
        first.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await until(lambda: len(app.asked) == 1)
        asking = [asyncio.create_task(ask(g)) for _ in range(3)]
        await until(lambda: sum(g.service.accounting.in_flight.values()) == 4)
        first.close()
        await until(lambda: len(app.asked) == 2)
        app.hold.set()
        answers = await asyncio.gather(*asking)
    assert {answer.body for answer in answers} == {b"answer 2"}
    assert len(app.asked) == 2


async def test_if_the_fill_breaks_one_who_waits_takes_over():
    def answer(method, target, fields, number):
        return None if number == 1 else says(FRESH)(method, target, fields, number)

    async with ingress_gateway(app := CachedApp(answer), PUBLIC) as g:
        app.hold = asyncio.Event()
        asking = [asyncio.create_task(ask(g)) for _ in range(4)]
        await until(lambda: len(app.asked) == 1 and sum(g.service.accounting.in_flight.values()) == 4)
        app.hold.set()
        answers = await asyncio.gather(*asking)
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 502]
    assert len(app.asked) == 2


async def test_a_client_that_does_not_read_keeps_the_answer_from_nobody():
    body = b"x" * 3_000_000
    async with ingress_gateway(CachedApp(says(FRESH, body=body)), PUBLIC) as g:
        _, slow = await g.connect()
        slow.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")  # and reads nothing
        async with asyncio.timeout(20):
            while (answer := await ask(g)).cache != "hit":
                await asyncio.sleep(0.01)
        assert answer.body == body
        slow.close()


async def test_an_answer_shorter_than_announced_is_never_kept():
    async def script(reader, writer):
        await app.head(reader)
        app.asked.append(("GET", "/"))
        writer.write(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    app = CachedApp(says())
    app._script = script
    async with ingress_gateway(app, PUBLIC) as g:
        assert not (await ask(g)).whole
        assert not (await ask(g)).whole
    assert len(app.asked) == 2


async def test_one_answer_takes_a_quarter_at_most_and_the_oldest_leave_first():
    policy = PUBLIC.replace("scope: public", "scope: public, max: 40KiB")

    def answer(method, target, fields, number):
        return says(FRESH, body=b"x" * int(target.split("=")[1]))(method, target, fields, number)

    async with ingress_gateway(CachedApp(answer), policy) as g:
        await ask(g, "/?size=11000")
        assert (await ask(g, "/?size=11000")).cache != "hit"
        for name in "abcdef":
            await ask(g, f"/{name}?size=7000")
        assert (await ask(g, "/f?size=7000")).cache == "hit"
        assert (await ask(g, "/d?size=7000")).cache == "hit"
        assert g.service.cache.sizes["all"][1] <= 40 * 1024
        assert (await ask(g, "/a?size=7000")).cache != "hit"


# ── emptying ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_a_method_that_writes_and_succeeds_empties_its_uri_on_every_route(method):
    policy = "routes: [{name: write, match: {path: /*, methods: [POST, PUT, PATCH, DELETE]}}, {name: all, match: {path: /*}, cache: {scope: public}}]"

    def answer(asked, target, fields, number):
        return says(*([FRESH] if asked == "GET" else []), status="500 X" if "fail" in fields else "200 OK")(
            asked, target, fields, number
        )

    async with ingress_gateway(CachedApp(answer), policy) as g:
        for target in ("/a", "/a?page=2", "/b"):
            await ask(g, target)
        await ask(g, "/a", "Fail: 1", method=method)
        assert (await ask(g, "/a")).cache == "hit"
        await ask(g, "/a", method=method)
        assert (await ask(g, "/a")).cache != "hit"
        assert (await ask(g, "/a?page=2")).cache != "hit"
        assert (await ask(g, "/b")).cache == "hit"


async def test_an_answer_that_was_on_its_way_when_its_uri_was_emptied_is_not_kept():
    async with ingress_gateway(app := CachedApp(says(FRESH)), PUBLIC) as g:
        app.hold = asyncio.Event()
        reading = asyncio.create_task(ask(g, "/a"))
        await until(lambda: len(app.asked) == 1)
        g.service.cache.purge("all", "/a")
        app.hold.set()
        assert (await reading).status == 200
        assert (await ask(g, "/a")).body == b"answer 2"


async def test_every_answer_of_such_a_route_says_what_the_cache_did():
    async with ingress_gateway(CachedApp(says(FRESH)), PUBLIC) as g:
        assert (await ask(g, method="POST", body=b"x")).cache == "fwd=method"
        assert (await ask(g, "/", "If-Match: *")).cache == "fwd=bypass"
        assert (await counted(g))["bypass"] == 2


# ── policy and codings ───────────────────────────────────────────────────────────────────────


async def test_a_reload_changes_the_ttl_of_what_is_kept_and_forgets_what_was_made_under_other_rules():
    from proxy.policy.loading import PolicySource, load_policy

    def reload(text):
        g.service.apply(load_policy(PolicySource("test", None, text), {}))

    policy = PUBLIC.replace("scope: public", "scope: public, ttl: 1m")
    async with ingress_gateway(CachedApp(says()), policy) as g:
        await ask(g)
        reload(policy.replace("1m", "2m"))
        assert (await ask(g)).cache == "hit"
        reload(policy.replace("ttl: 1m", "ttl: 0s"))
        assert (await ask(g)).cache != "hit"
        reload(policy)
        await ask(g)
        reload(policy.replace("cache:", "headers: {response: {X-A: b}}, cache:"))
        assert (await ask(g)).fields["x-a"] == "b"
        reload("routes: []")
        assert "cache-status" not in (await ask(g)).fields


async def test_fields_that_the_policy_sets_are_what_the_cache_goes_by():
    policy = PUBLIC.replace("cache:", "headers: {response: {Cache-Control: max-age=60, Set-Cookie: null}}, cache:")
    async with ingress_gateway(CachedApp(says("Set-Cookie: a=b", "Cache-Control: no-store")), policy) as g:
        await ask(g)
        assert (await ask(g)).cache == "hit"


async def test_an_answer_is_compressed_once_and_given_to_each_as_he_takes_it():
    import zlib

    text = b"The same words again. " * 5000
    policy = PUBLIC.replace("cache:", "compress: auto, cache:")
    async with ingress_gateway(
        app := CachedApp(says(FRESH, "Content-Type: text/plain", 'ETag: "v1"', body=text)), policy
    ) as g:
        for _ in range(2):
            coded = await ask(g, "/", "Accept-Encoding: gzip")
            assert zlib.decompress(coded.body, 31) == text
            assert (coded.fields["content-encoding"], coded.fields["etag"]) == ("gzip", 'W/"v1"')
            assert coded.fields["vary"] == "Accept-Encoding"
        assert coded.cache == "hit"
        plain = await ask(g)
        assert (plain.body, plain.cache, plain.fields["etag"]) == (text, "hit", '"v1"')
        assert plain.fields["vary"] == "Accept-Encoding"
        again = await ask(g, "/", "Accept-Encoding: gzip", 'If-None-Match: W/"v1"')
        assert (again.status, again.fields["etag"]) == (304, 'W/"v1"')
        part = await ask(g, "/", "Accept-Encoding: gzip", "Range: bytes=0-7")
        assert (part.status, part.body) == (206, b"The same")
        size = g.service.cache.sizes["all"][1]
    assert len(app.asked) == 1
    assert size < len(text) / 4


async def test_a_long_text_is_kept_compressed_and_given_plain():
    text = b"The same words again. " * 10_000
    async with ingress_gateway(app := CachedApp(says(FRESH, "Content-Type: text/plain", body=text)), PUBLIC) as g:
        await ask(g)
        await until(lambda: g.service.cache.sizes["all"][1] < len(text) / 4)
        again = await ask(g)
        assert (again.body, again.cache) == (text, "hit")
        head = await ask(g, method="HEAD")
        assert head.fields["content-length"] == str(len(text))
    assert len(app.asked) == 1


# ── robustness ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", ["X-Api-Key", "X-Auth-Token", "X-Forwarded-User"])
@pytest.mark.parametrize("policy", [PUBLIC, USER])
async def test_keys_in_other_fields_are_credentials_too(policy, field):
    async with ingress_gateway(CachedApp(says(FRESH)), policy) as g:
        await ask(g, "/", f"{field}: ann")
        assert (await ask(g, "/", f"{field}: bob")).body == b"answer 2"
        assert (await ask(g)).body == b"answer 3"


async def test_clients_that_do_not_read_hold_no_more_memory_than_max():
    body = b"x" * 3_000_000
    async with ingress_gateway(app := CachedApp(says(FRESH, body=body)), PUBLIC) as g:
        idle = []
        for number in range(12):
            _, writer = await g.connect()
            writer.write(b"GET /%d HTTP/1.1\r\nHost: test\r\n\r\n" % number)
            idle.append(writer)
        await until(lambda: len(app.asked) == 12, 20)
        state = g.service.cache._routes["all"]
        await asyncio.sleep(0.5)
        assert state.ahead_bytes <= state.policy.max
        answer = await ask(g, "/0")  # and others are served meanwhile
        assert (answer.status, len(answer.body)) == (200, len(body))
        for writer in idle:
            writer.close()
        await until(lambda: state.ahead_bytes == 0)


async def test_a_client_that_asks_for_nothing_to_be_kept_does_not_make_the_others_go_one_by_one():
    async with ingress_gateway(app := CachedApp(says(FRESH)), PUBLIC) as g:
        await ask(g, "/", "Cache-Control: no-store")
        app.hold = asyncio.Event()
        asking = [asyncio.create_task(ask(g)) for _ in range(5)]
        await until(lambda: sum(g.service.accounting.in_flight.values()) == 5)
        app.hold.set()
        await asyncio.gather(*asking)
    assert len(app.asked) == 2


async def test_where_nothing_is_kept_a_client_with_a_copy_hears_the_apps_own_304():
    def answer(method, target, fields, number):
        if fields.get("if-none-match") == '"v1"':
            return b'HTTP/1.1 304 Not Modified\r\nETag: "v1"\r\n\r\n'
        return says('ETag: "v1"', "Cache-Control: private")(method, target, fields, number)

    async with ingress_gateway(app := CachedApp(answer), PUBLIC) as g:
        await ask(g)
        assert (await ask(g, "/", 'If-None-Match: "v1"')).status == 304
    assert app.fields[1]["if-none-match"] == '"v1"'


async def test_a_bad_policy_of_a_route_is_refused_and_what_is_kept_stays():
    from proxy.errors import PolicyError
    from proxy.policy.loading import PolicySource, load_policy

    with pytest.raises(PolicyError, match=r"test:1: routes\[0\].cache.scope: everyone is none of its words"):
        load_policy(PolicySource("test", None, "routes: [{name: a, cache: {scope: everyone}}]"), {})
