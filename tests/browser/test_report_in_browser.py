"""A report in a real browser, opened from disk: it is quiet, and all of it can be read."""

import base64
import re
from pathlib import Path
from typing import Any

import layout
import pandas as pd
import pytest

import gated_interp as gi
from gated_interp.experiments.report import report
from gated_interp.models.analytic import manual_model

WIDTHS = (700, 1200, 1900)
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
# Words that leave the box of the element that holds them, or the window.
OUTSIDE = """() => {
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const holder = node.parentElement;
    if (!node.data.trim() || holder.closest("script, noscript, .skip, .plot")) continue;
    const block = holder.closest(
      "p, li, h1, h2, h3, h4, th, td, caption, dd, dt, summary, div, figcaption");
    const box = block.getBoundingClientRect();
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const r of range.getClientRects())
      if (r.left < box.left - 1 || r.right > box.right + 1 || r.bottom > box.bottom + 4
          || r.right > innerWidth)
        found.push(`${node.data.trim().slice(0, 40)}: ${r.right} of ${box.right}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def model() -> Any:
    """The published manual model with an untrained block; its name and notes spell markup."""
    toy = manual_model(2, 3).model
    block = gi.GatedAttention.from_attention(toy.blocks[0].attn, 4.0, gate_bias_init=0.7, seed=3)
    spliced = gi.splice(toy, 0, block)
    spliced.model_name, spliced.notes = HOSTILE, {HOSTILE: HOSTILE}
    return spliced


@pytest.fixture(scope="module")
def pages(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Its report, with pictures and with figures that the page draws."""
    folder = tmp_path_factory.mktemp("report")
    names = [HOSTILE + str(i) for i in range(model.cfg.d_vocab)]
    return {
        kind: report(
            model, folder / f"{kind}.html", names=names, sequences=20, interactive=kind != "static"
        )
        for kind in ("static", "interactive")
    }


@pytest.fixture(params=["static", "interactive"])
def opened(request: Any, pages: dict[str, Path], tab: Any) -> Any:
    """A tab in which one of them is open."""
    tab.page.on("dialog", lambda dialog: tab.complaints.append(dialog.message))
    tab.page.goto(pages[request.param].as_uri())
    if request.param == "interactive":
        tab.page.wait_for_selector("body[data-drawn=all]")
    return tab


def test_it_is_quiet_and_shows_every_figure(opened: Any) -> None:
    page = opened.page
    assert page.locator("h1").inner_text() == f"{HOSTILE}: 2 attention heads, and the 8 of a block"
    n = page.locator("figure").count()
    assert n > 8
    drawn = page.evaluate(
        """() => [...document.querySelectorAll("figure")].filter((f) =>
          f.querySelector("img")?.naturalWidth > 500 || f.querySelector(".main-svg")).length"""
    )
    assert drawn == n
    opened.assert_quiet(set())


def test_all_of_it_can_be_read_at_any_width(opened: Any) -> None:
    for width in WIDTHS:
        opened.page.set_viewport_size({"width": width, "height": 900})
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not opened.page.evaluate(OUTSIDE), width
        boxes = opened.page.evaluate(
            """() => [...document.querySelectorAll("figure")].map((f) => {
              const inner = f.querySelector("img, .plot").getBoundingClientRect();
              return [inner.left, inner.right, inner.width / f.getBoundingClientRect().width];
            })"""
        )
        assert all(left >= 0 and right <= width for left, right, _ in boxes)


def test_texts_of_its_pictures_stay_in_their_boxes(pages: dict[str, Path], tab: Any) -> None:
    html = pages["static"].read_text(encoding="utf-8")
    svgs = [base64.b64decode(data) for data in re.findall(r"svg\+xml;base64,([^\"]+)", html)]
    assert len(svgs) > 8
    wrong = [fault for svg in svgs for fault in layout.faults(layout.measure_svg(tab.page, svg))]
    assert not wrong


def test_numbers_are_downloaded(opened: Any, tmp_path: Path) -> None:
    with opened.page.expect_download() as download:
        opened.page.get_by_role("link", name="holders-L0.csv").click()
    download.value.save_as(tmp_path / "numbers.csv")
    assert pd.read_csv(tmp_path / "numbers.csv")["case"].nunique() == 3
    assert download.value.suggested_filename == "holders-L0.csv"


def test_the_keyboard_reaches_the_content(opened: Any) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    link = page.locator(":focus")
    assert link.inner_text() == "Skip to the content"
    assert link.bounding_box()["x"] > 0
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#in-short")


def test_its_contents_stay_in_view(opened: Any) -> None:
    page, contents = opened.page, opened.page.get_by_role("navigation")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        box = contents.bounding_box()
        assert box["y"] >= 0, width
        assert box["y"] + box["height"] < 900, width
        contents.get_by_role("link", name="Circuits").click()
        title = page.locator("#circuits").bounding_box()
        below = 0 if width >= 1300 else box["height"]
        assert below <= title["y"] + 1 < 300, width
        if width >= 1300:  # beside the text, not above it
            assert box["x"] + box["width"] <= title["x"]


def test_it_prints_every_figure_whole(opened: Any) -> None:
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("nav").is_visible()
    assert len(opened.page.pdf(format="A4")) > 50_000
