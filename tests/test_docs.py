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
    """As they are but for their trainings, which take three steps."""
    monkeypatch.chdir(tmp_path)
    exec(compile(re.sub(r"\bsteps=\d+", "steps=3", code), "block", "exec"), {})
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


def test_the_readme_shows_what_its_first_example_prints(capsys):
    text = (ROOT / "README.md").read_text()
    code, output = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", text, re.DOTALL).groups()
    exec(compile(code, "block", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == output.splitlines()
