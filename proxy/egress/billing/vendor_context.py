"""Whether a model reads more than the request's body has: what the vendor holds, fetches or looks up.

OpenAI: `previous_response_id` and `conversation` (platform.openai.com/docs/guides/conversation-state), a stored
`prompt`, items and files by id, tools that the vendor runs. Anthropic: `thread`, `container`, `mcp_servers`,
documents by file or address, and its own such tools (docs.anthropic.com/en/docs/agents-and-tools).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

_MEMBERS = frozenset(
    ("previous_response_id", "conversation", "thread", "container", "mcp_servers", "web_search_options")
)
_TOLD = _MEMBERS | {"prompt", "tools"}
# Tools whose results the model reads and no message of the app's has.
_TOOLS = ("file_search", "web_search", "web_fetch", "mcp", "code_interpreter", "code_execution", "tool_search",
          "shell", "advisor", "programmatic_tool_calling")  # fmt: skip
_NAMED = ("file_id", "file_url")


def reads_beyond_body(body: Json) -> bool:
    """Whether the tokens that will be reported cannot be known by the body's length."""
    if not _TOLD.isdisjoint(body):  # the usual has none of them
        if any(body.get(member) not in (None, "", []) for member in _MEMBERS) or isinstance(body.get("prompt"), dict):
            return True
        tools = body.get("tools")
        if isinstance(tools, list) and any(isinstance(tool, dict) and _runs(tool.get("type")) for tool in tools):
            return True
    return any(_refers(one) for one in _blocks(body))


def _runs(kind: object) -> bool:
    return isinstance(kind, str) and kind.startswith(_TOOLS)


def _refers(one: Json) -> bool:
    kind = one.get("type")
    if kind == "item_reference" or (kind is None and "id" in one and "role" not in one):
        return True
    if kind in ("input_image", "image_url", "image"):
        return False  # a picture counts as one, wherever it is
    if any(one.get(name) for name in _NAMED):
        return True
    held = one.get("source") if kind == "document" else one.get("file") if kind == "file" else None
    return isinstance(held, dict) and bool(held.get("file_id") or held.get("url"))


def _blocks(body: Json) -> Iterator[Json]:
    """Each item or message, and each part of its content."""
    for name in ("input", "messages"):
        items = body.get(name)
        for item in items if isinstance(items, list) else ():
            if not isinstance(item, dict):
                break  # of strings, or of tokens
            content = item.get("content")
            if isinstance(content, str) and "role" in item:
                continue  # the usual: a message of text
            yield item
            for part in content if isinstance(content, list) else ():
                if isinstance(part, dict):
                    yield part
