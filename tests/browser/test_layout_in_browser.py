"""The page of a figure, drawn where no Arial is: nothing is cut, nothing overlaps."""

from pathlib import Path
from typing import Any

import layout
import pandas as pd
import pytest
from test_layout import of_studies

from gated_interp.plots import save_figure
from gated_interp.plots.fonts import text_width


def test_a_page_draws_with_the_font_it_brings(tab: Any, tmp_path: Path) -> None:
    found = of_studies()["reliability"]
    save_figure(found, pd.DataFrame({"a": [1]}), tmp_path / "page", ("html",))
    tab.page.goto((tmp_path / "page.html").as_uri())
    tab.page.wait_for_selector(".xtick text")
    assert tab.page.evaluate("document.fonts.check('16px gated-interp')")
    measured = tab.page.evaluate(
        """() => { const t = [...document.querySelectorAll(".annotation-text")]
          .find((t) => t.textContent === "61 of 64"); return t.getComputedTextLength(); }"""
    )
    assert measured == pytest.approx(text_width("61 of 64", 9.5), abs=0.6)
    seen = tab.page.evaluate(f"() => ({layout.MEASURE})(document.querySelector('.svg-container'))")
    assert layout.faults(seen) == []
