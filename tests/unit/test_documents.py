"""What the pages show can be taken, and where they point there is something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.policy.loading import PolicySource, load_policy

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md"), ROOT / "tests" / "README.md"]
SUBJECTS = [page for page in ROOT.glob("docs/*.md") if "**On this page:**" in page.read_text()]
POLICIES = [
    (f"{page.name}-{number}", text)
    for page in PAGES
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize(("name", "text"), POLICIES, ids=[name for name, _ in POLICIES])
def test_a_policy_that_a_page_shows_is_taken(name, text):
    load_policy(PolicySource(name, None, text), {"OPENAI_API_KEY": "sk-page"})


def headings(page: Path) -> set[str]:
    """As GitHub makes anchors of them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text())
    for link in (one or other for one, other in links):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("page", SUBJECTS, ids=lambda page: page.name)
def test_a_page_begins_with_a_list_of_its_sections(page):
    text = page.read_text()
    listed = next(line for line in text.splitlines() if line.startswith("**On this page:**"))
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in sections]
    assert re.findall(r"\(#([^)]+)\)", listed) == anchors


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    assert (
        not {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"} - set(re.findall(r"\]\(([\w-]+\.md)", index))
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    named = re.findall(r"`((?:proxy|tests|config|deploy|docs)/[\w./-]+)`", text)
    assert not [one for one in named if not (ROOT / one).exists()]
    tests = {one.name for one in (ROOT / "tests").rglob("*.py")}
    assert set(re.findall(r"`(test_\w+\.py)", text)) <= tests


def test_what_the_map_says_is_in_a_file_is_in_it():
    text = (ROOT / "docs" / "architecture.md").read_text()
    placed = re.findall(r"`([\w.]+)` in `((?:proxy|tests)/[\w/.]+\.py)`", text)
    assert len(placed) > 10
    for name, file in placed:
        source = (ROOT / file).read_text()
        assert all(re.search(rf"\b{one}\b", source) for one in name.split(".")), (name, file)
