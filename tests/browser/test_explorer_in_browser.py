"""The explorer in a real browser: in JupyterLab and on the served page."""

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from explorer_page import SWITCH_TIME, ExplorerPage, predicted
from playwright.sync_api import expect
from servers import Lab, Tab, explored

from gated_interp.checkpoints.checkpoint import load
from gated_interp.replacements.splice import unsplice

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
DOCS = Path(__file__).parents[2] / "docs"
WIDTHS = (700, 1200, 1900)
NOTEBOOK = "04_ablate_heads_interactively.ipynb"


def use(page: ExplorerPage) -> None:
    """Work an explorer of the shipped 2H3ST model as a user would, and compare with the hooks."""
    gated = load("2H3ST-gated")
    original = unsplice(gated)
    original.task = gated.task
    words, at = page.tokens(), page.position()
    assert page.prediction("gated") == predicted(gated, words, at, [])
    assert page.prediction("original") == predicted(original, words, at, [])

    # Each head alone: what is shown is what the hooks say, and some head changes it.
    changed = []
    for head in range(8):
        page.switch(head).click()
        wanted = predicted(gated, words, at, [head])
        page.expect_prediction(wanted)
        page.expect_off(1)
        changed.append(wanted != predicted(gated, words, at, []))
        page.switch(head).click()
        page.expect_off(0)
    assert changed.count(True) == 1  # in this model one head owns the trigram
    owner = changed.index(True)

    # The trigram's bar falls from all to nothing; the original's stay.
    bars = page.bars()
    page.switch(owner).click()
    page.expect_off(1)
    after = page.bars()
    assert after[:3] == bars[:3]
    trigram = parse(words, at)
    assert int(bars[2 + trigram].rstrip("%")) > 95
    assert after[2 + trigram] == "0%"
    page.switch(owner).click()
    page.expect_prediction(predicted(gated, words, at, []))

    # The original's own switches.
    page.switch(0, "original").click()
    page.expect_prediction(predicted(original, words, at, [0]), "original")
    assert page.prediction("gated") == predicted(gated, words, at, [])
    page.switch(0, "original").click()
    page.expect_prediction(predicted(original, words, at, []), "original")

    # Stepping, there and back.
    page.button("▶").click()
    page.expect_count("example 2 of 100")
    page.expect_other_tokens(words)
    second, then = page.tokens(), page.position()
    page.expect_prediction(predicted(gated, second, then, []))
    page.button("◀").click()
    page.expect_count("example 1 of 100")
    assert (page.tokens(), page.position()) == (words, at)

    # Typing; bad input says so and changes nothing else.
    page.type_tokens("BOS A C2 B1")
    page.expect_count("typed")
    assert page.position() == 3
    page.expect_prediction(predicted(gated, "BOS A C2 B1", 3, []))
    for bad, said in (
        ("BOS X9", "'X9' is not a token"),
        ("", "There is no token"),
        ("BOS" + " A" * 11, "There are 12 tokens"),
        ("<img src=x onerror=alert(1)>", "'<img' is not a token"),
    ):
        page.type_tokens(bad)
        page.expect_message(said)
        assert page.prediction() == predicted(gated, "BOS A C2 B1", 3, [])
    page.type_tokens("7 0 5 2")
    page.expect_prediction(predicted(gated, "BOS A C2 B2", 3, []))
    page.expect_no_message()


def parse(words: str, at: int) -> int:
    """The trigram of the B at a position."""
    name = words.split()[at]
    assert name[0] == "B"
    return int(name[1:])


def time_switches(tab: Tab, record: Callable[[str, object], None]) -> None:
    """Report how many ms a switch takes, from the click to the painted figure (median of 16)."""
    times = [tab.page.evaluate(SWITCH_TIME, f".gi-gated-{i % 8}") for i in range(16)]
    assert len(times) == 16
    assert min(times) > 0
    record("switch_ms", round(statistics.median(times)))
    sys.stdout.write(f"a switch answers in {statistics.median(times):.0f} ms\n")


def test_the_notebook_in_jupyterlab(
    lab: Lab, tab: Tab, record_property: Callable[[str, object], None]
) -> None:
    shutil.copy(NOTEBOOKS / NOTEBOOK, lab.folder)
    lab.open(tab, NOTEBOOK)
    kinds = lab.run_all(tab)
    assert kinds
    # No error, and no stream: nothing warned or printed.
    assert {kind for cell in kinds for kind in cell} == {"execute_result", "display_data"}
    page = ExplorerPage(tab.page)
    # Out of sight, JupyterLab does not lay it out.
    page.switch(0).scroll_into_view_if_needed()
    # What the notebook's text says of it: an example of trigram 2, every head on.
    assert page.tokens() == "BOS A C1 B2"
    assert (page.prediction(), page.position(), page.shown_off()) == ("C2", 3, 0)
    for width in WIDTHS:  # with the file browser open
        tab.page.set_viewport_size({"width": width, "height": 900})
        tab.page.wait_for_timeout(300)
        assert page.overflow() == []
        scroller = "document.querySelector('.gi-explorer').closest('.jp-OutputArea-output')"
        assert tab.page.evaluate(f"{scroller}.scrollWidth <= {scroller}.clientWidth")
    # The keys are the explorer's, not the notebook's.
    page.switch(1).focus()
    tab.page.keyboard.press("Enter")
    page.expect_pressed(1, False)
    tab.page.keyboard.press("Space")
    page.expect_pressed(1, True)
    page.button("▶").click()
    page.expect_count("example 1 of 100")
    use(page)
    time_switches(tab, record_property)
    tab.assert_quiet({"127.0.0.1"})


def test_the_served_page(
    served: str, tab: Tab, record_property: Callable[[str, object], None]
) -> None:
    tab.page.goto(served)
    assert "Heads of 2H3ST-gated" in tab.page.locator("h1").inner_text()
    assert "Switch attention heads off" in tab.page.locator("header").inner_text()
    use(ExplorerPage(tab.page))
    time_switches(tab, record_property)
    tab.assert_quiet({"127.0.0.1"})


@pytest.mark.parametrize("served", ["2H3ST-gated", "austen-2l"], indirect=True)
def test_it_fits_every_window(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    for width in WIDTHS:
        tab.page.set_viewport_size({"width": width, "height": 900})
        assert page.overflow() == []
    tab.assert_quiet({"127.0.0.1"})


def test_all_by_keyboard_and_a_link_leads_back(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    key = tab.page.keyboard
    page.expect_pressed(3, True)
    page.switch(3).focus()
    key.press("Space")
    page.expect_pressed(3, False)
    key.press("Tab")
    key.press("Enter")  # only this head
    page.expect_off(7)
    page.expect_pressed(3, True)
    tab.page.locator(".gi-tokens button[aria-pressed=true]").focus()
    at = page.position()
    key.press("ArrowLeft")
    key.press("ArrowLeft")  # before the first is answered
    expect(tab.page.locator(".gi-tokens button").nth(at - 2)).to_be_focused()
    assert page.position() == at - 2
    tab.page.get_by_label("show").select_option("attention × gate")
    tab.page.locator(".gi-of-gated .gi-pattern").nth(3).focus()
    key.press("Enter")
    dialog = tab.page.locator("dialog")
    expect(dialog.locator("h3")).to_have_text("L0H3, gated: attention × gate")
    dialog.locator("canvas").focus()
    readout = dialog.locator(".gi-readout")
    expect(readout).to_contain_text(f"({at - 2}) reads")
    key.press("ArrowLeft")
    expect(readout).to_contain_text(f"({at - 3}):")
    address = tab.page.url
    tab.page.goto("about:blank")
    tab.page.goto(address)
    ExplorerPage(tab.page)
    expect(dialog.locator("h3")).to_have_text("L0H3, gated: attention × gate")
    key.press("Escape")
    expect(dialog).not_to_be_visible()
    page.expect_off(7)
    assert page.position() == at - 2
    expect(tab.page.get_by_label("show")).to_have_value("attention × gate")
    tab.page.reload()
    again = ExplorerPage(tab.page)
    again.expect_off(7)
    tab.assert_quiet({"127.0.0.1"})


@pytest.mark.parametrize("served", ["austen-1l"], indirect=True)
def test_a_switch_keeps_the_focus_when_the_table_grows(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    columns = tab.page.locator(".gi-of-model thead th")
    counts = set()
    for head in range(8):
        switch = page.switch(head, "model")
        switch.focus()
        tab.page.keyboard.press("Space")
        page.expect_pressed(head, False, "model")
        expect(switch).to_be_focused()
        counts.add(columns.count())
        rows = tab.page.locator(".gi-of-model tbody tr").all()
        assert {row.locator("td").count() for row in rows} == {columns.count()}
    assert len(counts) > 1  # else the table never changed its width and nothing was tested
    tab.assert_quiet({"127.0.0.1"})


def test_a_pattern_says_its_pair_and_its_places_lead_there(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    pattern = tab.page.locator(".gi-of-gated .gi-pattern").nth(5)
    box = pattern.bounding_box()
    n = len(page.tokens().split())
    cell = box["width"] / n
    tab.page.mouse.move(box["x"] + 2.5 * cell, box["y"] + 4.5 * cell)
    words = page.tokens().split()
    said = tab.page.locator(".gi-of-gated .gi-readout")
    expect(said).to_contain_text(f"L0H5: {words[4]} (4) reads {words[2]} (2): ")
    pattern.click()
    place = tab.page.locator(".gi-places button").first
    number = place.inner_text().split()[1]
    place.click()
    page.expect_count(f"example {number} of 100")
    tab.page.locator(".gi-close").click()
    expect(tab.page.locator("dialog")).not_to_be_visible()
    tab.page.locator(".gi-sort").click()
    expect(tab.page.locator(".gi-sort")).to_have_attribute("aria-pressed", "true")
    said = tab.page.locator(".gi-of-gated .gi-effect span:first-child").all_inner_texts()
    effects = [abs(float(e.replace("−", "-"))) for e in said]
    assert effects == sorted(effects, reverse=True)


@pytest.mark.parametrize("served", ["2H3ST-gated", "austen-2l"], indirect=True)
def test_bad_input_moves_nothing(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    boxes = ":not(.gi-message)"
    before = page.places(boxes)
    page.type_tokens("no " * 400)
    page.expect_message(
        "Write fewer" if "text" in tab.page.locator(".gi-typing").inner_text() else "not"
    )
    assert page.places(boxes) == before


def test_the_picture_of_the_readme_can_be_taken_anew(tmp_path: Path) -> None:
    out = tmp_path / "explorer.png"
    script = Path(__file__).parents[1] / "explorer_picture.py"
    subprocess.run([sys.executable, str(script), str(out)], check=True, timeout=300)
    taken, stored = (path.read_bytes()[16:24] for path in (out, DOCS / "explorer.png"))
    # What the README shows is what the explorer looks like now: as wide, and about as high.
    sizes = [[int.from_bytes(head[i : i + 4], "big") for i in (0, 4)] for head in (taken, stored)]
    assert sizes[0][0] == sizes[1][0]
    assert abs(sizes[0][1] - sizes[1][1]) < 100


def test_labels_that_spell_a_script_are_text(tab: Tab, tmp_path: Path) -> None:
    with explored("austen-1l", tmp_path) as address:
        tab.page.goto(address)
        page = ExplorerPage(tab.page)
        nasty = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
        page.type_tokens(nasty)
        page.expect_count("typed")
        assert page.tokens() == nasty
        assert "".join(tab.page.locator(".gi-tokens button").all_text_contents()[1:]) == (
            nasty.replace(" ", "·")
        )
        assert tab.page.evaluate("window.hacked") is None
        assert tab.page.locator(".gi-explorer :is(img, script)").count() == 0
        tab.assert_quiet({"127.0.0.1"})
