"""The explorer of a deep model in a real browser: the strip of all heads."""

from collections.abc import Iterator
from typing import Any

import pytest
from deep import HEADS, LAYERS, deep_llama
from explorer_page import ExplorerPage
from playwright.sync_api import expect
from servers import Tab, explored

# All but what says a value by its length, and the rows and columns of answers.
BOXES = ":is(button, select, textarea, h3, h4, canvas, div, .gi-layer > span)"
TEXT = "w1 w2 w3 w4 w5 w1 w2 w3"


@pytest.fixture(scope="module")
def served(tmp_path_factory: Any) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s")
    with explored(deep_llama(folder / "deep"), folder) as address:
        yield address


def test_a_layer_is_opened_from_the_strip_and_nothing_moves(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    page.type_tokens(TEXT)
    page.expect_count("typed")
    tiles = tab.page.locator(".gi-layer > span")
    expect(tiles).to_have_count(LAYERS * HEADS)
    before = None
    for layer in (4, 0, 3):
        column = tab.page.locator(f".gi-layer-{layer}")
        column.click()
        expect(column).to_have_attribute("aria-pressed", "true")
        expect(tab.page.locator(".gi-layer[aria-pressed=true]")).to_have_count(1)
        names = tab.page.locator(".gi-of-model .gi-head").all_inner_texts()
        assert names == [f"L{layer}H{h}" for h in range(HEADS)]
        before = before or page.places(BOXES)
        assert page.places(BOXES) == before
        for head in (1, 3):
            page.switch(head, "model").click()
            page.expect_pressed(head, False, "model")
            tile = tiles.nth(layer * HEADS + head)
            expect(tile).to_have_class("gi-tile-off")
            assert "off" in str(tile.get_attribute("title"))
            assert page.places(BOXES) == before
            page.switch(head, "model").click()
            page.expect_pressed(head, True, "model")
            assert page.places(BOXES) == before
    tab.assert_quiet({"127.0.0.1"})


def test_a_click_on_a_cell_says_what_made_its_score(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    page.type_tokens(TEXT)
    page.expect_count("typed")
    tab.page.locator(".gi-layer-4").click()
    pattern = tab.page.locator(".gi-of-model .gi-pattern").nth(2)
    expect(tab.page.locator(".gi-of-model .gi-head").first).to_have_text("L4H0")
    pattern.click()
    edge, canvas = tab.page.locator(".gi-edge"), tab.page.locator("dialog canvas")
    expect(edge).to_contain_text("Click a cell")
    box, n = canvas.bounding_box(), tab.page.locator(".gi-tokens button").count()
    cell = tab.page.evaluate(
        "() => { const c = document.querySelector('dialog canvas');"
        f"return (c.getBoundingClientRect().width - parseFloat(c.dataset.margin)) / {n}; }}"
    )
    margin = box["width"] - n * cell
    at = [box[side] + margin + (i + 0.5) * cell for side, i in (("x", 1), ("y", 5))]
    tab.page.mouse.click(*at)
    expect(edge.locator("h4").first).to_have_text("why L4H2 at w5 (5) reads w1 (1)")
    expect(edge).to_contain_text("attention score")
    heads = {f"L{layer}H{h}" for layer in range(4) for h in range(HEADS)}
    rows = edge.locator("tbody th").all_inner_texts()
    assert heads & set(rows)
    assert rows[-1] == "others"
    assert "edge=5.1" in tab.page.url
    # The numbers say what the link leads to, also by keyboard.
    said = edge.inner_text()
    address = tab.page.url
    tab.page.goto("about:blank")
    tab.page.goto(address)
    expect(edge.locator("h4").first).to_have_text("why L4H2 at w5 (5) reads w1 (1)")
    assert edge.inner_text() == said
    canvas.focus()
    tab.page.keyboard.press("ArrowUp")
    tab.page.keyboard.press("Enter")
    expect(edge.locator("h4").first).to_have_text("why L4H2 at w4 (4) reads w1 (1)")
    for _ in range(3):
        tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowUp")
    tab.page.keyboard.press("Enter")  # a key behind the query
    expect(edge).to_contain_text("only sees keys")
    tab.page.locator(".gi-read-here").click()
    read = tab.page.locator(".gi-tokens button").nth(3)
    expect(read).to_have_attribute("aria-pressed", "true")
    tab.assert_quiet({"127.0.0.1"})


def test_bars_at_the_text_say_what_is_read(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    page.type_tokens(TEXT)
    page.expect_count("typed")
    words = tab.page.locator(".gi-tokens button")
    bars = tab.page.locator(".gi-tokens button i")
    said = tab.page.locator(".gi-pointed")
    before = page.places(BOXES)

    def with_bars() -> list[int]:
        found = [str(bar.get_attribute("style")) for bar in bars.all()]
        return [i for i, style in enumerate(found) if "gradient" in style]

    words.nth(5).hover()
    expect(said).to_contain_text("attention at w5 (5); tallest bar")
    assert with_bars() == [0, 1, 2, 3, 4, 5]
    assert page.places(BOXES) == before
    tab.page.locator(".gi-readers").select_option("who reads it")
    expect(said).to_contain_text("what reads")
    words.nth(6).hover()
    expect(said).to_contain_text("attention of what reads w1 (6)")
    assert with_bars() == [6, 7, 8]
    tab.page.locator(".gi-readers").select_option("what it reads")
    tab.page.get_by_label("with the first token").uncheck()
    words.nth(3).hover()
    expect(said).to_contain_text("attention at w3 (3)")
    assert with_bars() == [1, 2, 3]
    chip = tab.page.locator(".gi-chip").nth(2)
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    words.nth(3).hover()
    expect(said).to_contain_text("L0H2,")
    styles = [str(bars.nth(i).get_attribute("style")) for i in (1, 2, 3)]
    assert max(style.count("gradient") for style in styles) == 1
    assert "first=out" in tab.page.url
    tab.page.reload()
    ExplorerPage(tab.page)
    expect(tab.page.get_by_label("with the first token")).not_to_be_checked()
    tab.assert_quiet({"127.0.0.1"})


def test_a_question_changes_every_tile(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    page.type_tokens(TEXT)
    page.expect_count("typed")
    strip = tab.page.locator(".gi-strip h4")
    expect(strip).to_contain_text("By how much log p of")
    tab.page.locator(".gi-question").select_option("KL")
    expect(strip).to_contain_text("By how much KL from every head on (nats) changes")
    tab.page.locator(".gi-question").select_option("a difference")
    box = tab.page.locator(".gi-asked")
    expect(box).to_be_focused()
    tab.page.keyboard.type("w5 w9")
    tab.page.keyboard.press("Enter")
    expect(strip).to_contain_text("logit of “w5” minus that of “w9”")
    box.fill("w5")
    box.press("Enter")
    page.expect_message("two tokens for a difference")
    words = tab.page.locator(".gi-tokens button")
    words.nth(2).click()
    page.expect_no_message()
    words.nth(5).click(modifiers=["Shift"])
    expect(strip).to_contain_text("loss at positions 2 to 5")
    expect(box).to_have_value("2 5")
    tab.assert_quiet({"127.0.0.1"})


def test_it_fits_every_window(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    page.type_tokens(" ".join(f"w{i}" for i in range(1, 60)))
    for width in (700, 1200, 1900):
        tab.page.set_viewport_size({"width": width, "height": 900})
        assert page.overflow() == []
