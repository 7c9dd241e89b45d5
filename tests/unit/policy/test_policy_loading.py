"""Where a policy is looked for, and what happens when it cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.errors import PolicyError
from proxy.policy.loading import find_source, load_policy, read_file


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A folder with a policy in every place that is looked at; each says its own place."""
    (tmp_path / "config").mkdir()
    for name in ("named.yaml", "env.yaml", "outrigger.yaml", "config/policy.yaml"):
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


def test_the_first_place_that_names_a_policy_holds(full: Path) -> None:
    environ = {"OUTRIGGER_POLICY": "env.yaml", "OUTRIGGER_POLICY_TEXT": "# text"}
    assert find_source("named.yaml", environ, full).text == "# named.yaml\n"
    assert find_source(None, environ, full).text == "# env.yaml\n"
    del environ["OUTRIGGER_POLICY"]
    assert find_source(None, environ, full).text == "# text"
    assert find_source(None, environ, full).path is None
    assert find_source(None, {}, full).text == "# outrigger.yaml\n"
    (full / "outrigger.yaml").unlink()
    assert find_source(None, {}, full).text == "# config/policy.yaml\n"


def test_empty_variables_name_nothing(full: Path) -> None:
    assert find_source(None, {"OUTRIGGER_POLICY": "", "OUTRIGGER_POLICY_TEXT": " \n"}, full).name == "outrigger.yaml"


def test_without_any_policy_the_defaults_hold_with_a_warning(tmp_path: Path) -> None:
    policy = load_policy(find_source(None, {}, tmp_path), {})
    assert policy.source == "(defaults)"
    assert len(policy.warnings) == 1
    assert "no policy found" in policy.warnings[0]


def test_a_source_is_named_as_it_was_asked_for_and_its_path_is_absolute(full: Path) -> None:
    source = find_source("named.yaml", {}, full)
    assert source.name == "named.yaml"
    assert source.path == full / "named.yaml"
    assert source.stamp is not None


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_a_fault_that_says_why(tmp_path: Path, name: str) -> None:
    for option, environ in ((name, {}), (None, {"OUTRIGGER_POLICY": name})):
        with pytest.raises(PolicyError, match="cannot be read") as caught:
            find_source(option, environ, tmp_path)
        assert caught.value.faults[0].line == 1


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        ("version: 1\n".encode("utf-16"), 1, "not UTF-8"),
        (b"#" * (5 << 20), 1, "longer than 1 MiB"),
    ],
)
def test_bytes_that_are_no_text_are_a_fault(tmp_path: Path, content: bytes, line: int, problem: str) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(PolicyError, match=problem) as caught:
        find_source("p.yaml", {}, tmp_path)
    assert caught.value.faults[0].line == line


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("app: {hold: 3s}")
    try:
        policy = load_policy(read_file(Path(f"/dev/fd/{reading}"), "/dev/stdin"), {})
    finally:
        os.close(reading)
    assert policy.app.hold == 3.0


def test_a_source_without_an_end_is_refused() -> None:
    with pytest.raises(PolicyError, match="longer than 1 MiB"):
        read_file(Path("/dev/zero"), "/dev/zero")


def test_a_text_in_the_environment_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    escaped = "# ü".encode().decode("ascii", "surrogateescape")
    assert find_source(None, {"OUTRIGGER_POLICY_TEXT": escaped}, tmp_path).text == "# ü"
    with pytest.raises(PolicyError, match="not UTF-8"):
        find_source(None, {"OUTRIGGER_POLICY_TEXT": "# \udcff"}, tmp_path)
