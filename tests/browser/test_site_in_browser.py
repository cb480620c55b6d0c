"""The built documentation as a reader sees it, at three widths, without Arial."""

import sys
from collections.abc import Iterator
from pathlib import Path

import layout
import pytest
from servers import Tab, free_port, process, wait_until_answers
from site_build import NASTY, ROOT

pytestmark = pytest.mark.timeout(1800)  # the site is built first

WIDTHS = (700, 1200, 1900)
# Long pages of the reference; the others are made alike.
NAMES = (
    "gated_interp.types.Verdict",
    "TrainConfig",
    "GatedAttention",
    "load",
    "train_gated",
    "SkipTrigramTask",
)
SAID = {
    "index": "no head makes sense on its own",
    "start": "make reproduce",
    "your-own-model": "HookedTransformer.from_pretrained",
    "which-heads-share": "it does not establish",
    "what-a-head-does": "it does not establish",
    "is-it-faithful": "it does not establish",
    "how-sure": "it does not establish",
    "method": "The gate acts after the softmax",
    "reference": "always model, layer, tokens",
    "notebooks/04_ablate_heads_interactively": "HeadExplorer",
}

# A text leaves a box when no box around it scrolls before one ends. Signatures hang out to the left
# on purpose, so there only the window and what clips count; a drawer waits outside the window.
OUTSIDE = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, holder = node.parentElement;
    if (!node.textContent.trim() || holder.closest("svg, script, style, .visually-hidden")
      || !holder.checkVisibility({visibilityProperty: true})) continue;
    const drawer = holder.closest("aside")?.getBoundingClientRect();
    if (drawer && (drawer.right <= 0 || drawer.left >= innerWidth)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const text = range.getBoundingClientRect();
    for (let e = holder; e !== document.body; e = e.parentElement) {
      const style = getComputedStyle(e), box = e.getBoundingClientRect();
      if (["inline", "contents"].includes(style.display) || !box.width) continue;
      if (["auto", "scroll"].includes(style.overflowX) ) break;
      const left = style.overflowX === "visible" ? 0 : box.left;
      if (text.right > box.right + 1.5 || text.left < left - 1.5) {
        found.push(`${node.textContent.trim().slice(0, 60)} leaves ${e.tagName}.${e.className}`);
        break;
      }
    }
  }
  return found;
}"""
UNSEEN = """() => [...document.querySelectorAll("article img")]
  .filter((image) => !image.complete || !image.naturalWidth).map((image) => image.src)"""


@pytest.fixture(scope="module")
def address(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the built documentation is served."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    command = [
        *(sys.executable, "-m", "http.server", str(port)),
        *("--bind", "127.0.0.1", "--directory", str(site)),
    ]
    with process(command, folder, folder / "log") as running:
        wait_until_answers(f"http://127.0.0.1:{port}/", running, folder / "log")
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_are_quiet_and_ask_nobody(width: int, site: Path, address: str, tab: Tab) -> None:
    pages = [path.stem for path in site.glob("*.html") if path.stem != "labels"]
    pages += [f"notebooks/{path.stem}" for path in site.glob("notebooks/*.html")]
    pages += [f"reference/{name}" for name in NAMES]
    assert set(SAID) <= set(pages)
    tab.page.set_viewport_size({"width": width, "height": 1000})
    wrong = {}
    for page in pages:
        tab.page.goto(f"{address}/{page}.html")
        found = tab.page.evaluate(OUTSIDE)
        found += [f"{source} is not shown" for source in tab.page.evaluate(UNSEEN)]
        wide = tab.page.evaluate("document.scrollingElement.scrollWidth")
        if wide > width:
            found.append(f"the page is {wide} px wide")
        if SAID.get(page, "") not in tab.page.locator("article").inner_text():
            found.append(f"it does not say {SAID[page]!r}")
        if tab.complaints:
            found += tab.complaints
            tab.complaints.clear()
        if found:
            wrong[page] = found
    assert not wrong
    tab.assert_quiet({"127.0.0.1"})


def test_the_check_sees_what_leaves_its_box(tab: Tab) -> None:
    long = "word" * 50
    box = "<div style='width: 100px; {}'>{}</div>"
    tab.page.set_content(box.format("overflow-x: auto", long) + box.format("", "short"))
    assert tab.page.evaluate(OUTSIDE) == []
    for style in ("", "overflow: hidden"):
        tab.page.set_content(box.format(style, long))
        (said,) = tab.page.evaluate(OUTSIDE)
        assert said.startswith("wordword")
    tab.page.set_content("<article><img src='data:image/png;base64,AAAA'></article>")
    assert len(tab.page.evaluate(UNSEEN)) == 1


def test_stored_figures_are_whole(tab: Tab) -> None:
    figures = [*ROOT.glob("figures/*.svg"), ROOT / "docs/method.svg"]
    assert len(figures) > 20
    seen = {path.name: layout.measure_svg(tab.page, path.read_bytes()) for path in figures}
    wrong = {name: layout.faults(boxes) for name, boxes in seen.items()}
    assert not {name: said for name, said in wrong.items() if said}


def test_formulas_are_drawn(address: str, tab: Tab) -> None:
    tab.page.goto(f"{address}/method.html")
    sizes = tab.page.evaluate(
        """() => [...document.querySelectorAll(".formula math")].map((formula) => {
          const box = formula.getBoundingClientRect();
          return [box.width, box.height, formula.querySelectorAll("mfrac").length];
        })"""
    )
    assert len(sizes) >= 6
    assert min(width for width, _, _ in sizes) > 100
    assert min(height for _, height, fractions in sizes if fractions) > 25


def test_labels_that_spell_a_script_show_as_text(address: str, tab: Tab) -> None:
    tab.page.goto(f"{address}/labels.html")
    tab.page.wait_for_selector(".gated-interp-view canvas")
    said = tab.page.locator("article").inner_text()
    for label in NASTY:
        assert said.count(label) >= 2
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator(".gated-interp-view h4").first.inner_text() == NASTY[0]
    tab.assert_quiet({"127.0.0.1"})


def test_the_search_finds_a_name_and_shows_titles_as_text(address: str, tab: Tab) -> None:
    for word, page in (("shapley", "shapley"), ("hacked", "Labels")):
        tab.page.goto(f"{address}/search.html?q={word}")
        tab.page.locator("ul.search li a", has_text=page).first.wait_for()
    assert tab.page.evaluate("window.hacked") is None
    tab.assert_quiet({"127.0.0.1"})
