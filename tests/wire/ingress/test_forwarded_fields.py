"""What only a proxy may say of a client reaches the app from a proxy that is believed, and from nobody else."""

import pytest
from ingress_gateway import OK, answering, ingress_gateway

FIELDS = {
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "for=203.0.113.7",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Prefix": "/admin",
    "X-Forwarded-Ssl": "on",
    "X-Forwarded-Scheme": "https",
    "X-Forwarded-Server": "evil.example",
    "X-Forwarded-User": "root",
    "X-Real-IP": "203.0.113.7",
    "X-Client-IP": "203.0.113.7",
    "Client-IP": "203.0.113.7",
    "CF-Connecting-IP": "203.0.113.7",
    "True-Client-IP": "203.0.113.7",
    "X_Real_IP": "203.0.113.7",
    "X_Forwarded-Prefix": "/admin",
    "SCRIPT_NAME": "/admin",
    "PATH_INFO": "/admin",
}
PATHS = {"SCRIPT_NAME", "PATH_INFO"}
UNDERSCORED = {"X_Real_IP", "X_Forwarded-Prefix"}
BY_RENDER = {"X-Forwarded-For", "X-Forwarded-Proto", "CF-Connecting-IP", "True-Client-IP"}


@pytest.mark.parametrize(
    ("trusted", "believed"),
    [
        ("none", set()),
        ("[198.51.100.0/24]", set()),  # a peer that the policy does not name
        ("render", BY_RENDER),
        ("private", set(FIELDS) - PATHS),
        ("[127.0.0.0/8]", set(FIELDS)),
        ("1", set(FIELDS)),
    ],
)
async def test_a_field_reaches_the_app_from_who_is_believed(trusted, believed):
    async with ingress_gateway(answering(OK), f"listen: {{trusted_proxies: {trusted}}}") as f:
        await f.get("/", *(f"{name}: {value}" for name, value in FIELDS.items()), "X-Mine: kept")
        lines = f.app.heads[0].decode().split("\r\n")
    assert {name for name, value in FIELDS.items() if f"{name}: {value}" in lines} == believed
    assert "X-Mine: kept" in lines


async def test_who_is_believed_is_told_at_the_start(tmp_path):
    async with ingress_gateway(answering(OK), "listen: {trusted_proxies: render}", tmp=tmp_path) as f:
        await f.get("/")
    reported = f.log.read_text()
    assert '"listen.trust"' in reported
    assert "X-Forwarded-For and X-Forwarded-Proto are believed of peers on a private network" in reported
