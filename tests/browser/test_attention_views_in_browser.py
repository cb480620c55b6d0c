"""Attention views in a real browser: on a saved page, and many in one notebook."""

import json
from pathlib import Path

from servers import Lab, Tab

from gated_interp.plots.attention_views import attention_view

NASTY = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=2>",
    "${window.hacked=3}`'\"\\",
)
HEADS = ["</script><script>window.hacked=4</script>", "<i>L0H1</i>"]
PATTERN = [[[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.2, 0.3]]] * 2
# Per head a small picture, and the chosen head's large one.
CANVASES = len(HEADS) + 1


def wait_for_views(tab: Tab, count: int) -> None:
    """Until so many views are drawn."""
    tab.page.wait_for_function(
        "n => document.querySelectorAll('.gated-interp-view canvas').length === n", arg=count
    )


def assert_labels_are_text(tab: Tab) -> None:
    names = tab.page.locator(".gated-interp-view h4").all_inner_texts()
    assert names[: len(HEADS)] == HEADS
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator(".gated-interp-view img, .gated-interp-view i").count() == 0


def test_a_saved_page_stands_alone(tab: Tab, tmp_path: Path) -> None:
    view = attention_view(PATTERN, NASTY, HEADS, gated=PATTERN)
    path = view.save(tmp_path / "view.html")
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.page.goto(path.as_uri())
    wait_for_views(tab, 2 * CANVASES)
    assert_labels_are_text(tab)
    titles = tab.page.locator(".gated-interp-view > div:first-child").all_inner_texts()
    assert titles == ["attention", "gated attention"]
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    tab.assert_quiet(set())


def test_views_before_the_script_wait_for_it(tab: Tab, tmp_path: Path) -> None:
    view = attention_view(PATTERN, NASTY, HEADS)
    pieces = [view.fragment(with_script=carries) for carries in (False, True, False, True)]
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><meta charset=utf-8>" + "".join(pieces))
    tab.page.goto(page.as_uri())
    wait_for_views(tab, 4 * CANVASES)
    assert_labels_are_text(tab)
    tab.assert_quiet(set())


def test_a_notebook_of_many_views_holds_one_script(lab: Lab, tab: Tab) -> None:
    sources = [
        "from gated_interp.plots.attention_views import attention_view\n"
        f"view = attention_view({PATTERN!r}, {NASTY!r}, {HEADS!r})",
        "view",
        "from IPython.display import display\ndisplay(view, view)",
        "view",
    ]
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for i, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": kernel},
        "cells": cells,
    }
    path = lab.folder / "views.ipynb"
    path.write_text(json.dumps(notebook))
    tab.page.set_viewport_size({"width": 1400, "height": 6000})  # the lab draws what is in sight
    lab.open(tab, path.name)
    for _ in range(2):  # running the cells again changes nothing
        kinds = lab.run_all(tab)
        assert kinds == [[], ["execute_result"], ["display_data"] * 2, ["execute_result"]]
        wait_for_views(tab, 4 * CANVASES)
        assert_labels_are_text(tab)
    tab.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    saved = path.read_text()
    assert saved.count("/* CircuitsVis ") == 1
    assert len(saved) < 2_000_000

    # Opened anew, the saved outputs are enough.
    tab.page.reload()
    wait_for_views(tab, 4 * CANVASES)
    assert_labels_are_text(tab)
    tab.assert_quiet({"127.0.0.1"})
