"""`ctl/…`: an operator's hand on the running gateway. POST, no body; the path is the whole order.

    block/USER  unblock/USER  forgive/USER  breaker/UPSTREAM/open|close|auto  reload  restart-app

Names are percent-encoded. What was done comes back as one sentence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol
from urllib.parse import unquote

from proxy.errors import Refusal
from proxy.observe.emit import Emit, Level

PREFIX = "/ctl"
LONGEST = 256  # characters of a user's name
ORDERS = "block/USER, unblock/USER, forgive/USER, breaker/UPSTREAM/open|close|auto, reload, restart-app"


class Actions(Protocol):
    """Each does it and says in a sentence what was done. Raises Refusal where it cannot be."""

    async def block(self, user: str) -> str: ...
    async def unblock(self, user: str) -> str: ...
    async def forgive(self, user: str) -> str: ...
    async def breaker(self, upstream: str, word: str) -> str: ...
    async def reload(self) -> str: ...
    async def restart_app(self) -> str: ...


class Ctl:
    def __init__(self, actions: Actions, emit: Emit) -> None:
        self._emit = emit
        self._actions = actions
        self._named: Mapping[str, Callable[[str], Awaitable[str]]] = {
            "block": actions.block,
            "unblock": actions.unblock,
            "forgive": actions.forgive,
        }
        self._bare: Mapping[str, Callable[[], Awaitable[str]]] = {
            "reload": actions.reload,
            "restart-app": actions.restart_app,
        }

    def takes(self, path: str) -> bool:
        return path == PREFIX or path.startswith(f"{PREFIX}/")

    async def do(self, path: str, *, peer: str, request_id: str) -> str:
        """What was done. Raises Refusal."""
        words = [_decoded(word) for word in path[len(PREFIX) + 1 :].split("/")]
        try:
            done = await self._do(words)
        except Refusal as refusal:
            self._log(words, refusal.detail, peer, request_id, level="warning", refused=refusal.name)
            raise
        self._log(words, done, peer, request_id, level="info")
        return done

    async def _do(self, words: Sequence[str]) -> str:
        match words:
            case [word] if word in self._bare:
                return await self._bare[word]()
            case [word, user] if word in self._named:
                return await self._named[word](_user(user))
            case ["breaker", upstream, ("open" | "close" | "auto") as word]:
                return await self._actions.breaker(upstream, word)
        raise Refusal("unknown-action", 404, "No such action", f"There are {ORDERS}; names are percent-encoded.")

    def _log(self, words: Sequence[str], text: str, peer: str, request_id: str, *, level: Level, **more: str) -> None:
        """The subject is what the action is on: a user's name is logged here as it is with each request."""
        action, *rest = words
        subject = rest[0] if rest else None
        if action == "breaker":
            action = " ".join(("breaker", *rest[1:]))
        self._emit("ctl", text, level=level, action=action, subject=subject, peer=peer, request_id=request_id, **more)


def _decoded(word: str) -> str:
    try:
        return unquote(word, errors="strict")
    except UnicodeDecodeError:
        detail = "A name in this path is not UTF-8, percent-encoded (RFC 3986 section 2.5)."
        raise Refusal("bad-name", 400, "Not a name", detail) from None


def _user(name: str) -> str:
    if not name or len(name) > LONGEST or not name.isprintable():
        detail = f"A user's name has 1 to {LONGEST} printable characters; the log shows it as `user`."
        raise Refusal("bad-name", 400, "Not a user's name", detail)
    return name
