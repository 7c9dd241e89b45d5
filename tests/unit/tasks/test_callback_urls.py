"""Which URLs may be called back: by their form, by the policy's list, and by every address of their name."""

from __future__ import annotations

import base64
from ipaddress import ip_address

import pytest

from proxy.errors import Refusal
from proxy.policy import value_types
from proxy.tasks.callback_url import (
    CallbackRefused,
    check_callback,
    normalize_host,
    parse_callback_url,
    resolve_callback,
)
from proxy.tasks.public_address import is_public

LISTED = ("hooks.example.com", "10.0.0.7", "::1", "127.0.0.1")
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


def resolving(*addresses: str):
    async def resolve(host: str, port: int) -> list[str]:
        if not addresses:
            raise OSError("no such name")
        return list(addresses)

    return resolve


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://hooks.example.com/done", "hooks.example.com", 443),
        ("http://hooks.example.com", "hooks.example.com", 80),
        ("https://HOOKS.Example.com.:8443/a?b=c", "hooks.example.com", 8443),
        ("http://10.0.0.7:9000/", "10.0.0.7", 9000),
        ("http://[::1]:9000/", "::1", 9000),
        ("http://[0:0:0:0:0:0:0:1]/", "::1", 80),
    ],
)
def test_a_url_whose_host_is_listed_may_be_called_back(url: str, host: str, port: int) -> None:
    found = parse_callback_url(url, LISTED)
    assert (found.host, found.port, found.text) == (host, port, url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://evil.example.com/", "not one of tasks.callbacks"),
        ("https://hooks.example.com.evil.example/", "not one of tasks.callbacks"),
        ("https://evilhooks.example.com/", "not one of tasks.callbacks"),
        ("https://a.hooks.example.com/", "not one of tasks.callbacks"),
        ("ftp://hooks.example.com/", "neither https:// nor http://"),
        ("file:///etc/passwd", "neither https:// nor http://"),
        ("//hooks.example.com/", "neither https:// nor http://"),
        ("hooks.example.com", "neither https:// nor http://"),
        ("https:///x", "neither https:// nor http://"),
        ("https://user@hooks.example.com/", "a user or a password"),
        ("https://user:secret@hooks.example.com/", "a user or a password"),
        ("https://evil.example@hooks.example.com/", "a user or a password"),
        ("https://hooks.example.com\\@evil.example/", "a backslash"),
        ("https://hooks.example.com/#x", "a fragment"),
        ("https://hooks.example.com:0/", "port"),
        ("https://hooks.example.com:/", "port"),
        ("https://hooks.example.com:99999/", "cannot be read"),
        ("https://hooks.example.com:8O/", "cannot be read"),
        ("https://[::1/", "cannot be read"),
        ("https://hooks.example.com/a b", "a space"),
        ("https://höoks.example.com/", "a letter"),
        ("https://hooks.example.com/\r\nX: y", "a space"),
        ("https://hooks.example.com/" + "x" * 3000, "longer than 2048"),
        ("http://2130706433/", "not one of tasks.callbacks"),
        ("http://0x7f.0.0.1/", "not one of tasks.callbacks"),
        ("http://127.1/", "not one of tasks.callbacks"),
        ("http://%31%32%37.0.0.1/", "not one of tasks.callbacks"),
        ("http://169.254.169.254/latest/meta-data", "not one of tasks.callbacks"),
        ("", "a letter"),
    ],
)
def test_any_other_url_is_refused_and_the_reason_does_not_quote_it(url: str, why: str) -> None:
    with pytest.raises(CallbackRefused) as refused:
        parse_callback_url(url, LISTED)
    assert why in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_log_line_shows_neither_path_nor_query() -> None:
    assert parse_callback_url("https://hooks.example.com/T0/key?token=x", LISTED).shown == "https://hooks.example.com"
    assert parse_callback_url("http://[::1]:9000/key", LISTED).shown == "http://[::1]:9000"


NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "5f00::1",
    "4000::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.0.1",
    "172.32.0.1",
    "192.0.1.1",
    "198.17.0.1",
    "2606:4700::1111",
    "2a00:1450::1",
    "2001:4860:4860::8888",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_these_addresses_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_and_these_are(address: str) -> None:
    assert is_public(ip_address(address))


async def test_a_name_is_dialled_only_if_all_its_addresses_are_public() -> None:
    url = parse_callback_url("https://hooks.example.com/", LISTED)
    assert list(await resolve_callback(url, LISTED, resolving("1.1.1.1", "2606:4700::1111"))) == [
        "1.1.1.1",
        "2606:4700::1111",
    ]
    for other in ("192.168.0.5", "::ffff:169.254.169.254", "fe80::1%2"):
        with pytest.raises(CallbackRefused, match="not public"):
            await resolve_callback(url, LISTED, resolving("1.1.1.1", other))


async def test_an_address_that_is_listed_itself_is_dialled_by_its_name_too() -> None:
    url = parse_callback_url("https://hooks.example.com/", LISTED)
    assert list(await resolve_callback(url, LISTED, resolving("10.0.0.7"))) == ["10.0.0.7"]
    with pytest.raises(CallbackRefused):
        await resolve_callback(url, LISTED, resolving("10.0.0.7", "10.0.0.8"))


async def test_an_address_in_a_url_is_asked_of_no_resolver() -> None:
    url = parse_callback_url("http://10.0.0.7/", LISTED)
    assert list(await resolve_callback(url, LISTED, resolving("1.1.1.1"))) == ["10.0.0.7"]


@pytest.mark.parametrize(
    ("url", "secret", "addresses", "why"),
    [
        ("https://hooks.example.com/", "", ["1.1.1.1"], "tasks.secret is not set"),
        ("https://evil.example/", SECRET, ["1.1.1.1"], "not one of tasks.callbacks"),
        ("https://hooks.example.com/", SECRET, ["10.0.0.1"], "not public"),
    ],
)
async def test_a_task_with_such_a_callback_is_refused(url: str, secret: str, addresses: list[str], why: str) -> None:
    with pytest.raises(Refusal, match=why) as refused:
        await check_callback(url, LISTED, secret, resolving(*addresses))
    assert (refused.value.name, refused.value.status) == ("bad-callback", 400)


async def test_a_name_that_cannot_be_resolved_now_is_taken_for_it_may_be_by_the_end() -> None:
    found = await check_callback("https://hooks.example.com/x", LISTED, SECRET, resolving())
    assert found.host == "hooks.example.com"


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("hooks.example.com", "hooks.example.com"),
        ("Hooks.Example.COM.", "hooks.example.com"),
        ("localhost", "localhost"),
        ("my_service", "my_service"),
        ("xn--hks-0qa.example", "xn--hks-0qa.example"),
        ("10.0.0.7", "10.0.0.7"),
        ("[::1]", "::1"),
        ("0:0::1", "::1"),
    ],
)
def test_the_policy_lists_hosts(written: str, host: str) -> None:
    assert value_types.CALLBACK_HOST.parse(written) == host == normalize_host(written)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("https://hooks.example.com", "more than a host"),
        ("hooks.example.com/x", "more than a host"),
        ("hooks.example.com:443", "more than a host"),
        ("a@hooks.example.com", "more than a host"),
        ("10.0.0.0/8", "more than a host"),
        ("*.example.com", "no name of a host"),
        ("-x.example", "no name of a host"),
        ("a..b", "no name of a host"),
        ("127.1", "usual form"),
        ("2130706433", "usual form"),
        ("0x7f000001", "usual form"),
        ("fe80::1%eth0", "zone"),
    ],
)
def test_and_nothing_else(written: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        value_types.CALLBACK_HOST.parse(written)


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_secret_has_a_key_of_24_to_64_bytes(size: int) -> None:
    secret = "whsec_" + base64.b64encode(b"k" * size).decode()
    assert value_types.WEBHOOK_SECRET.parse(secret) == secret


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        (base64.b64encode(b"k" * 32).decode(), "does not begin with whsec_"),
        ("whsec_", "0 bytes"),
        ("whsec_" + base64.b64encode(b"k" * 23).decode(), "23 bytes"),
        ("whsec_" + base64.b64encode(b"k" * 65).decode(), "65 bytes"),
        ("whsec_not base64", "no base64"),
        ("whsec_" + "_-" * 20, "no base64"),
        ("whsec_abc", "no base64"),
    ],
)
def test_any_other_secret_is_a_fault_of_the_policy(secret: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        value_types.WEBHOOK_SECRET.parse(secret)


def test_a_secret_that_is_printed_loads_again_as_none() -> None:
    assert value_types.WEBHOOK_SECRET.parse(value_types.WEBHOOK_SECRET.mask) == ""
