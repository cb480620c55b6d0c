"""The font that travels with the package."""

import base64
import io
import re
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont

from gated_interp.plots import fonts


def subsets(css: str) -> list[TTFont]:
    found = re.findall(r"data:font/woff;base64,([A-Za-z0-9+/=]+)", css)
    return [TTFont(io.BytesIO(base64.b64decode(data))) for data in found]


def test_widths_are_those_of_arial() -> None:
    # Arial's advances, in 2048ths of the font size: A 1366, space 569, i 455, m 1706, … 2048.
    assert fonts.text_width("A im…", 2048) == 1366 + 569 + 455 + 1706 + 2048
    assert fonts.text_width("A", 2048, "bold") == 1479
    # Of what the font lacks, about the widest letter.
    assert fonts.text_width("\u65e5", 2048) == 1706


def test_the_font_knows_what_it_can_write() -> None:
    assert all(map(fonts.has, "A→−Ω…"))
    assert not fonts.has("\u65e5")
    assert fonts.path_of("bold").endswith("gated-interp-Bold.ttf")


def test_a_page_gets_a_subset_under_another_name() -> None:
    css = fonts.font_face("Ω\u0416")
    assert css == fonts.font_face("\u0416")
    assert len(css) < 100_000
    assert re.findall(r"font-weight: (\w+)", css) == ["normal", "bold"]
    for font in subsets(css):
        assert {ord("A"), ord("→"), ord("−"), 0x416} <= set(font.getBestCmap())
        assert {font["name"].getDebugName(key) for key in (1, 4, 6)} == {fonts.NAME}
        assert "OFL" in font["name"].getDebugName(14).upper() or "SIL" in font["name"].getDebugName(
            13
        )
        assert not [n for n in font["name"].names if n.nameID not in (0, 1, 4, 6, 13, 14)]


@pytest.mark.parametrize("file", sorted(fonts.WEIGHTS.values()))
def test_the_fonts_have_another_name_and_their_licence(file: str) -> None:
    folder = fonts.files(fonts.__name__)
    font = TTFont(io.BytesIO((folder / file).read_bytes()))
    assert font["name"].getDebugName(1) == fonts.NAME
    assert font["name"].getDebugName(6) == Path(file).stem
    assert len(font.getBestCmap()) > 2300
    assert "kern" in font
    assert "2.1.5" in font["name"].getDebugName(5)
    licence = (folder / "LICENSE-Liberation.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence
    assert "Reserved Font Name Liberation" in licence
