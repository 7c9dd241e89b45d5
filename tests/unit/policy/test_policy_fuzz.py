"""No text whatever gives anything but a Policy or a PolicyError."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.errors import PolicyError, PolicyFault
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.renderer import render_policy
from proxy.policy.schema import JwtSource, Policy

REFERENCE = (Path(__file__).resolve().parents[3] / "config" / "reference.yaml").read_text(encoding="utf-8")
LINES = REFERENCE.splitlines()
WORDS = sorted({word.strip("{}[],:\"'#") for word in REFERENCE.split()} - {""})
# The key is what a rendered policy shows in its place, so that it loads again.
ENVIRON = {"JWT_KEY": "***", "A": "1", "EMPTY": ""}

swift = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def judge(text: str) -> None:
    try:
        policy = load_policy(PolicySource("p.yaml", None, text), ENVIRON)
    except PolicyError as error:
        judge_faults(error.faults, max(1, len(text.splitlines())))
        return
    assert isinstance(policy, Policy)
    assert policy.routes[-1].name == "default"
    assert all(warning and "\n" not in warning for warning in policy.warnings)
    shown = render_policy(policy)
    again = load_policy(PolicySource("again", None, shown), ENVIRON)
    assert render_policy(again) == shown
    keys = [source.key for source in policy.identity.user if isinstance(source, JwtSource)]
    if shown.count("***") == keys.count("***"):  # nothing else was hidden
        assert again == policy


@swift
@given(st.text())
def test_any_text(text: str) -> None:
    judge(text)


@swift
@given(st.text(alphabet="{}[]:,-#&*!|>'\"%@`?~<$\\ \t\r\n\0ab01\u2028\x85\ufeff"))
def test_any_text_of_marks(text: str) -> None:
    judge(text)


def judge_faults(faults: tuple[PolicyFault, ...], last: int) -> None:
    assert faults
    for fault in faults:
        assert 1 <= fault.line <= last
        assert fault.key
        assert fault.problem
        assert fault.fix
        assert "\n" not in str(fault)
        str(fault).encode()


_scalars = st.one_of(
    st.sampled_from(WORDS),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["off", "on", "${A}", "${NONE}", "${EMPTY}", "$${A}", "1e999", "0x10", "9" * 50, "\0", "10/h"]),
)
_trees = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=25,
)


@swift
@given(st.dictionaries(st.sampled_from([*Policy.__dataclass_fields__, "x"]), _trees, max_size=4), st.booleans())
def test_any_tree_as_json_and_as_yaml(tree: dict[str, object], as_json: bool) -> None:
    judge(json.dumps(tree) if as_json else yaml.safe_dump(tree))


@settings(swift, max_examples=400)
@given(st.integers(0, 1 << 62), st.integers(1, 4))
def test_the_reference_with_lines_dropped_doubled_moved_and_changed(seed: int, times: int) -> None:
    rng = random.Random(seed)
    lines = list(LINES)
    for _ in range(times):
        _mutate(lines, rng)
    judge("\n".join(lines))


@settings(swift, max_examples=100)
@given(st.integers(0, 1 << 62))
def test_a_few_lines_of_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    start = rng.randrange(len(LINES))
    lines = LINES[start : start + rng.randrange(1, 40)]
    _mutate(lines, rng)
    judge("\n".join(lines))


def _mutate(lines: list[str], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    line = lines[at]
    head, colon, rest = line.partition(": ")
    match rng.randrange(9):
        case 0 if len(lines) > 1:
            del lines[at]
        case 1:
            lines.insert(at, line)
        case 2:
            lines[at] = " " * rng.randrange(1, 5) + line
        case 3:
            lines[at] = line.removeprefix("  ")
        case 4 if colon:
            lines[at] = f"{head}: {rng.choice(WORDS)}"
        case 5 if colon:
            lines[at] = f"{head}: {rng.choice(lines).partition(': ')[2]}"
        case 6:
            place = rng.randrange(len(line) + 1)
            lines[at] = line[:place] + rng.choice("{}[]:,-#&*!|>'\"%@`\t\0$é\ud800") + line[place + 1 :]
        case 7:
            words = rest.split(" ")
            words[rng.randrange(len(words))] = rng.choice(WORDS)
            lines[at] = f"{head}{colon}{' '.join(words)}"
        case _:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
