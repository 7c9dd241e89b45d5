"""Who has shown the token to the dashboard's form: a cookie that stands for it for twelve hours.

The cookie is random and says nothing of the token. It ends with the process, with the token it was given for,
and with a logout.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

COOKIE = "outrigger"
LASTS = 12 * 3600.0  # seconds
MOST = 64  # sessions at once; the oldest goes first


class Sessions:
    """`token` gives the admin token of now."""

    def __init__(self, token: Callable[[], str], *, clock: Callable[[], float]) -> None:
        self._token = token
        self._clock = clock
        self._open: OrderedDict[str, tuple[float, str]] = OrderedDict()  # by cookie: its end, and its token

    def __len__(self) -> int:
        return len(self._open)

    def begin(self) -> str:
        """The value of a new session's cookie."""
        value = secrets.token_urlsafe(32)
        self._open[value] = (self._clock() + LASTS, self._token())
        while len(self._open) > MOST:
            self._open.popitem(last=False)
        return value

    def holds(self, cookies: str | None) -> bool:
        """Whether a Cookie field has a session that is still good."""
        return any(self._good(value) for value in _values(cookies))

    def end(self, cookies: str | None) -> None:
        for value in _values(cookies):
            self._open.pop(value, None)

    def _good(self, value: str) -> bool:
        found = self._open.get(value)
        if found is None:
            return False
        ends, token = found
        if self._clock() < ends and token and token == self._token():
            return True
        del self._open[value]
        return False


def set_cookie(value: str, path: str, *, secure: bool) -> str:
    """The Set-Cookie field; without a value it takes the cookie away."""
    age = int(LASTS) if value else 0
    text = f"{COOKIE}={value}; Path={path}; Max-Age={age}; HttpOnly; SameSite=Strict"
    return f"{text}; Secure" if secure else text


def _values(cookies: str | None) -> list[str]:
    """Of every cookie of ours in the field: one of another path, or of another's making, may stand beside it."""
    found = []
    for pair in (cookies or "").split(";"):
        try:
            morsel = SimpleCookie(pair.strip()).get(COOKIE)
        except CookieError:
            continue
        if morsel is not None:
            found.append(morsel.value)
    return found
