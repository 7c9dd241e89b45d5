"""The values and annotated types that the schema's sections are written in: rates, spends, addresses.

An annotation adds to a type how it is read: a ValueType for a single value; a word, or ByTier, for a text of another
shape (`custom_readers.py`). The reader and the renderer are driven by these annotations alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType
from typing import Annotated, Any

from proxy import units
from proxy.policy import value_types
from proxy.policy.value_types import ValueType

Seconds = Annotated[float, value_types.DURATION]
Period = Annotated[float, value_types.PERIOD]  # seconds, above zero
Bytes = Annotated[int, value_types.SIZE]
Share = Annotated[float, value_types.SHARE]
Dollars = Annotated[Decimal, value_types.MONEY]
Count = Annotated[int, value_types.COUNT]
Positive = Annotated[int, value_types.POSITIVE]
Path = Annotated[str, value_types.PATH]
Label = Annotated[str, value_types.LABEL]
Network = IPv4Network | IPv6Network


def empty_mapping() -> Mapping[str, Any]:
    return MappingProxyType({})


def enclosing_keys(key: str) -> Iterator[str]:
    """A key and those that enclose it, from the inside out: `a[0].b`, `a[0]`, `a`."""
    while key:
        yield key
        key = key[: max(key.rfind("."), key.rfind("["), 0)]


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` in every window of `period` seconds."""

    count: int
    period: float

    def __str__(self) -> str:
        return units.format_rate(self.count, self.period)

    @classmethod
    def parse(cls, text: str) -> Rate:
        return cls(*units.parse_rate(text))


@dataclass(frozen=True, slots=True)
class Spend:
    """Dollars in a calendar hour, day or month of the cap's time zone."""

    amount: Decimal
    period: units.SpendPeriod

    def __str__(self) -> str:
        return units.format_spend(self.amount, self.period)

    @classmethod
    def parse(cls, text: str) -> Spend:
        return cls(*units.parse_spend(text))


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT to listen on; port 0 is any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        # The last colon, since an IPv6 address has others.
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ValueError("it is not HOST:PORT")
        number: int = value_types.PORT.parse(port)
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if ":" in bare:
            if bare == host:
                raise ValueError("an IPv6 address stands in brackets before its port")
            try:
                IPv6Address(bare)
            except ValueError:
                raise ValueError("its host is no IPv6 address") from None
        # With underscores, which no host name should have and names of containers do.
        elif re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,252})?", bare) is None:
            raise ValueError("its host is no address and no name")
        return cls(bare, number)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_PORT = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[0-5]?[0-9]{1,4})"
RATE = ValueType(
    Rate.parse,
    str,
    "a rate such as 10/h or 5/10s",
    pattern=f" *0*[1-9][0-9]* */ *(s|min|h|d|{value_types.PERIOD.pattern}) *",
)
SPEND = ValueType(
    Spend.parse,
    str,
    "money in a time such as $0.50/d or $10/month",
    pattern=f" *{value_types.MONEY.pattern} */ *(h|d|month) *",
)
ADDRESS = ValueType(
    Address.parse,
    str,
    "HOST:PORT such as 127.0.0.1:9901",
    pattern=rf"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9_.-]*)?:{_PORT}",
)
ListenAt = Annotated[Address, ADDRESS]


ANY_TIER = "*"


@dataclass(frozen=True, slots=True)
class ByTier:
    """Annotates `10/h`, `[40/h, 5/min]` or `{free: 10/h, premium: [40/h, 5/min]}`.

    The value is a mapping from tier to values; values for every tier are under ANY_TIER.
    """

    kind: ValueType
