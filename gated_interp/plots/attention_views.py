"""CircuitsVis views of attention, without the network and with one copy of its script.

CircuitsVis (Cooney & Nanda) draws attention patterns that answer to the mouse. Its own HTML loads
the script from a content delivery network, asks the network whether it is there, and puts labels
into a script unescaped. Here the script comes from the installed package; labels are data, never
markup; and of all views in a notebook only one carries the 1.3 MB script, the others wait for it.
"""

import dataclasses
import html
import json
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from gated_interp.core.files import write_text
from gated_interp.plots.fonts import FAMILY
from gated_interp.plots.inputs import counted, patterns

# The views of one page find the script, and wait for it, under this name in its window.
SHELF = "gatedInterpCircuitsVis"
POSITIVE, NEGATIVE = "#451560", "#7A3300"  # the dark ends of the figures' attention and sign ramps

_WAITING = (
    "The script of the attention views is in the first cell of this notebook that shows one; "
    "run that cell, and trust the notebook, to see this view."
)


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionView:
    """Attention patterns to look at: the last value of a notebook cell, or a saved page.

    Attributes:
        panels: title and properties of each CircuitsVis ``AttentionHeads`` element.
    """

    panels: tuple[tuple[str, dict[str, Any]], ...]

    def save(self, path: Path | str) -> Path:
        """Write one page that needs nothing else, whole or not at all.

        Raises:
            GatedInterpError: the place cannot be written.
        """
        return write_text(path, self.to_html())

    def to_html(self) -> str:
        """A whole page with its script."""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<link rel="icon" href="data:,"><title>attention</title></head>\n'
            f"<body>{self.fragment(with_script=True)}</body></html>\n"
        )

    def fragment(self, *, with_script: bool) -> str:
        """The view as a piece of a page.

        Args:
            with_script: carry the script too; some view on the page, before or after, must.
        """
        script = f"<script>{_shared_script()}</script>\n" if with_script else ""
        return script + "".join(_panel(title, props) for title, props in self.panels)

    def _repr_html_(self) -> str:
        return self.fragment(with_script=_carriers.must_carry())

    def __repr__(self) -> str:
        titles = " and ".join(title for title, _ in self.panels)
        heads = len(self.panels[0][1]["attentionHeadNames"])
        return f"AttentionView({titles}, {heads} heads)"


def attention_view(
    pattern: ArrayLike,
    tokens: Sequence[str],
    heads: Sequence[str],
    *,
    gated: ArrayLike | None = None,
) -> AttentionView:
    """An interactive view of one example's attention, and of what the gates let through.

    Args:
        pattern: ``[head, query_pos, key_pos]``, rows sum to 1.
        tokens: one per position; shown as they are, markup included.
        heads: one label per head.
        gated: ``[head, query_pos, key_pos]``, gate times pattern.

    Raises:
        GatedInterpError: another shape, attention outside 0 to 1, or labels that do not fit.

    Examples:
        >>> attention_view([[[1.0, 0.0], [0.5, 0.5]]], ["BOS", "A"], ["L0H0"])
        AttentionView(attention, 1 heads)
    """
    shown, top = patterns(pattern, gated)
    counted("tokens", tokens, shown["attention"].shape[2], "positions")
    counted("heads", heads, shown["attention"].shape[0], "heads")
    names = {"gated": "gated attention"}
    common = {
        "tokens": [str(t) for t in tokens],
        "attentionHeadNames": [str(h) for h in heads],
        "maxValue": top,
        "minValue": -top,
        "positiveColor": POSITIVE,
        "negativeColor": NEGATIVE,
        "maskUpperTri": True,
    }
    # Three digits are what a colour can show; they keep the notebook small.
    return AttentionView(
        tuple(
            (names.get(name, name), {"attention": v.round(3).tolist(), **common})
            for name, v in shown.items()
        )
    )


def in_script(value: object) -> str:
    """``value`` as JavaScript that no HTML parser can take for the end of its script.

    Examples:
        >>> in_script("</script>")
        '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value)  # ASCII: U+2028 and U+2029 are escaped too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _panel(title: str, props: dict[str, Any]) -> str:
    # The element is found beside its script, not by a fixed id: a copy of the output (a new view
    # of a cell, a page of several exports) then fills its own place.
    return f"""<div class="gated-interp-view">
<div style="font: bold 14px {FAMILY}; margin: 6px 0">{html.escape(title)}</div>
<div style="max-width: 900px"><em>{html.escape(_WAITING)}</em></div>
<script>(() => {{
const script = document.currentScript;
const place = script.previousElementSibling;
const shelf = window.{SHELF} = window.{SHELF} || {{waiting: []}};
const draw = () => {{
  if (!place.isConnected) {{
    // The notebook still holds the output back: look again when it shows it.
    setTimeout(draw, 200);
    return;
  }}
  place.id = "attention-" + Math.random().toString(36).slice(2);
  place.textContent = "";
  shelf.library.render(place.id, shelf.library.AttentionHeads, {in_script(props)});
}};
if (shelf.library) draw(); else shelf.waiting.push(draw);
}})();</script>
</div>
"""


@cache
def _shared_script() -> str:
    """The library, put on the shelf once however often it runs; then those who wait are drawn."""
    folder = files("circuitsvis")
    library = (folder / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    # No end of a script within the script; and no map, which a browser would ask a server for.
    library = library.replace("</script", "<\\/script").split("\n//# sourceMappingURL")[0]
    return f"""/* CircuitsVis {version("circuitsvis")} */
(() => {{
const shelf = window.{SHELF} = window.{SHELF} || {{waiting: []}};
if (!shelf.library) {{
{library}
shelf.library = CircuitsVis;
}}
shelf.waiting.splice(0).forEach((draw) => draw());
}})();"""


class _Carriers:
    """Which cell of this kernel's notebook carries the script.

    The first cell that shows a view carries it, again each time it is run, so that its output
    never loses it; no other cell does.
    """

    def __init__(self) -> None:
        self.cell: str | None = None
        self.run: object = None

    def must_carry(self) -> bool:
        """Whether the view shown now must bring the script."""
        ipython = sys.modules.get("IPython")
        shell: Any = None if ipython is None else ipython.get_ipython()
        if not hasattr(shell, "kernel") or "google.colab" in sys.modules:
            return True  # no notebook, or one where every output is a page of its own
        # JupyterLab names its cells; elsewhere a cell is known by its text.
        named = shell.get_parent().get("metadata", {}).get("cellId")
        cell, run = str(named or (shell.user_ns.get("In") or [""])[-1]), shell.execution_count
        # Not for another cell, nor for a second view in the same run of the same cell.
        if self.cell not in (None, cell) or (self.cell, self.run) == (cell, run):
            return False
        self.cell, self.run = cell, run
        return True


_carriers = _Carriers()
