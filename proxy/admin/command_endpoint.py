"""The operator's commands over HTTP: POST `/ctl/…` without a body; the path says all.

    block/USER  unblock/USER  forgive/USER  breaker/UPSTREAM/open|close|auto  reload  restart-app
    purge/ROUTE[/PATH]  task/ID/retry|cancel

Names are percent-encoded. The response says in one sentence what was done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol
from urllib.parse import unquote

from proxy.errors import Refusal
from proxy.observe.emit import EmitEvent, LogLevel
from proxy.tasks.record import cut_id

PREFIX = "/ctl"
MAX_USER_CHARS = 256
COMMANDS = (
    "block/USER, unblock/USER, forgive/USER, breaker/UPSTREAM/open|close|auto, reload, restart-app,"
    " purge/ROUTE[/PATH], task/ID/retry|cancel"
)


class OperatorCommands(Protocol):
    """What the commands do to the gateway. Each returns a sentence that says what was done, or raises Refusal."""

    async def block_user(self, user: str) -> str: ...
    async def unblock_user(self, user: str) -> str: ...
    async def forgive_user(self, user: str) -> str: ...
    async def force_breaker(self, upstream: str, word: str) -> str: ...
    async def reload_policy(self) -> str: ...
    async def restart_app(self) -> str: ...
    async def purge_cache(self, route: str, path: str | None) -> str: ...
    async def retry_task(self, id: str) -> str: ...
    async def cancel_task(self, id: str) -> str: ...


class CommandEndpoint:
    """Reads a command out of a path, runs it and logs it with the peer that sent it, refused ones too."""

    def __init__(self, commands: OperatorCommands, emit: EmitEvent) -> None:
        self._emit = emit
        self._commands = commands
        self._user_commands: Mapping[str, Callable[[str], Awaitable[str]]] = {
            "block": commands.block_user,
            "unblock": commands.unblock_user,
            "forgive": commands.forgive_user,
        }
        self._plain_commands: Mapping[str, Callable[[], Awaitable[str]]] = {
            "reload": commands.reload_policy,
            "restart-app": commands.restart_app,
        }

    def matches(self, path: str) -> bool:
        return path == PREFIX or path.startswith(f"{PREFIX}/")

    async def execute(self, path: str, *, peer: str, request_id: str) -> str:
        """Run the command that a path names; a sentence that says what was done. Raises Refusal."""
        # Split before decoding: a user's name may contain an encoded slash.
        words = [_decode_word(word) for word in path[len(PREFIX) + 1 :].split("/")]
        # Refused commands are logged as well: somebody tried, and an audit wants to know.
        try:
            done = await self._dispatch(words)
        except Refusal as refusal:
            self._log_command(words, refusal.detail, peer, request_id, level="warning", refused=refusal.name)
            raise
        self._log_command(words, done, peer, request_id, level="info")
        return done

    async def _dispatch(self, words: Sequence[str]) -> str:
        match words:
            case [word] if word in self._plain_commands:
                return await self._plain_commands[word]()
            case [word, user] if word in self._user_commands:
                return await self._user_commands[word](_check_user(user))
            case ["breaker", upstream, ("open" | "close" | "auto") as word]:
                return await self._commands.force_breaker(upstream, word)
            case ["purge", route]:
                return await self._commands.purge_cache(route, None)
            case ["purge", route, path] if path.startswith("/"):
                return await self._commands.purge_cache(route, path)
            case ["task", id, "retry"]:
                return await self._commands.retry_task(id)
            case ["task", id, "cancel"]:
                return await self._commands.cancel_task(id)
        raise Refusal("unknown-action", 404, "No such action", f"There are {COMMANDS}; names are percent-encoded.")

    def _log_command(
        self, words: Sequence[str], text: str, peer: str, request_id: str, *, level: LogLevel, **more: str
    ) -> None:
        """`subject` is what the command acts on; a user's name is logged here as it is with each request."""
        action, *rest = words
        subject = rest[0] if rest else None
        if action == "breaker":
            action = " ".join(("breaker", *rest[1:]))
        elif action == "task" and rest:
            # Whoever has a whole id may ask for the task and its result: a log line has its beginning.
            action, subject = " ".join(("task", *rest[1:])), cut_id(rest[0])
        self._emit("ctl", text, level=level, action=action, subject=subject, peer=peer, request_id=request_id, **more)


def _decode_word(word: str) -> str:
    try:
        return unquote(word, errors="strict")
    except UnicodeDecodeError:
        detail = "A name in this path is not UTF-8, percent-encoded (RFC 3986 section 2.5)."
        raise Refusal("bad-name", 400, "Not a name", detail) from None


def _check_user(name: str) -> str:
    if not name or len(name) > MAX_USER_CHARS or not name.isprintable():
        detail = f"A user's name has 1 to {MAX_USER_CHARS} printable characters; the log shows it as `user`."
        raise Refusal("bad-name", 400, "Not a user's name", detail)
    return name
