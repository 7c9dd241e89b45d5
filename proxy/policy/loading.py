"""Loading: where a policy's text comes from, and from the text to a Policy or to every fault in it at once.

The text is parsed to nodes that remember their lines (`parsing/`), the nodes are read to sections (`reader.py`),
defaults give way to what is written (`defaults.py`), base URLs are taken over from the environment
(`env_adoption.py`), and what no single value shows is validated (`validation.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from proxy.errors import PolicyError, PolicyFault
from proxy.policy.custom_readers import CUSTOM_READERS
from proxy.policy.defaults import resolve_defaults
from proxy.policy.env_adoption import adopt_base_urls
from proxy.policy.parsing.env_vars import MISSING_VARIABLE
from proxy.policy.parsing.nodes import Node, Table, Unreadable
from proxy.policy.parsing.yaml import MAX_TEXT_CHARS, parse_document
from proxy.policy.reader import PolicyReader
from proxy.policy.schema.policy import Policy
from proxy.policy.validation import validate_policy
from proxy.policy.values import enclosing_keys
from proxy.policy.warnings import find_warnings

DEFAULT_FILES = ("outrigger.yaml", "config/policy.yaml")


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What changes when a file is saved, either by writing into it or by renaming another over it."""

    mtime_ns: int
    size: int
    inode: int
    device: int

    @classmethod
    def from_stat(cls, stat: os.stat_result) -> FileStamp:
        return cls(stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_dev)


@dataclass(frozen=True, slots=True)
class PolicySource:
    """A policy's text. `name` is what faults call it; `path` is None if it is no file; `stamp` is the file's when it
    was read; `warning` says what is odd about the source itself."""

    name: str
    path: Path | None
    text: str
    stamp: FileStamp | None = None
    warning: str | None = None


def find_source(option: str | None, environ: Mapping[str, str], cwd: Path) -> PolicySource:
    """The first source that there is: `--policy`, $OUTRIGGER_POLICY, $OUTRIGGER_POLICY_TEXT, DEFAULT_FILES, the
    defaults.

    Raises PolicyError if the one that is named cannot be read.
    """
    # What was named is used or refused: falling back to another policy would hide the mistake.
    if option is not None:
        return read_file(cwd / option, option)
    if named := environ.get("OUTRIGGER_POLICY"):
        return read_file(cwd / named, named, named_by="mend $OUTRIGGER_POLICY, which names it")
    if (text := environ.get("OUTRIGGER_POLICY_TEXT", "")).strip():
        # If the locale is not UTF-8, the environment's bytes come as lone surrogates (PEP 383).
        content = text.encode("utf-8", "surrogateescape")
        return PolicySource("$OUTRIGGER_POLICY_TEXT", None, _decode_text("$OUTRIGGER_POLICY_TEXT", content))
    for name in DEFAULT_FILES:
        # lexists: a dangling link is a policy that somebody meant, so reading it has to fail aloud.
        if os.path.lexists(cwd / name):
            # A pipe or a device of that name would block the start; only who names it may mean it.
            if os.path.exists(cwd / name) and not os.path.isfile(cwd / name) and not os.path.isdir(cwd / name):
                raise _source_error(
                    name, 1, "it is no file, and nobody named it", f"move it away, or say --policy {name}"
                )
            return read_file(cwd / name, name)
    warning = f"no policy found ({' or '.join(DEFAULT_FILES)}, --policy, $OUTRIGGER_POLICY): the defaults hold"
    return PolicySource("(defaults)", None, "", warning=warning)


def read_file(path: Path, name: str, *, named_by: str = "") -> PolicySource:
    """The policy in a file, pipes and /dev/stdin included; `name` is what faults call it."""
    try:
        with open(path, "rb") as file:
            # Of the open file, before reading: a save after this is seen as a change by whoever watches.
            stamp = FileStamp.from_stat(os.fstat(file.fileno()))
            # At most four bytes a character; one more byte shows that it is too long without reading a device for ever.
            content = file.read(MAX_TEXT_CHARS * 4 + 1)
    except FileNotFoundError:
        raise _source_error(
            name, 1, "it cannot be read: there is no such file", named_by or "name one that is there"
        ) from None
    except IsADirectoryError:
        raise _source_error(
            name, 1, "it cannot be read: it is a folder", named_by or "name the policy's file"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        fix = named_by or "name a file that can be"
        raise _source_error(name, 1, f"it cannot be read ({reason})", fix) from None
    return PolicySource(name, path, _decode_text(name, content), stamp)


def _decode_text(name: str, content: bytes) -> str:
    if len(content) > MAX_TEXT_CHARS * 4:
        raise _source_error(name, 1, "it is longer than 1 MiB", "write a shorter policy")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _source_error(name, line, "it is not UTF-8", "save it as UTF-8") from None


def _source_error(name: str, line: int, problem: str, fix: str) -> PolicyError:
    return PolicyError([PolicyFault(name, line, "policy", problem, fix)])


def read_rendered(text: str) -> Policy:
    """The policy that `render_policy` wrote, with its secrets masked, for comparing. Nothing is validated: it was when
    it was loaded, and a mask is no key. Raises ValueError for a text that no gateway of this version wrote."""
    try:
        root: Node = parse_document(text) or Table(1, ())
    except Unreadable as error:
        raise ValueError(error.problem) from None
    reader = PolicyReader("rendered", {}, CUSTOM_READERS, max(1, len(text.splitlines())))
    policy = reader.read_section(Policy, root, "", Policy())
    if reader.faults or not isinstance(policy, Policy):
        raise ValueError(str(reader.faults[0]) if reader.faults else "it is no policy")
    return policy


def load_policy(source: PolicySource, environ: Mapping[str, str], needs: Set[str] | None = None) -> Policy:
    """The policy that a text says, in this environment. Raises PolicyError with every fault.

    What the text leaves out has its default; some defaults (`listen.public`, the tokens) come out of the environment,
    so even an empty text can have a fault. If the caller `needs` only some keys, variables that other keys name may be
    missing from the environment: these keys then have their defaults.
    """
    lines = max(1, len(source.text.splitlines()))
    try:
        root: Node = parse_document(source.text) or Table(1, ())
    except Unreadable as error:
        line = min(max(error.line, 1), lines)
        raise PolicyError([PolicyFault(source.name, line, "policy", error.problem, error.fix)]) from None
    # From here on every fault is collected; only a text that is no tree at all ends it at once.
    reader = PolicyReader(source.name, environ, CUSTOM_READERS, lines)
    policy: Policy = reader.read_section(Policy, root, "", Policy())
    if not isinstance(policy, Policy):
        raise PolicyError(reader.faults)
    # Defaults move first: only then do the validations see the policy that would be in force.
    policy, moved = resolve_defaults(reader, policy)
    # After the defaults, which may have taken a variable from an upstream's `env`.
    upstreams, disagreements = adopt_base_urls(reader, policy.upstreams)
    policy = replace(policy, upstreams=upstreams, source=source.name)
    validate_policy(reader, policy)
    # Warnings come last: a policy with faults is refused, and its warnings might be about the faulty values.
    faults = reader.faults
    if needs is not None:
        faults = [
            fault
            for fault in faults
            if MISSING_VARIABLE not in fault.problem or not needs.isdisjoint(enclosing_keys(fault.key))
        ]
    if faults:
        raise PolicyError(sorted(faults, key=lambda fault: fault.line))
    first = (source.warning,) if source.warning else ()
    warnings = (*first, *reader.warnings, *moved, *disagreements, *find_warnings(reader, policy))
    return replace(policy, warnings=warnings, lines=MappingProxyType(reader.lines))
