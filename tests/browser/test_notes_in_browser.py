"""Names, notes, pins and groups in a real browser: by keyboard, in a link, in a file."""

from pathlib import Path
from typing import Any

from explorer_page import ExplorerPage
from playwright.sync_api import expect
from servers import Tab, explored

BOXES = ":is(button, select, textarea, h3, h4, canvas, div, p, .gi-layer > span):not(.gi-message)"
WIDTHS = (700, 1200, 1900)
NASTY = "<img src=x onerror=window.hacked=1>\u202eevil"

# A form that is open again by the time that it is told that it closed.
REOPEN = """async () => {
  const note = document.querySelector("[aria-label='note on L0H1, gated']");
  note.click();
  document.querySelector(".gi-note-form").close();
  note.click();
  await new Promise(done => setTimeout(done, 100));
}"""


def write(tab: Tab, head: int, name: str, groups: str, note: str, pin: bool) -> None:
    """Fill in the form of a gated head, by keyboard alone."""
    key = tab.page.keyboard
    tab.page.locator(f".gi-of-gated button[aria-label='note on L0H{head}, gated']").focus()
    key.press("Enter")
    expect(tab.page.locator(".gi-note-form")).to_be_visible()
    for words in (name, groups, note):
        key.type(words)
        key.press("Tab")
    if pin:
        key.press("Space")
    key.press("Tab")
    key.press("Enter")  # keep


def too_long(tab: Tab) -> None:
    """Give a head a name that is refused."""
    write(tab, 1, "x" * 50, "", "", False)


def test_heads_are_named_pinned_and_switched_in_groups(
    served: str, tab: Tab, tmp_path: Path
) -> None:
    tab.page.goto(served)
    page = ExplorerPage(tab.page)
    form = tab.page.locator(".gi-note-form")
    write(tab, 5, "writes C1", "writers, sure", "answers B1", True)
    expect(form).not_to_be_visible()
    expect(tab.page.locator(".gi-of-gated").get_by_label("note on L0H5")).to_be_focused()
    write(tab, 2, NASTY, "writers", "", False)
    expect(form).not_to_be_visible()

    # A pinned head comes first; its name stands wherever it is shown.
    first = tab.page.locator(".gi-of-gated .gi-card").first
    expect(first.locator(".gi-head")).to_have_text("L0H5")
    expect(first.locator(".gi-name")).to_contain_text("writes C1")
    named = "L0H5 \u2068writes C1\u2069"
    for place in (".gi-chip", ".gi-of-gated tbody th", ".gi-group-row"):
        expect(tab.page.locator(place).filter(has_text="writes C1").first).to_contain_text(named)
    first.locator(".gi-pattern").hover()
    expect(tab.page.locator(".gi-of-gated .gi-readout")).to_contain_text(named)
    first.locator(".gi-pattern").click()
    expect(tab.page.locator(".gi-dialog[open] h3")).to_contain_text(named)
    tab.page.keyboard.press("Escape")

    # Harmless, whatever it says.
    expect(tab.page.locator(".gi-noted")).to_contain_text("<img src=x onerror=window.hacked=1>evil")
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator(".gi-explorer img").count() == 0
    # What was asked before, and is answered only now, does not close the form.
    tab.page.route("**/state", lambda route: (too_long(tab), route.continue_()), times=1)
    tab.page.locator(".gi-sort").press("Enter")
    expect(form.locator(".gi-problem")).to_have_text(
        "The name has 50 characters, but 40 are the most. Shorten it."
    )
    tab.page.keyboard.press("Escape")
    expect(form).not_to_be_visible()
    tab.page.evaluate(REOPEN)
    expect(form).to_be_visible()
    tab.page.keyboard.press("Escape")
    expect(form).not_to_be_visible()

    # A group is one switch, and switches move no box.
    group = tab.page.locator(".gi-group", has_text="writers")
    before = page.places(BOXES)
    for i in range(20):
        group.focus()
        tab.page.keyboard.press("Enter")
        expect(group).to_have_attribute("aria-pressed", "false" if i % 2 == 0 else "true")
        expect(group).to_be_focused()
        for head in (5, 2):
            page.expect_pressed(head, i % 2 == 1)
        assert page.places(BOXES) == before
    page.switch(5).click()
    expect(group).to_have_attribute("aria-pressed", "mixed")

    # The link and the file keep all of it.
    address, rows = tab.page.url, tab.page.locator(".gi-notes").inner_text()
    tab.page.goto("about:blank")
    tab.page.goto(address)
    page = ExplorerPage(tab.page)
    assert tab.page.locator(".gi-notes").inner_text() == rows
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save file").press("Enter")
    assert download.value.suggested_filename == "2H3ST-gated.explorer.json"
    file = tmp_path / "sent.json"
    download.value.save_as(file)
    tab.page.goto(f"{served}#example=3&read=1")
    expect(tab.page.locator(".gi-notes")).not_to_be_visible()
    chooser: Any
    with tab.page.expect_file_chooser() as chooser:
        tab.page.get_by_role("button", name="open file").press("Enter")
    chooser.value.set_files(file)
    expect(tab.page.locator(".gi-notes")).to_be_visible()
    assert tab.page.locator(".gi-notes").inner_text() == rows
    for width in WIDTHS:
        tab.page.set_viewport_size({"width": width, "height": 900})
        assert page.overflow() == []
        tab.page.locator(".gi-noted .gi-only").first.click()
        box = form.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        tab.page.keyboard.press("Escape")
    tab.assert_quiet({"127.0.0.1"})

    # A file of another model, and one that is none.
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    tab.page.locator("input[type=file]").set_input_files(bad)
    tab.page.get_by_role("button", name="keep my notes").press("Enter")  # it asks first
    expect(tab.page.locator(".gi-replace")).not_to_be_visible()
    assert tab.page.locator(".gi-notes").inner_text() == rows
    tab.page.locator("input[type=file]").set_input_files(bad)
    expect(tab.page.locator(".gi-replace")).to_contain_text("replaces your notes on 2 heads")
    tab.page.get_by_role("button", name="open the file").press("Enter")
    page.expect_message("not a file that the explorer saved")
    with explored("3H4ST-gated", tmp_path) as other:
        tab.page.goto(other)
        page = ExplorerPage(tab.page)
        tab.page.locator("input[type=file]").set_input_files(file)
        page.expect_message("saved for “2H3ST-gated” (8 heads")
        page.expect_message("this page shows “3H4ST-gated”")


def test_a_note_changed_in_the_list_keeps_the_focus(served: str, tab: Tab) -> None:
    tab.page.goto(served)
    write(tab, 5, "writes C1", "", "", False)
    listed = tab.page.locator(".gi-noted").get_by_label("note on L0H5")
    for name in ("sure", "unsure"):
        listed.press("Enter")
        tab.page.keyboard.type(name)
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator(".gi-noted-row")).to_contain_text(name)
        expect(listed).to_be_focused()
    listed.press("Enter")
    tab.page.get_by_text("forget all of this").press("Enter")
    # The list no longer names the head; its card does.
    expect(listed).to_have_count(0)
    expect(tab.page.locator(".gi-of-gated").get_by_label("note on L0H5")).to_be_focused()
