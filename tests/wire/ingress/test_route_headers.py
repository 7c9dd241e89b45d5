"""Fields that a policy sets or takes out (`routes[].headers`), over real sockets."""

from ingress_gateway import answering, ingress_gateway

POLICY = """
routes:
  - name: edited
    match: {path: /edited/*}
    headers:
      request: {X-Env: prod, x-debug: null, Accept-Encoding: null}
      response: {Strict-Transport-Security: max-age=60, Server: null, X-Powered-By: null}
"""
ANSWER = b"HTTP/1.1 200 OK\r\nServer: app\r\nx-powered-by: magic\r\nX-Own: kept\r\nContent-Length: 2\r\n\r\nok"


async def test_fields_of_a_request_are_set_and_taken_out_whatever_their_case_and_number():
    async with ingress_gateway(app := answering(ANSWER), POLICY) as g:
        await g.get("/edited/a", "X-Debug: 1", "X-DEBUG: 2", "X-Env: dev", "Accept-Encoding: gzip", "X-Else: e")
        head = app.heads[0].lower()
    assert head.count(b"x-env:") == 1
    assert b"x-env: prod\r\n" in head
    assert b"x-debug" not in head
    assert b"accept-encoding" not in head
    assert b"x-else: e\r\n" in head


async def test_fields_of_an_answer_are_set_and_taken_out():
    async with ingress_gateway(answering(ANSWER), POLICY) as g:
        answer = await g.get("/edited/a")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"strict-transport-security: max-age=60" in head
    assert b"server:" not in head
    assert b"x-powered-by" not in head
    assert b"x-own: kept" in head


async def test_another_route_is_left_alone():
    async with ingress_gateway(app := answering(ANSWER), POLICY) as g:
        answer = await g.get("/else", "X-Debug: 1")
    assert b"X-Debug: 1\r\n" in app.heads[0]
    assert b"Server: app\r\n" in answer
    assert b"Strict-Transport" not in answer


async def test_a_reload_changes_what_is_set():
    from proxy.policy.loading import PolicySource, load_policy

    async with ingress_gateway(answering(ANSWER), POLICY) as g:
        newer = load_policy(PolicySource("test", None, POLICY.replace("max-age=60", "max-age=61")), {})
        g.service.apply(newer)
        answer = await g.get("/edited/a")
    assert b"max-age=61" in answer
