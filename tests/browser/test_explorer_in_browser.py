"""The explorer in a real browser: in JupyterLab and on the served page."""

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from explorer_page import SWITCH_TIME, ExplorerPage, predicted
from servers import Lab, Served, Tab

from gated_interp.checkpoints.checkpoint import load
from gated_interp.replacements.splice import unsplice

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
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
        page.expect_off(2)  # the head's attention and its gates
        changed.append(wanted != predicted(gated, words, at, []))
        page.switch(head).click()
        page.expect_off(0)
    assert changed.count(True) == 1  # in this model one head owns the trigram
    owner = changed.index(True)

    # The trigram's bar falls from all to nothing; the original's stay.
    bars = page.bars()
    page.switch(owner).click()
    page.expect_off(2)
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
        ("", "there is no token"),
        ("BOS" + " A" * 11, "12 tokens are too many"),
        ("<img src=x onerror=alert(1)>", "'<IMG' is not a token"),
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
    # The notebook's later cells have used the same explorer by code: it shows where they left it.
    assert page.tokens() == "BOS A C1 B2"
    assert page.shown_off() == 3
    tab.page.locator(".gi-explorer button", has_text="all on").nth(0).click()
    tab.page.locator(".gi-explorer button", has_text="all on").nth(1).click()
    page.expect_off(0)
    page.button("▶").click()
    page.expect_count("example 1 of 100")
    use(page)
    time_switches(tab, record_property)
    tab.assert_quiet({"127.0.0.1"})


def test_the_served_page(
    served: Served, tab: Tab, record_property: Callable[[str, object], None]
) -> None:
    tab.page.goto(served.address)
    use(ExplorerPage(tab.page))
    time_switches(tab, record_property)
    tab.assert_quiet({"127.0.0.1"})


def test_a_page_loaded_again_starts_again(served: Served, tab: Tab) -> None:
    tab.page.goto(served.address)
    first = ExplorerPage(tab.page)
    words, bars = first.tokens(), first.bars()
    first.switch(0).click()
    first.expect_off(2)
    tab.page.reload()
    again = ExplorerPage(tab.page)
    again.expect_off(0)
    assert (again.tokens(), again.bars()) == (words, bars)
    end = time.monotonic() + 30
    while served.kernels() > 1 and time.monotonic() < end:
        time.sleep(0.2)
    assert served.kernels() == 1  # the first page's kernel ended with it
    tab.assert_quiet({"127.0.0.1"})
