"""`outrigger` alone says what it sees, and the command to say next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from proxy import __version__
from proxy.cli import main

LAYOUTS = Path(__file__).parents[2] / "layouts"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, environ: dict[str, str] | None = None) -> str:
    assert main([], environ or {}) == 2  # nothing was started: no success to a platform
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_in_a_folder_with_an_app_it_says_what_it_sees_and_proposes_init(here, capsys):
    shutil.copytree(LAYOUTS / "fastapi_render", here, dirs_exist_ok=True)
    out = said(capsys)
    assert "python, fastapi" in out
    assert "policy    none yet" in out
    assert out.index("outrigger init") < out.index("outrigger doctor") < out.index("outrigger -- ")
    assert not (here / "outrigger.yaml").exists()


def test_with_a_policy_it_proposes_check_and_the_start(here, capsys):
    shutil.copytree(LAYOUTS / "fastapi_render", here, dirs_exist_ok=True)
    (here / "outrigger.yaml").write_text("version: 1\n")
    out = said(capsys)
    assert "policy    outrigger.yaml" in out
    assert "outrigger check" in out
    assert "outrigger init" not in out
    assert "policy    $OUTRIGGER_POLICY_TEXT" in said(capsys, {"OUTRIGGER_POLICY_TEXT": "version: 1"})


def test_without_an_app_it_says_how_one_is_named(here, capsys):
    out = said(capsys)
    assert "No app was found in this folder." in out
    assert "outrigger init DIR" in out
    assert "outrigger -- COMMAND" in out


def test_a_policy_that_names_its_app_is_run_as_ever_and_a_faulty_one_refused_as_ever(here, capsys):
    (here / "outrigger.yaml").write_text("app: {hold: 5}\n")
    assert main([], {}) == 2
    assert "outrigger.yaml:1: app.hold" in capsys.readouterr().err


def test_the_break_glass_without_a_command_is_told_as_ever(here, capsys):
    assert main([], {"OUTRIGGER": "off"}) == 2
    assert "OUTRIGGER=off starts the app alone, and there is no command" in capsys.readouterr().err


def test_the_version_is_one_line(capsys):
    assert main(["--version"], {}) == 0
    assert capsys.readouterr().out == f"outrigger {__version__}\n"
