"""Patching with a second prompt in a real browser, by keyboard, and nothing moves."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from deep import HEADS, LAYERS, deep_llama
from explorer_page import ExplorerPage
from playwright.sync_api import expect
from servers import Tab, explored

from gated_interp.analysis.patching import activation_patch
from gated_interp.checkpoints.checkpoint import load
from gated_interp.explorer.vocabulary import NamedTokens

BOXES = ":is(button, select, textarea, h3, h4, canvas, div, p, .gi-share, .gi-layer > span)"
WIDTHS = (700, 1200, 1900)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: Any) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s")
    with explored(deep_llama(folder / "deep"), folder) as address:
        yield address


def shares(tab: Tab, model: str, which: str = ".gi-patches") -> list[str]:
    """What the tiles of one model say, without the names of the heads."""
    tiles = tab.page.locator(f"{which} .gi-map-of-{model} .gi-share").all_inner_texts()
    return [re.sub(r"^H\d+\s+", "", tile) for tile in tiles]


def test_head_by_head_by_keyboard(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page, key = ExplorerPage(tab.page), tab.page.keyboard
    words, other = "BOS A C2 B1", "BOS C1 C2 B1"
    page.type_tokens(words)
    page.expect_count("typed")
    box = tab.page.get_by_label("second prompt", exact=True)
    box.focus()
    key.type(other)
    key.press("Enter")
    said = tab.page.locator(".gi-differ")
    expect(said).to_have_text("They differ at position 1: A → C1.")

    # What the tiles say is what patching by hand says.
    gated = load("2H3ST-gated")
    parse = NamedTokens(gated.task.token_names).parse
    first, second = (torch.tensor([parse(w, 11)]) for w in (words, other))
    answer = gated.task.completion(1)
    with torch.no_grad():
        low, high = (float(gated(t)[0, 3, answer]) for t in (first, second))
    wanted = []
    for head in range(8):
        logits = activation_patch(gated, first, second, "blocks.0.attn.hook_z", head=head)
        wanted.append((float(logits[0, 3, answer]) - low) / (high - low))
    found = [float(s.rstrip("%").replace("−", "-")) for s in shares(tab, "gated")]
    assert found == pytest.approx([100 * w for w in wanted], abs=0.51)
    assert max(found) > 50

    # On with the keyboard: to the receiver, whose paths to the logits are all there are.
    receiver = tab.page.get_by_label("receiver of the paths")
    for _ in range(5):
        if receiver.evaluate("node => node === document.activeElement"):
            break
        key.press("Tab")
    expect(receiver).to_be_focused()
    receiver.press("ArrowDown")
    receiver.press("ArrowDown")
    expect(tab.page.locator(".gi-patches").last.locator(".gi-map-of-gated")).to_be_visible()
    expect(receiver).to_have_value("gated.logits")
    assert shares(tab, "gated", ".gi-patches:last-child") == shares(tab, "gated")[:8]
    address = tab.page.url
    tab.page.goto("about:blank")
    tab.page.goto(address)
    ExplorerPage(tab.page)
    expect(receiver).to_have_value("gated.logits")
    expect(box).to_have_value(other)

    # Other lengths: one sentence with both counts, and nothing else.
    box.fill("BOS A")
    box.press("Enter")
    expect(said).to_contain_text("The first prompt has 4 tokens and the second has 2")
    expect(tab.page.locator(".gi-map")).to_have_count(3)
    assert not tab.page.locator(".gi-map").first.is_visible()
    # A bad token stays, to be mended.
    box.fill("BOS X")
    box.press("Enter")
    page.expect_message("'X' is not a token")
    expect(box).to_have_value("BOS X")
    # It is said beside the box, too, and no old shares stay under it.
    expect(said).to_contain_text("'X' is not a token")
    expect(tab.page.locator(".gi-patches").first).not_to_be_visible()
    page.switch(2).click()  # whatever is clicked, what is typed stays
    page.expect_pressed(2, False)
    expect(box).to_have_value("BOS X")
    expect(said).to_contain_text("'X' is not a token")
    box.fill(other)
    page.switch(2).click()
    page.expect_pressed(2, True)
    expect(box).to_have_value(other)
    box.press("Enter")
    expect(said).to_have_text("They differ at position 1: A → C1.")
    expect(tab.page.locator(".gi-patches").first).to_be_visible()
    # Another first prompt: the second is no longer compared, but can be mended.
    page.type_tokens("BOS A C1 B1")
    expect(said).to_contain_text("The first prompt has changed")
    expect(box).to_have_value(other)
    expect(tab.page.locator(".gi-patches").first).not_to_be_visible()
    page.type_tokens(words)
    expect(tab.page.locator(".gi-box")).to_have_value(words)
    tab.page.get_by_role("button", name="no second prompt").click()
    expect(box).to_have_value("")
    expect(said).not_to_be_visible()
    tab.page.get_by_role("button", name="copy the first").click()
    expect(box).to_have_value(words)
    expect(box).to_be_focused()
    tab.assert_quiet({"127.0.0.1"})


def test_what_is_typed_stays_until_it_is_sent(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    box, words, other = page.tokens_box, page.tokens(), "BOS A C1 B1"
    box.fill(other)
    page.switch(2).click()
    page.expect_pressed(2, False)
    assert page.tokens() == other
    page.expect_count("example 1 of 100")
    box.press("Enter")
    page.expect_count("typed")
    page.type_tokens("7 0 5 1")
    expect(box).to_have_value("BOS A C2 B1")
    page.type_tokens("BOS X")
    page.expect_message("'X' is not a token")
    page.switch(2).click()
    page.expect_pressed(2, True)
    assert page.tokens() == "BOS X"
    page.button("▶").click()  # another text
    page.expect_count("example 1 of 100")
    assert page.tokens() == words
    # Also what is typed while the answer to the last text is under way.
    tab.page.route("**/state", lambda route: (box.fill("BOS"), route.continue_()), times=1)
    page.type_tokens(other)
    page.expect_count("typed")
    assert page.tokens() == "BOS"
    page.switch(2).click()
    page.expect_pressed(2, False)
    assert page.tokens() == "BOS"
    # A link says what is shown.
    tab.page.goto(f"{served}#{tab.page.url.partition('#')[2].replace('off.', 'show.')}")
    page.expect_pressed(2, True)
    assert page.tokens() == other
    tab.assert_quiet({"127.0.0.1"})


def test_switches_move_no_box(served: str, tab: Tab) -> None:
    tab.page.goto(f"{served}#tokens=7.0.5.1&read=3&other=7.4.5.1&into=gated.logits")
    page = ExplorerPage(tab.page)
    before = page.places(BOXES)
    refused = tab.page.locator(".gi-patches .gi-map-of-gated .gi-refused")
    seen = 0
    for i in range(20):
        head, on = i % 8, i // 8 == 1
        page.switch(head).click()
        page.expect_pressed(head, on)
        moved = [b for b in page.places(BOXES) if b not in before]
        # A sentence lies on the tiles that it is about.
        seen += refused.count()
        assert len(moved) <= refused.count()
    assert seen  # without the head that writes the answer, both prompts answer alike
    tab.assert_quiet({"127.0.0.1"})


def test_path_by_path_in_a_deep_model(deep: str, tab: Tab) -> None:
    tab.page.goto(deep)
    page = ExplorerPage(tab.page)
    page.type_tokens("w1 w2 w3 w4 w5 w1 w2 w3")
    page.expect_count("typed")
    box = tab.page.get_by_label("second prompt", exact=True)
    box.fill("w1 w2 w9 w4 w5 w1 w2 w3")
    box.press("Enter")
    tiles = tab.page.locator(".gi-patches").first.locator(".gi-share")
    expect(tiles).to_have_count(LAYERS * HEADS)
    tiles.nth(4 * HEADS + 2).click()  # into L4H2
    into = tab.page.locator(".gi-patches").last
    expect(into).to_contain_text("into the query of L4H2")
    expect(into.locator(".gi-share")).to_have_count(4 * HEADS)
    queries = into.locator(".gi-share").all_inner_texts()
    tab.page.get_by_label("what the receiver reads").select_option("value")
    expect(into).to_contain_text("into the value of L4H2")
    assert into.locator(".gi-share").all_inner_texts() != queries
    assert "into=model.L4H2.value" in tab.page.url
    for width in WIDTHS:
        tab.page.set_viewport_size({"width": width, "height": 900})
        assert page.overflow() == []
    tab.assert_quiet({"127.0.0.1"})
