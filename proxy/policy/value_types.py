"""The types of single values: how each is parsed and formatted, and what a fault says to write instead.

A ValueType stands in an annotation (`Annotated[float, DURATION]`), which the reader and the renderer follow.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from proxy import units


@dataclass(frozen=True, slots=True)
class ValueType:
    """One type of value. `parse` raises ValueError with one clause; `format` is its inverse."""

    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    hint: str  # completes the sentence "write …": "a duration such as 30s"
    secret: bool = False  # never shown, by a fault or by the renderer
    mask: str = "***"  # what is shown in a secret's place, and loads again
    quoted: bool = True  # whether a fault may quote the text; URLs may carry passwords
    empty: bool = False  # whether the empty text is a value of its own
    # What an editor can know: a regular expression (also ECMA-262's) that every text that `parse` takes matches, if
    # only roughly, and the bounds of a whole number. Without a pattern an editor lets every text pass.
    pattern: str = ""
    bounds: tuple[int, int] | None = None


def match_pattern(pattern: str, reason: str) -> Callable[[str], str]:
    compiled = re.compile(pattern, re.ASCII)

    def parse(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(reason)
        return text

    return parse


def whole_number(low: int, high: int = 10**12) -> ValueType:
    def parse(text: str) -> int:
        # int() would accept underscores, spaces and digits of other scripts.
        if re.fullmatch(r"[-+]?[0-9]{1,15}", text, re.ASCII) is None:
            raise ValueError("it is not a whole number")
        number = int(text)
        if number < low:
            raise ValueError(f"it is below {low}")
        if number > high:
            raise ValueError(f"it is above {high}")
        return number

    span = f"from {low} up" if high == 10**12 else f"from {low} to {high}"
    return ValueType(parse, str, f"a whole number {span}", pattern="[-+]?[0-9]{1,15}", bounds=(low, high))


def text_matching(pattern: str, reason: str, hint: str) -> ValueType:
    """Texts that a regular expression takes as a whole; `reason` is the clause for any other."""
    return ValueType(match_pattern(pattern, reason), str, hint, pattern=pattern)


def _reject_zero(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse_nonzero(text: str) -> Any:
        value = parse(text)
        if not value:
            raise ValueError("it is zero")
        return value

    return parse_nonzero


def _parse_factor(text: str) -> float:
    # float() would accept inf, nan, 1e400 and underscores.
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", text, re.ASCII) is None:
        raise ValueError("it is not a number")
    if (value := float(text)) < 1:
        raise ValueError("it is below 1")
    return value


def _parse_price(text: str) -> Decimal:
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,12})?", text, re.ASCII) is None:
        raise ValueError("it is not a number of dollars")
    return Decimal(text)


def _parse_price_time(text: str) -> str:
    if re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]", text, re.ASCII):
        return text
    try:
        if re.fullmatch(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
            return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    raise ValueError("it is neither a day nor two times of a day")


def _parse_header_size(text: str) -> int:
    size = units.parse_size(text)
    # Below it no browser's request fits; above it one request holds a megabyte before it is even routed.
    if not 1024 <= size <= 1 << 20:
        raise ValueError("it is not between 1KiB and 1MiB")
    return size


def _parse_byte_rate(text: str) -> int:
    size, slash, unit = text.partition("/")
    if not slash or unit.strip() != "s":
        raise ValueError("it is not a size and /s")
    if not (number := units.parse_size(size)):
        raise ValueError("it is zero")
    return number


def _parse_text(text: str) -> str:
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text):
        raise ValueError("it has a control character in it")
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _parse_prose(text: str) -> str:
    _parse_text(text.replace("\n", " ").replace("\t", " "))
    return text


def _parse_optional_text(text: str) -> str:
    return _parse_text(text) if text else text


def _parse_version(text: str) -> int:
    # A later version of the language would be read wrongly, key by key; it is refused as a whole.
    if text != "1":
        raise ValueError("this gateway knows version 1 alone")
    return 1


def _parse_retry_on(text: str) -> str:
    if text not in ("connect", "reset", "first_byte") and not re.fullmatch(r"[45][0-9][0-9]", text, re.ASCII):
        raise ValueError("it is neither a word nor a status to retry on")
    return text


def _parse_path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("it does not begin with /")
    if re.fullmatch(r"[!-~]+", text) is None:
        raise ValueError("it has a space or a letter that no path may have as it is")
    if "?" in text or "#" in text:
        raise ValueError("it has a query or a fragment")
    return text


def _parse_request_target(text: str) -> str:
    """The origin form of RFC 9112 section 3.2.1: a path, and a query if there is one."""
    _parse_path(text.partition("?")[0])
    if re.fullmatch(r"[!-~]+", text) is None or "#" in text:
        raise ValueError("its query has a space, a fragment or a letter that no query may have as it is")
    return text


def _parse_callback_host(text: str) -> str:
    """A name in lower case, or an address in its shortest form."""
    host = text.removeprefix("[").removesuffix("]") if text.startswith("[") else text
    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            raise ValueError("it has a zone, which means something on one machine alone")
        return str(address)
    if "/" in text or "@" in text or re.search(r":[0-9]*$", text):
        raise ValueError("it has more than a host")
    name = text.lower().removesuffix(".")
    if len(name) > 253 or re.fullmatch(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}", name) is None:
        raise ValueError("it is no name of a host")
    # 127.1, 0x7f.1 and 2130706433 are addresses to a resolver, and would not be known as such (WHATWG URL, 3.5).
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", name.rpartition(".")[2]):
        raise ValueError("it is neither a name nor an address in its usual form")
    return name


_MASKED_WEBHOOK_KEY = "whsec_***"  # what a printed policy has; it loads again, as none


def _parse_webhook_secret(text: str) -> str:
    """A secret of Standard Webhooks; its key is 24 to 64 bytes long."""
    if text == _MASKED_WEBHOOK_KEY:
        return ""
    encoded = text.removeprefix("whsec_")
    if encoded == text:
        raise ValueError("it does not begin with whsec_")
    try:
        key = b64decode(encoded, validate=True)
    except ValueError:
        raise ValueError("what follows whsec_ is no base64") from None
    if not 24 <= len(key) <= 64:
        raise ValueError(f"its key has {len(key)} bytes, and not 24 to 64")
    return text


def _parse_field_value(text: str) -> str:
    # RFC 9110 section 5.5: visible characters with spaces between them. Other bytes are read differently by each app.
    if re.fullmatch(r"[!-~]([ \t!-~]*[!-~])?", text) is None:
        raise ValueError("it has a line end, a space at an end or a character beyond ASCII")
    return text


def _parse_template(text: str) -> str:
    path = _parse_path(text)
    # Two of them could name two users.
    if path.count("{user}") != 1:
        raise ValueError("it does not have {user} once")
    if any(mark in path.replace("{user}", "") for mark in "{}"):
        raise ValueError("it has a name other than {user} in braces")
    return text


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    try:
        # Not strict: 10.1.2.3/8 is understood as 10.0.0.0/8, as routers do.
        return ip_network(text, strict=False)
    except ValueError:
        raise ValueError("it is no network") from None


def _parse_time_zone(text: str) -> str:
    _parse_text(text)
    try:
        # ZoneInfo finds UTC only if the system or a package has the tables; the default must always work.
        if text != "UTC":
            from zoneinfo import ZoneInfo  # 0.2 MiB that few policies need

            ZoneInfo(text)
    except (OSError, ValueError, KeyError):
        raise ValueError("this machine knows no time zone of that name") from None
    return text


_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}"  # RFC 9110 section 5.6.2
# For editors, beside the parsers above: the same texts without what only code can say.
_LINE = r"[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*"
_LINES = r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]*\S[^\x00-\x08\x0b-\x1f\x7f-\x9f]*"
_QUANTITY = r"[0-9]{1,12}(\.[0-9]{1,9})? ?(ms|s|m|h|d)"
_NOT_ZERO = r"(?!0+(\.0+)? ?[A-Za-z]*(/|$))"
_SIZE = r"[0-9]{1,16} ?(B|KiB|MiB|GiB)?"
_DOLLARS = r"[0-9]{1,9}(\.[0-9]{1,12})?"
_PATH = r"/(?![^?#]*[?#])[!-~]*"
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"


def _parse_lower_case(parse: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: parse(text).lower()


# ── the types ────────────────────────────────────────────────────────────────────────────────

DURATION = ValueType(units.parse_duration, units.format_duration, "a duration such as 30s", pattern=_QUANTITY)
PERIOD = ValueType(
    _reject_zero(units.parse_duration),
    units.format_duration,
    "a duration above zero such as 30s",
    pattern=_NOT_ZERO + _QUANTITY,
)
SIZE = ValueType(units.parse_size, units.format_size, "a size such as 10MiB", pattern=_SIZE)
BYTE_RATE = ValueType(
    _parse_byte_rate,
    lambda value: f"{units.format_size(value)}/s",
    "bytes a second such as 500B/s",
    pattern=_NOT_ZERO + _SIZE + "/ ?s ?",
)
HEADER_SIZE = ValueType(_parse_header_size, units.format_size, "a size such as 32KiB", pattern=_SIZE)
PART = ValueType(
    _reject_zero(units.parse_share),
    units.format_share,
    "a share above zero such as 2%",
    pattern=r"(?!0+(\.0+)? ?%)[0-9]{1,3}(\.[0-9]{1,9})? ?%",
)
SHARE = ValueType(units.parse_share, units.format_share, "a share such as 85%", pattern=r"[0-9]{1,3}(\.[0-9]{1,9})? ?%")
MONEY = ValueType(
    units.parse_money, units.format_money, "an amount such as $0.05", pattern=r"\$[0-9]{1,9}(\.[0-9]{1,9})?"
)
PRICE = ValueType(_parse_price, lambda value: f"{value:f}", "dollars per million tokens such as 0.50", pattern=_DOLLARS)
FEE = ValueType(_parse_price, lambda value: f"{value:f}", "dollars each such as 0.01", pattern=_DOLLARS)
TOKENS = text_matching(r"[1-9][0-9]{0,8}", "it is not a number of tokens", "a number of tokens such as 200000")
PRICE_TIME = ValueType(
    _parse_price_time,
    str,
    "a day such as 2027-01-01, or times of each day such as 01:00-04:00 (UTC)",
    pattern=rf"{_CLOCK}-{_CLOCK}|20[0-9]{{2}}-[0-9]{{2}}-[0-9]{{2}}",
)
SERVICE_TIER = text_matching(
    "flex|batch|priority|fast|ultrafast",
    "it is no tier that an answer names and that changes a price",
    "flex, batch, priority, fast or ultrafast",
)
MEMORY = ValueType(
    _reject_zero(units.parse_size), units.format_size, "a size such as 512MiB", pattern=_NOT_ZERO + _SIZE
)
FACTOR = ValueType(_parse_factor, repr, "a number from 1 up such as 2.0", pattern=r"0*[1-9][0-9]*(\.[0-9]{1,9})?")
VERSION = ValueType(_parse_version, str, "1", pattern="1")
PORT = whole_number(0, 65535)
COUNT = whole_number(0)
POSITIVE = whole_number(1)

TEXT = ValueType(_parse_text, str, "a text", pattern=_LINE)
PROSE = ValueType(_parse_prose, str, "a text", pattern=_LINES)
LOOSE_TEXT = ValueType(_parse_optional_text, str, "a text", empty=True, pattern=_LINE)
TOKEN = ValueType(_parse_optional_text, str, "a secret, best as ${NAME}", secret=True, empty=True, pattern=_LINE)
SECRET = ValueType(_parse_text, str, "a secret, best as ${NAME}", secret=True, pattern=_LINE)
# Keys may be several lines long (PEM); an empty one is refused, since anybody could sign with it.
SIGNING_KEY = ValueType(_parse_prose, str, "the key, best as ${JWT_KEY}", secret=True, pattern=_LINES)
PATH = ValueType(_parse_path, str, "a path such as /health", pattern=_PATH)
REQUEST_TARGET = ValueType(
    _parse_request_target, str, "a path such as /jobs/nightly or /jobs?name=nightly", pattern=r'/[!"$-~]*'
)
CALLBACK_HOST = ValueType(
    _parse_callback_host,
    str,
    "a host alone, such as hooks.example.com or 10.0.0.7",
    pattern=r"[A-Za-z0-9_.-]+|\[?[0-9A-Fa-f:.]+\]?",
)
WEBHOOK_SECRET = ValueType(
    _parse_webhook_secret,
    str,
    "whsec_ and the base64 of 24 to 64 random bytes, best as ${OUTRIGGER_TASKS_SECRET:-}",
    secret=True,
    mask=_MASKED_WEBHOOK_KEY,
    empty=True,
    pattern=r"whsec_([A-Za-z0-9+/]{32,88}=?=?|\*+)",
)
TEMPLATE = ValueType(_parse_template, str, "a path such as /api/user/{user}/*", pattern=r"/[!-z|~]*\{user\}[!-z|~]*")
HEADER = text_matching(_NAME, "it is no header name", "a header name such as X-User-Id")
FIELD_VALUE = ValueType(
    _parse_field_value,
    str,
    "the field's value, or null to take it out",
    quoted=False,
    pattern=r"[!-~]([ \t!-~]*[!-~])?",
)
COOKIE = text_matching(_NAME, "it is no cookie name", "a cookie name such as session")
METHOD = text_matching(r"[A-Z][A-Z-]{0,31}", "it is no HTTP method", "a method in capitals such as POST")
RETRY_ON = ValueType(
    _parse_retry_on,
    str,
    "connect, reset, first_byte or a status from 400 to 599",
    pattern="connect|reset|first_byte|[45][0-9][0-9]",
    bounds=(400, 599),
)
SECRET_NAME = ValueType(
    _parse_lower_case(match_pattern(_NAME, "it is no header or query name")),
    str,
    "a name such as x-api-key",
    pattern=_NAME,
)
LABEL = text_matching(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}",
    "it is no name fit for a metrics label",
    "letters, digits, _ - and . only, at most 64",
)
STORE_PREFIX = text_matching(
    r"(?!pg_)[A-Za-z_][A-Za-z0-9_.-]{0,47}",
    "it is no name that begins keys and names a schema",
    "a name such as outrigger: letters, digits, _ - and ., at most 48, none that begins with pg_",
)
VARIABLE = text_matching(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "it is no name of a variable", "a name such as DATABASE_URL")
NETWORK = ValueType(_parse_network, str, "a network such as 10.0.0.0/8", pattern=r"[0-9A-Fa-f:.]+(%[^/]+)?(/[0-9.]+)?")
TIME_ZONE = ValueType(_parse_time_zone, str, "a name such as Europe/Berlin", pattern=_LINE)
