"""Redaction: secrets are removed before anything is logged.

Which names are secret: after percent-decoding, a name is split into words, at anything but letters and digits and at
the turns of camelCase. It is secret if a listed name, its words joined, ends one of them; a plural or a number after
it counts too. With the list as shipped: `token`, `api_key`, `apiKey`, `apikey`,
`access_token`, `user[password]`, `password2`, `X-Auth-Token` are; `keyword`, `tokenizer` and `passwordless`
are not. The price is a false positive now and then (`monkey`): better one value too many than one too few.

In a query, text that people write is hidden as well, since prompts are kept nowhere: the values of `prompt`, `message`,
`question` and the like (PROMPTS), and under any name a text of more than four words or of more than 100 characters.

In a path a segment is secret if its prefix says so (`bot123:…`, the prefixes of vendors' keys: `sk-…`, `ghp_…`, a JWT),
if it follows Slack's `/services/T…`, and if it looks random and follows a secret name or a word of links that open
something (`/reset/…`, `/webhooks/…`). Other long segments are ids, which people search a log for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote_plus

MASK = "***"
PROMPTS = ("prompt", "message", "messages", "question", "input", "content", "conversation", "instructions")
MAX_QUERY_WORDS = 4
MAX_QUERY_TEXT_LENGTH = 100

_CAMEL_CASE_TURN = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[^a-z0-9]+")
_USERINFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*:)?//[^/?#]*@")
# Vendors' keys by their prefix; the prefix itself is shown.
_PREFIXED_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:(bot[0-9]+(?::|%3a))[^/]+|"
    r"(sk-|[sr]k_(?:live|test)_|whsec_|xox[a-z]-|xapp-|gh[a-z]_|github_pat_|glpat-|akia|aiza|ya29\.|hf_|eyj)"
    r"(?=[^/]*[0-9])[A-Za-z0-9_.~:=%-]{16,})",
    re.IGNORECASE,
)
_SLACK_WEBHOOK = re.compile(r"(/(?:services|triggers|workflows)/T[A-Z0-9]+/).+")
_SECRET_FOLLOWS = re.compile(
    r"(?:verif|confirm|activat|invit|magic|reset|unsubscribe|recover|hooks?$|webhook)", re.IGNORECASE
)
_RANDOM = re.compile(r"(?=[^A-Za-z]*[A-Za-z])(?=[^0-9]*[0-9])[A-Za-z0-9_.~:=%-]{16,}")
_LONG_SEGMENT = re.compile("[^/]{16}")  # most paths have no such segment, and so no secret


def _join_words(name: str) -> str:
    return _SEPARATORS.sub("-", name.lower()).strip("-")


class Redactor:
    """Hides the values of headers and query parameters whose names are secret. Knows names, never values."""

    def __init__(self, names: Iterable[str]) -> None:
        listed = sorted({words for name in names if (words := _join_words(name))})
        if not listed:
            listed = ["(?!)"]  # matches nothing
            self._rule = re.compile(listed[0])
            self._hint = re.compile("|".join(PROMPTS), re.IGNORECASE)
        else:
            self._rule = re.compile(rf"(?:{'|'.join(map(re.escape, listed))})s?[0-9]*(?:-|$)")
            last = sorted({words.rsplit("-", 1)[-1] for words in listed})
            self._hint = re.compile("|".join(map(re.escape, (*last, *PROMPTS))), re.IGNORECASE)
        # Bounded, since clients choose the names; one cache an instance, since policies differ.
        self._known = lru_cache(maxsize=512)(self._matches_rule)

    def is_secret(self, name: str) -> bool:
        """Whether the value of this name must not be logged."""
        return self._known(name)

    def _matches_rule(self, name: str) -> bool:
        decoded = unquote_plus(name) if "%" in name or "+" in name else name
        search = self._rule.search
        return bool(search(_join_words(decoded)) or search(_join_words(_CAMEL_CASE_TURN.sub("-", decoded))))

    def redact_header(self, name: str, value: str) -> str:
        return MASK if self.is_secret(name) else value

    def redact_headers(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(name, self.redact_header(name, value)) for name, value in pairs]

    def redact_target(self, target: str) -> str:
        """A request target or URL as it may be logged: unchanged except for secret values and userinfo.

        Bytes that are not UTF-8 (surrogates from `surrogateescape`) are percent-encoded.
        """
        if target[:1] != "/" or target[:2] == "//":
            target = _USERINFO.sub(lambda found: f"{found[1] or ''}//", target)
        path, mark, query = target.partition("?")
        shown = self.redact_path(path)
        # The hint is a cheap test for the common case, a query without any word that a secret's name may end with.
        if mark and ("%" in query or "+" in query or len(query) > MAX_QUERY_TEXT_LENGTH or self._hint.search(query)):
            target = f"{shown}?{'&'.join(map(self._redact_parameter, query.split('&')))}"
        elif shown is not path:
            target = f"{shown}{mark}{query}"
        return target if target.isascii() else _percent_encode_surrogates(target)

    def redact_path(self, path: str) -> str:
        """A path without the secrets in it, percent-encoded as it came."""
        if "/bot" not in path and (len(path) <= 16 or _LONG_SEGMENT.search(path) is None):
            return path
        shown = _SLACK_WEBHOOK.sub(rf"\1{MASK}", _PREFIXED_KEY.sub(lambda found: f"{found[1] or found[2]}{MASK}", path))
        # What looks random is hidden only after such a word: elsewhere it is an id.
        segments = shown.split("/")
        behind = False
        for index, segment in enumerate(segments):
            if behind and _RANDOM.fullmatch(segment):
                segments[index] = MASK
            elif len(segment) <= 64 and (_SECRET_FOLLOWS.match(segment) or self.is_secret(segment)):
                behind = True
        found = "/".join(segments)
        return path if found == path else found

    def _redact_parameter(self, pair: str) -> str:
        # Some parsers also split pairs at `;`. A secret is hidden up to the `&`, since it may contain a `;` itself.
        at = 0
        while True:
            end = pair.find(";", at)
            name, equals, _ = pair[at : end if end >= 0 else None].partition("=")
            if equals and (self.is_secret(name) or _is_free_text(name, pair[at + len(name) + 1 :])):
                return f"{pair[: at + len(name)]}={MASK}"
            if end < 0:
                return pair
            at = end + 1


def _is_free_text(name: str, value: str) -> bool:
    """Whether a person may have written this value: a prompt, a message."""
    if name.lower() in PROMPTS or len(value) > MAX_QUERY_TEXT_LENGTH:
        return True
    return value.count("+") + value.count("%20") >= MAX_QUERY_WORDS


def _percent_encode_surrogates(text: str) -> str:
    return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in text)
