"""Make the fonts of the package from Liberation Sans 2.1.5: python tests/cut_fonts.py FOLDER.

All characters stay, and the kerning in its old form. What goes is what nobody here uses: hints for
small screens, and tables of typesetting. A modified font must not keep its name.
"""

import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

from gated_interp.plots import fonts

NAMES = {"normal": "Regular", "bold": "Bold"}


def cut(source: Path, target: Path, weight: str) -> None:
    """Write the font at ``source`` without these parts."""
    options = subset.Options(
        hinting=False,
        legacy_kern=True,
        retain_gids=True,
        glyph_names=True,
        notdef_outline=True,
        name_IDs=[0, 1, 2, 4, 5, 6, 13, 14],
        drop_tables=["FFTM", "GDEF", "GPOS", "GSUB"],
    )
    font = TTFont(source, recalcTimestamp=False)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=font.getBestCmap())
    cutter.subset(font)
    for name in list(font["name"].names):
        if name.nameID in (1, 4, 6):
            bold = "-Bold" if weight == "bold" and name.nameID != 1 else ""
            font["name"].setName(
                fonts.NAME + bold, name.nameID, name.platformID, name.platEncID, name.langID
            )
    font.save(target)


if __name__ == "__main__":
    for weight, file in fonts.WEIGHTS.items():
        source = Path(sys.argv[1], f"LiberationSans-{NAMES[weight]}.ttf")
        cut(source, Path(fonts.path_of(weight)).with_name(file), weight)
