"""The built documentation, file by file: links, anchors, names, formulas, other hosts."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

import gated_interp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the site is built first


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, BeautifulSoup]:
    """Every page that was built."""
    return {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.parts
    }


def asked(page: BeautifulSoup) -> Iterator[str]:
    """What a browser fetches to show a page."""
    yield from (tag["src"] for tag in page.find_all(src=True))
    yield from (tag["href"] for tag in page.find_all("link", href=True))


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, BeautifulSoup]) -> None:
    targets = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    seen, lost = 0, []
    for path, page in pages.items():
        links = [tag["href"] for tag in page.find_all("a", href=True)]
        for link in [*links, *asked(page)]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            seen += 1
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not there.is_file() or (anchor and anchor not in targets.get(there, {anchor})):
                lost.append(f"{path.name}: {link}")
    assert seen > 5000
    assert not lost


def test_no_page_asks_another_host(pages: dict[Path, BeautifulSoup], site: Path) -> None:
    for path, page in pages.items():
        for link in asked(page):
            assert urlsplit(link).scheme in ("", "data"), (path.name, link)
    for sheet in site.rglob("*.css"):
        for link in re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", sheet.read_text()):
            assert urlsplit(link).scheme in ("", "data"), (sheet.name, link)


def test_every_public_name_has_an_entry_in_the_list_and_a_page(
    pages: dict[Path, BeautifulSoup], site: Path
) -> None:
    listed = {tag["title"] for tag in pages[site / "reference.html"].find_all("a", title=True)}
    for name in set(gated_interp.__all__) - {"__version__"}:
        full = f"gated_interp.{name}"
        if inspect.ismodule(getattr(gated_interp, name)):  # its names have entries instead
            assert any(entry.startswith(f"{full}.") for entry in listed)
            continue
        assert full in listed
        (home,) = [page for page in pages.values() if page.find("dt", id=full)]
        assert home.find("dt", id=full).find_next("dd").get_text().strip()
    assert "gi.__version__" in pages[site / "reference.html"].get_text()


def test_examples_link_to_the_reference(pages: dict[Path, BeautifulSoup], site: Path) -> None:
    for name in ("start", "your-own-model", "reference/load", "notebooks/02_gated_attention"):
        links = pages[site / f"{name}.html"].find_all("a", class_="sphinx-codeautolink-a")
        assert any("reference/" in link["href"] for link in links), name


def test_formulas_are_mathml_and_hide_no_source(
    pages: dict[Path, BeautifulSoup], site: Path
) -> None:
    method = pages[site / "method.html"]
    assert len(method.find_all("div", class_="formula")) >= 6
    for path, page in pages.items():
        for formula in page.find_all("div", class_="formula"):
            assert formula.find("math", display="block"), path.name
        for formula in page.find_all("math"):
            assert "\\" not in formula.get_text(), path.name
        assert not [tag for tag in page.find_all("script", src=True) if "jax" in tag["src"].lower()]


def test_labels_that_spell_a_script_run_nowhere(
    pages: dict[Path, BeautifulSoup], site: Path
) -> None:
    page = pages[site / "labels.html"]
    assert not [tag for tag in page.find_all("img") if tag.get("onerror")]
    scripts = [tag.get_text() for tag in page.find_all("script")]
    assert not [text for text in scripts if text.startswith("window.hacked")]
    assert "window.hacked=1" in page.find("article").get_text()
