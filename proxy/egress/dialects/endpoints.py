"""How each endpoint is metered: the one place that says so, to the dialects and to docs/money.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeteredEndpoint:
    """Paths below /v1, with `{…}` for any segment.

    `whole` and `streamed` say what an answer is paid by, empty if there is no such answer; `else_by` says what is paid
    if the answer reports nothing: it was cut or timed out, or the host reports no usage.
    """

    name: str  # what money and streams go by
    paths: tuple[str, ...]
    whole: str
    streamed: str
    else_by: str


@dataclass(frozen=True, slots=True)
class UnmeteredPaths:
    """Paths, and all below them, that pass without a price; and why."""

    paths: tuple[str, ...]
    why: str


REPORTED = "reported"
FREE = "free"
ASKED = "by what is asked"
WRITTEN = "the question by its bytes, the answer by what was written"

OPENAI = (
    MeteredEndpoint("chat", ("/chat/completions",), REPORTED, REPORTED, WRITTEN),
    MeteredEndpoint("responses", ("/responses",), REPORTED, REPORTED, WRITTEN),
    MeteredEndpoint("compact", ("/responses/compact",), REPORTED, "", WRITTEN),
    MeteredEndpoint("completions", ("/completions",), REPORTED, REPORTED, WRITTEN),
    MeteredEndpoint("decisions", ("/decisions",), REPORTED, "", WRITTEN),
    MeteredEndpoint("embeddings", ("/embeddings",), REPORTED, "", "the question by its bytes"),
    MeteredEndpoint("moderations", ("/moderations",), FREE, "", FREE),
    MeteredEndpoint("audio", ("/audio/speech",), ASKED, REPORTED, "the text, as long as it takes to say"),
    MeteredEndpoint(
        "audio",
        ("/audio/transcriptions", "/audio/translations"),
        REPORTED,
        REPORTED,
        "the upload by its length, the text by its bytes",
    ),
    MeteredEndpoint(
        "images",
        ("/images/generations", "/images/edits", "/images/variations"),
        REPORTED,
        REPORTED,
        "number, size and quality of the images",
    ),
    MeteredEndpoint(
        "videos",
        ("/videos", "/videos/edits", "/videos/extensions", "/videos/{id}/remix"),
        ASKED,
        "",
        "seconds and size of the video",
    ),
)
OPENAI_UNMETERED = (
    UnmeteredPaths(("/realtime", "/live"), "passes byte for byte; a WebSocket is refused when no money is left"),
    UnmeteredPaths(("/threads", "/assistants", "/agents", "/chatkit"), "their runs are billed by the vendor, later"),
    UnmeteredPaths(("/batches", "/fine_tuning", "/evals"), "jobs: billed by the vendor, later"),
    UnmeteredPaths(
        ("/files", "/uploads", "/vector_stores", "/containers"), "storage and machines, billed by their time"
    ),
    UnmeteredPaths(("/responses/input_tokens",), FREE),
    UnmeteredPaths(("/responses/{id}/cancel",), "free; one in the background is paid by what this shows, as GET does"),
    UnmeteredPaths(
        ("/chat/completions/{id}", "/conversations", "/videos/characters", "/audio/voices", "/audio/voice_consents"),
        "what is kept there is free",
    ),
    UnmeteredPaths(("/content_provenance_checks", "/skills", "/vaults", "/webhook_endpoints"), FREE),
    UnmeteredPaths(("/organization", "/projects"), "administration"),
)
ANTHROPIC = (MeteredEndpoint("messages", ("/messages",), REPORTED, REPORTED, WRITTEN),)
ANTHROPIC_UNMETERED = (
    UnmeteredPaths(("/messages/batches",), "jobs: billed by the vendor, later"),
    UnmeteredPaths(
        ("/agents", "/sessions", "/deployments", "/dreams", "/environments", "/memory_stores"),
        "their runs are billed by the vendor, later",
    ),
    UnmeteredPaths(("/messages/count_tokens", "/files", "/skills", "/vaults", "/tunnels", "/user_profiles"), FREE),
    UnmeteredPaths(("/organizations", "/compliance"), "administration"),
)


class EndpointTable:
    """Looks up a plain path below the base, in any case, with /v1 or without."""

    def __init__(self, rows: Sequence[MeteredEndpoint]) -> None:
        found = [(path, row.name) for row in rows for path in row.paths]
        self._exact = {path: name for path, name in found if "{" not in path}
        self._others = [(path_pattern(path), name) for path, name in found if "{" in path]

    def find(self, path: str) -> str | None:
        short = path.lower().removeprefix("/v1")
        name = self._exact.get(short)
        if name is not None:
            return name
        return next((name for match, name in self._others if match.fullmatch(short)), None)


def path_pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path)))
