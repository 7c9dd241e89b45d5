"""`Outrigger-Callback`: which URLs may be called back, and which addresses are dialled for them.

A URL is judged twice. When a task is accepted, so that whoever asked hears of a mistake at once (400 `bad-callback`):
its form, whether the policy lists its host, and the addresses that its name has then. And at each delivery, minutes or
hours later: the name is resolved once, every address that it has is judged, and one of exactly these is dialled, so
that a name which says another thing the second time it is asked (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from proxy.errors import OutriggerError, Refusal
from proxy.tasks.public_address import is_public, parse_address

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]  # of a name and a port, the addresses that it has

MAX_URL_LENGTH = 2048  # characters
RESOLVE_SECONDS = 5.0  # that a task which is accepted waits for the addresses of its callback's name
DEFAULT_PORTS = {"http": 80, "https": 443}


class CallbackRefused(OutriggerError):
    """A URL that is not called back; the text is one clause that says why, and does not quote the URL."""


@dataclass(frozen=True, slots=True)
class CallbackUrl:
    """A URL that may be called back. `text` is the whole, a secret; `host` is in lower case, without brackets."""

    text: str
    scheme: str
    host: str
    port: int

    @property
    def shown(self) -> str:
        """What a log line may say: neither path nor query, since either may be a secret (Slack's paths are)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


def parse_callback_url(text: str, listed_hosts: Collection[str]) -> CallbackUrl:
    """The URL of an `Outrigger-Callback` field. Raises CallbackRefused.

    `listed_hosts` is `tasks.callbacks`: names in lower case and addresses in their shortest form.
    """
    if len(text) > MAX_URL_LENGTH:
        raise CallbackRefused(f"it is longer than {MAX_URL_LENGTH} characters")
    # A backslash is a slash to browsers and to some clients: they would see another host than we.
    if re.fullmatch(r"[!-~]+", text) is None or "\\" in text:
        raise CallbackRefused("it has a space, a backslash or a letter that no URL may have as it is")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise CallbackRefused("its host or port cannot be read") from None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise CallbackRefused("it is neither https:// nor http:// and a host")
    if "@" in parts.netloc:
        raise CallbackRefused("it has a user or a password in it")
    if "#" in text:
        raise CallbackRefused("it has a fragment, which is never sent")
    if port == 0 or parts.netloc.endswith(":"):
        raise CallbackRefused("its port is none")
    host = normalize_host(parts.hostname)
    if host not in listed_hosts:
        raise CallbackRefused("its host is not one of tasks.callbacks")
    return CallbackUrl(text, parts.scheme, host, port or DEFAULT_PORTS[parts.scheme])


def normalize_host(host: str) -> str:
    """A host as lists have it: a name in lower case without the last dot, an address in its shortest form."""
    address = parse_address(host)
    return str(address) if address is not None else host.lower().removesuffix(".")


async def resolve_callback(url: CallbackUrl, listed_hosts: Collection[str], resolve: Resolve) -> Sequence[str]:
    """The addresses to dial for a URL. Raises CallbackRefused if one of them may not be, OSError if there is none."""
    address = parse_address(url.host)
    found = [str(address)] if address is not None else await resolve(url.host, url.port)
    if not found:
        raise OSError("the name has no address")
    # All of them, and not the first: which one a second look-up would put first is up to who owns the name.
    for text in found:
        if not is_public(ip_address(text)) and normalize_host(text) not in listed_hosts:
            raise CallbackRefused("its host has an address that is not public, and that tasks.callbacks does not list")
    return found


async def check_callback(text: str, listed_hosts: Collection[str], secret: str, resolve: Resolve) -> CallbackUrl:
    """The URL of the field of a task that is about to be accepted. Raises Refusal (400 `bad-callback`).

    A name that cannot be resolved now is taken: it may be by the time that the task ends.
    """
    try:
        if not secret:
            raise CallbackRefused("callbacks are signed, and tasks.secret is not set")
        url = parse_callback_url(text, listed_hosts)
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                await resolve_callback(url, listed_hosts, resolve)
        except OSError:  # TimeoutError is one
            pass
    except CallbackRefused as refused:
        detail = f"The URL in Outrigger-Callback cannot be called back: {refused}."
        raise Refusal("bad-callback", 400, "Bad callback", detail) from None
    return url


async def resolve_name(host: str, port: int) -> Sequence[str]:
    """The addresses of a name by the system's resolver, each once and in its order. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
