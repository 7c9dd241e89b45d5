"""How each endpoint is metered: the one place that says so, to the dialects and to docs/exactly.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metered:
    """Paths below /v1, `{…}` for what is anything. `whole` and `streamed` say what an answer is paid by, empty where
    there is no such answer; `else_by` what is paid where it does not tell: cut, timed out, by a host that tells none.
    """

    name: str  # what money and streams go by
    paths: tuple[str, ...]
    whole: str
    streamed: str
    else_by: str


@dataclass(frozen=True, slots=True)
class Unmetered:
    """Paths, and all below them, that pass without a price; and why."""

    paths: tuple[str, ...]
    why: str


REPORTED = "reported"
FREE = "free"
ASKED = "by what is asked"
WRITTEN = "the question by its bytes, the answer by what was written"

OPENAI = (
    Metered("chat", ("/chat/completions",), REPORTED, REPORTED, WRITTEN),
    Metered("responses", ("/responses",), REPORTED, REPORTED, WRITTEN),
    Metered("compact", ("/responses/compact",), REPORTED, "", WRITTEN),
    Metered("completions", ("/completions",), REPORTED, REPORTED, WRITTEN),
    Metered("decisions", ("/decisions",), REPORTED, "", WRITTEN),
    Metered("embeddings", ("/embeddings",), REPORTED, "", "the question by its bytes"),
    Metered("moderations", ("/moderations",), FREE, "", FREE),
    Metered("audio", ("/audio/speech",), ASKED, REPORTED, "the text, as long as it takes to say"),
    Metered(
        "audio",
        ("/audio/transcriptions", "/audio/translations"),
        REPORTED,
        REPORTED,
        "the upload by its length, the text by its bytes",
    ),
    Metered(
        "images",
        ("/images/generations", "/images/edits", "/images/variations"),
        REPORTED,
        REPORTED,
        "number, size and quality of the images",
    ),
    Metered(
        "videos",
        ("/videos", "/videos/edits", "/videos/extensions", "/videos/{id}/remix"),
        ASKED,
        "",
        "seconds and size of the video",
    ),
)
OPENAI_UNMETERED = (
    Unmetered(("/realtime", "/live"), "passes byte for byte; a WebSocket is refused when no money is left"),
    Unmetered(("/threads", "/assistants", "/agents", "/chatkit"), "their runs are billed by the vendor, later"),
    Unmetered(("/batches", "/fine_tuning", "/evals"), "jobs: billed by the vendor, later"),
    Unmetered(("/files", "/uploads", "/vector_stores", "/containers"), "storage and machines, billed by their time"),
    Unmetered(("/responses/input_tokens",), FREE),
    Unmetered(("/responses/{id}/cancel",), "free; one in the background is paid by what this shows, as GET does"),
    Unmetered(
        ("/chat/completions/{id}", "/conversations", "/videos/characters", "/audio/voices", "/audio/voice_consents"),
        "what is kept there is free",
    ),
    Unmetered(("/content_provenance_checks", "/skills", "/vaults", "/webhook_endpoints"), FREE),
    Unmetered(("/organization", "/projects"), "administration"),
)
ANTHROPIC = (Metered("messages", ("/messages",), REPORTED, REPORTED, WRITTEN),)
ANTHROPIC_UNMETERED = (
    Unmetered(("/messages/batches",), "jobs: billed by the vendor, later"),
    Unmetered(
        ("/agents", "/sessions", "/deployments", "/dreams", "/environments", "/memory_stores"),
        "their runs are billed by the vendor, later",
    ),
    Unmetered(("/messages/count_tokens", "/files", "/skills", "/vaults", "/tunnels", "/user_profiles"), FREE),
    Unmetered(("/organizations", "/compliance"), "administration"),
)


class Endpoints:
    """Looks up a plain path below the base, in any case, with /v1 or without."""

    def __init__(self, rows: Sequence[Metered]) -> None:
        found = [(path, row.name) for row in rows for path in row.paths]
        self._exact = {path: name for path, name in found if "{" not in path}
        self._others = [(pattern(path), name) for path, name in found if "{" in path]

    def find(self, path: str) -> str | None:
        short = path.lower().removeprefix("/v1")
        name = self._exact.get(short)
        if name is not None:
            return name
        return next((name for match, name in self._others if match.fullmatch(short)), None)


def pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path)))
