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
