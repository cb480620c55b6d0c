"""CircuitsVis views: what is in the HTML. What it does is tested in tests/browser."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from refusals import refuses

from gated_interp.plots import attention_views
from gated_interp.plots.attention_views import AttentionView, attention_view, in_script

PATTERN = np.tril(np.ones((2, 3, 3))) / np.arange(1, 4)[:, None]
TOKENS = ["BOS", "A", "</script><script>alert(1)</script>"]
HEADS = ["L0H0", "<b>"]
MARK = "/* CircuitsVis "


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_views, "_carriers", attention_views._Carriers())


def view() -> AttentionView:
    return attention_view(PATTERN, TOKENS, HEADS)


class Notebook:
    """A kernel's shell, as far as a view looks at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.kernel, self.execution_count, self.user_ns = object(), 0, {"In": [""]}
        self.cell: str | None = None
        fake = SimpleNamespace(get_ipython=lambda: self)
        monkeypatch.setitem(sys.modules, "IPython", fake)

    def get_parent(self) -> dict[str, object]:
        return {"metadata": {"cellId": self.cell} if self.cell else {}}

    def run(self, cell: str, *, source: str = "view", shows: int = 1) -> list[int]:
        """Run a cell that shows so many views; how many scripts each brings."""
        self.cell, self.execution_count = cell, self.execution_count + 1
        self.user_ns["In"].append(source)
        return [view()._repr_html_().count(MARK) for _ in range(shows)]


def test_only_one_cell_carries_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch)
    assert notebook.run("a", shows=2) == [1, 0]
    assert notebook.run("b") == [0]
    assert notebook.run("a", source="view # edited", shows=2) == [1, 0]  # not lost by running again
    assert notebook.run("b") == [0]
    assert len(view()._repr_html_()) < 10_000


def test_without_cell_ids_a_cell_is_known_by_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch)
    assert notebook.run("", source="one") == [1]
    assert notebook.run("", source="two") == [0]
    assert notebook.run("", source="one") == [1]


def test_where_outputs_are_pages_of_their_own_each_carries_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notebook = Notebook(monkeypatch)
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert notebook.run("a") + notebook.run("b") == [1, 1]


def test_outside_a_notebook_it_is_whole() -> None:
    assert view()._repr_html_().count(MARK) == 1


def test_labels_are_data_and_never_markup() -> None:
    html = view().fragment(with_script=False)
    assert html.count("<script>") == html.count("</script>") == 1
    assert "alert(1)" in html
    (props,) = re.findall(r"AttentionHeads, (\{.*\})\);", html)
    assert not set("<>&") & set(props)
    assert json.loads(props)["tokens"] == TOKENS
    assert json.loads(props)["attentionHeadNames"] == HEADS
    np.testing.assert_allclose(json.loads(props)["attention"], PATTERN, atol=5e-4)


@pytest.mark.parametrize("text", ["</SCRIPT>", "<!--", "]]>", "\u2028\u2029", "\\u003c", "&lt;"])
def test_text_in_a_script_comes_back_the_same(text: str) -> None:
    assert json.loads(in_script(text)) == text
    assert not set("<>&\u2028\u2029") & set(in_script(text))


def test_a_saved_page_asks_nobody(tmp_path: Path) -> None:
    path = view().save(tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    assert page.count(MARK) == 1
    # The library's own text holds no end of a script: both scripts end where they should.
    assert page.count("</script") == 2
    for asks in (
        '<link rel="stylesheet',
        "<script src",
        "sourceMappingURL",
        "unpkg.com",
        "import(",
    ):
        assert asks not in page
    with refuses("output-is-a-folder"):
        view().save(tmp_path)


def test_gated_patterns_share_the_scale() -> None:
    both = attention_view(PATTERN, TOKENS, HEADS, gated=2 * PATTERN)
    (_, first), (title, second) = both.panels
    assert title == "gated attention"
    assert first["maxValue"] == second["maxValue"] == 2.0
    assert repr(both) == "AttentionView(attention and gated attention, 2 heads)"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pattern": PATTERN[0]}, "array-wrong-shape"),
        ({"pattern": PATTERN[:, :2]}, "pattern-not-square"),
        ({"pattern": PATTERN * 1.5}, "values-out-of-range"),
        ({"tokens": TOKENS[:2]}, "wrong-number-of-labels"),
        ({"tokens": "BOS"}, "wrong-number-of-labels"),
        ({"heads": ["L0H0"]}, "wrong-number-of-labels"),
        ({"gated": PATTERN[:1]}, "array-wrong-shape"),
        ({"gated": PATTERN * np.nan}, "array-not-finite"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(change: dict[str, object], code: str) -> None:
    given = {"pattern": PATTERN, "tokens": TOKENS, "heads": HEADS, **change}
    with refuses(code):
        attention_view(**given)  # type: ignore[arg-type]
