"""README and docs: their Python runs, their links lead somewhere, their commands exist."""

import re
from pathlib import Path

import pytest

from gated_interp.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("code", BLOCKS)
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {})
    assert "import gated_interp" in code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings_that_are_there(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert page.stem != "README" or len(links) > 5
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        there = page.parent / path if path else page
        assert there.is_file(), link
        assert not anchor or anchor in anchors(there), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page):
    known = {*app}
    for name in re.findall(r"`(?:\S*bin/)?gated-interp ([a-z][a-z-]+)", page.read_text()):
        assert name in known, name


def test_the_readme_takes_five_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 1000  # at 200 words a minute
