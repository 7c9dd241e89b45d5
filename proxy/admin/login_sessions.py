"""Login sessions of the dashboard: a cookie that stands for the admin token for twelve hours.

The cookie is random and says nothing of the token. It ends with the process, with a change of the token that it was
created for, and with a logout.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

COOKIE_NAME = "outrigger"
SESSION_SECONDS = 12 * 3600.0
MAX_SESSIONS = 64  # at once; the oldest is dropped first


class LoginSessions:
    """`token` returns the admin token in force."""

    def __init__(self, token: Callable[[], str], *, clock: Callable[[], float]) -> None:
        self._token = token
        self._clock = clock
        self._open: OrderedDict[str, tuple[float, str]] = OrderedDict()  # by cookie: its end, its token

    def __len__(self) -> int:
        return len(self._open)

    def create(self) -> str:
        """Begin a session; the value of its cookie."""
        value = secrets.token_urlsafe(32)
        self._open[value] = (self._clock() + SESSION_SECONDS, self._token())
        # Bounded: a script that logs in at every run must not fill memory.
        while len(self._open) > MAX_SESSIONS:
            self._open.popitem(last=False)
        return value

    def is_logged_in(self, cookies: str | None) -> bool:
        """Whether a Cookie header has a session that is still valid."""
        return any(self._is_valid(value) for value in _cookie_values(cookies))

    def revoke(self, cookies: str | None) -> None:
        for value in _cookie_values(cookies):
            self._open.pop(value, None)

    def _is_valid(self, value: str) -> bool:
        session = self._open.get(value)
        if session is None:
            return False
        ends, token = session
        # The token is compared as well: when an operator replaces it, whoever knew the old one is logged out.
        if self._clock() < ends and token and token == self._token():
            return True
        del self._open[value]
        return False


def render_cookie(value: str, path: str, *, secure: bool) -> str:
    """The Set-Cookie header's value; an empty `value` deletes the cookie."""
    age = int(SESSION_SECONDS) if value else 0
    text = f"{COOKIE_NAME}={value}; Path={path}; Max-Age={age}; HttpOnly; SameSite=Strict"
    return f"{text}; Secure" if secure else text


def _cookie_values(cookies: str | None) -> list[str]:
    """The values of every cookie of this name: the browser may send one of another path beside the right one."""
    found = []
    for pair in (cookies or "").split(";"):
        # One by one: SimpleCookie gives up on the whole header at the first cookie of the app that it cannot read.
        try:
            morsel = SimpleCookie(pair.strip()).get(COOKIE_NAME)
        except CookieError:
            continue
        if morsel is not None:
            found.append(morsel.value)
    return found
