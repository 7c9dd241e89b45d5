"""What a release is made of: workflows whose actions cannot be moved, a threat model whose rows are shown, an SBOM that
others read, and a check that says what is missing."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from proxy import __repository__, __version__

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "deploy" / "release"
sys.path.insert(0, str(RELEASE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_pins_every_action_by_hash_and_has_no_more_rights_than_it_needs(file):
    from pins import find_pins

    workflow = yaml.safe_load(file.read_text())
    pins = [pin for pin in find_pins() if pin[0].startswith(file.name)]
    assert pins
    for place, _, pin, tag in pins:
        assert re.fullmatch("[0-9a-f]{40}", pin), place
        assert re.fullmatch(r"v\d+\.\d+\.\d+", tag), place
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            if "checkout@" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            # An expression in a script is put in before the shell reads it: values come by variables.
            assert "${{" not in step.get("run", "")


def test_workflows_and_dependabot_are_what_githubs_own_schemas_say():
    for schema, files in (("github-workflows", WORKFLOWS), ("dependabot", [ROOT / ".github" / "dependabot.yml"])):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_every_supported_python_is_tested_and_named():
    (matrix,) = [
        job["strategy"]["matrix"]["python"]
        for job in yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"].values()
        if "strategy" in job
    ]
    assert matrix == ["3.11", "3.12", "3.13", "3.14"]
    assert f'requires-python = ">={matrix[0]}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_pin_that_is_not_its_tags_commit_is_told(tmp_path):
    """Beside repositories of our own, one with a tag that is an object and one with a plain tag."""
    commits = {}
    for name, flags in (("plain", []), ("annotated", ["-a", "-m", "x"])):
        folder = tmp_path / "them" / name
        folder.mkdir(parents=True)
        for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"], ["tag", *flags, "v1.2.3"]):
            identity = ["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "commit.gpgsign=false"]
            subprocess.run(["git", *identity, *words], cwd=folder, check=True)
        commits[name] = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()
    workflows = tmp_path / "workflows"
    workflows.mkdir()
    lines = [f"      - uses: them/{name}@{commit} # v1.2.3\n" for name, commit in commits.items()]

    def said(text: str, status: int) -> str:
        (workflows / "a.yml").write_text(text)
        command = [sys.executable, RELEASE / "pins.py", "--base", f"file://{tmp_path}", "--workflows", workflows]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    assert "2 actions, 0 pinned" in said("".join(lines), 0)
    moved = said("".join(lines).replace(commits["plain"], "0" * 40), 1)
    assert f"a.yml:1: them/plain is pinned to {'0' * 40}; v1.2.3 is {commits['plain']}" in moved


def test_each_row_of_the_threat_model_names_tests_that_are_there():
    rows = [line for line in SECURITY.splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(rows) > 18
    attackers = {row.split("|")[1].strip() for row in rows}
    assert {"on the network", "in the app", "at the vendor", "in the policy", "in the store"} <= attackers
    for row in rows:
        shown = row.split("|")[3]
        for file, names in re.findall(r"`(tests/[\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)", shown):
            tree = ast.parse((ROOT / file).read_text())
            there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert set(re.findall(r"`(test_\w+)`", names)) <= there, row
        assert re.search(r"`tests/[\w/]+\.py`: `test_", shown), row


def test_the_release_check_says_all_that_is_missing_and_fails_while_the_address_is_a_placeholder(tmp_path):
    command = [sys.executable, RELEASE / "check.py", tmp_path, "--tag", "v9.9.9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    if "/OWNER/" in __repository__:
        assert "proxy/__init__.py: __repository__ is a placeholder" in done.stderr
    assert f"the tag is v9.9.9, and proxy/__init__.py says {__version__}" in done.stderr
    assert "is not there; run make dist" in done.stderr


def test_the_sbom_has_every_package_of_the_lock_and_another_makers_reader_reads_it(tmp_path):
    subprocess.run([sys.executable, RELEASE / "sbom.py", tmp_path], check=True, capture_output=True)
    file = tmp_path / "outrigger.cdx.json"
    # In a process of its own: the reader leaves files open, which a test would be blamed for.
    code = (
        "import json; from lib4sbom.parser import SBOMParser; parser = SBOMParser()\n"
        f"parser.parse_file({str(file)!r})\n"
        "print(json.dumps([[one['name'], one['version']] for one in parser.get_packages()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    locked = set(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {tuple(one) for one in json.loads(done.stdout)} == locked
    document = json.loads(file.read_text())
    assert (document["bomFormat"], document["metadata"]["component"]["version"]) == ("CycloneDX", __version__)
    hashed = [one for one in document["components"] if one["externalReferences"][0]["hashes"]]
    assert len(hashed) == len(locked)
