"""Whether a model reads more than the request's body has: what the vendor holds, fetches or looks up.

OpenAI: `previous_response_id` and `conversation` (platform.openai.com/docs/guides/conversation-state), a stored
`prompt`, items and files by id, tools that the vendor runs. Anthropic: `thread`, `container`, `mcp_servers`,
documents by file or address, and its own such tools (docs.anthropic.com/en/docs/agents-and-tools).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

_CONTEXT_MEMBERS = frozenset(
    ("previous_response_id", "conversation", "thread", "container", "mcp_servers", "web_search_options")
)
_SIGNALS = _CONTEXT_MEMBERS | {"prompt", "tools"}
# Tools that the vendor runs: the model reads their results, and no message of the app has them.
_VENDOR_TOOLS = ("file_search", "web_search", "web_fetch", "mcp", "code_interpreter", "code_execution", "tool_search",
          "shell", "advisor", "programmatic_tool_calling")  # fmt: skip
_FILE_MEMBERS = ("file_id", "file_url")


def reads_beyond_body(body: Json) -> bool:
    """Whether the tokens that will be reported cannot be known from the body's length."""
    if not _SIGNALS.isdisjoint(body):  # most bodies have none of them
        if any(body.get(member) not in (None, "", []) for member in _CONTEXT_MEMBERS):
            return True
        if isinstance(body.get("prompt"), dict):
            return True
        tools = body.get("tools")
        for tool in tools if isinstance(tools, list) else ():
            if isinstance(tool, dict) and _is_vendor_tool(tool.get("type")):
                return True
    return any(_refers_to_vendor(block) for block in _content_blocks(body))


def _is_vendor_tool(kind: object) -> bool:
    return isinstance(kind, str) and kind.startswith(_VENDOR_TOOLS)


def _refers_to_vendor(block: Json) -> bool:
    kind = block.get("type")
    # An item with an id and no role stands for one that the vendor stored.
    if kind == "item_reference" or (kind is None and "id" in block and "role" not in block):
        return True
    if kind in ("input_image", "image_url", "image"):
        return False  # an image counts as block, wherever it is held
    if any(block.get(name) for name in _FILE_MEMBERS):
        return True
    held = block.get("source") if kind == "document" else block.get("file") if kind == "file" else None
    return isinstance(held, dict) and bool(held.get("file_id") or held.get("url"))


def _content_blocks(body: Json) -> Iterator[Json]:
    """Each item or message, and each part of its content."""
    for name in ("input", "messages"):
        items = body.get(name)
        for item in items if isinstance(items, list) else ():
            if not isinstance(item, dict):
                break  # a list of strings, or of tokens
            content = item.get("content")
            if isinstance(content, str) and "role" in item:
                continue  # the usual case: a message of text
            yield item
            for part in content if isinstance(content, list) else ():
                if isinstance(part, dict):
                    yield part
