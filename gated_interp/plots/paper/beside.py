"""What stands on and beside the panels: notes, shapes, colour bars, the legend and the title."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gated_interp.plots.fonts import text_width
from gated_interp.plots.paper.colors import scaled
from gated_interp.plots.paper.items import (
    Cells,
    Frame,
    Item,
    Marks,
    Outline,
    Text,
    line,
    rectangle,
)
from gated_interp.plots.paper.patterns import hatched
from gated_interp.plots.paper.scales import Extent, Scale, round_numbers
from gated_interp.plots.paper.spec import Spec
from gated_interp.plots.paper.traces import marks_look
from gated_interp.plots.paper.words import block, lines, number
from gated_interp.plots.style import Number

# The legend, in px: a sample's width, from it to the name, a row, and what an entry needs beside
# its name, as `layout.legend_rows` counts it.
SAMPLE, NAME, ROW, ENTRY = 30.0, 35.0, 17.0, 44.0


class Where:
    """Finds px of what names its reference: the paper, an axis, or an axis' domain."""

    def __init__(self, paper: Frame, scales: Mapping[str, Scale]):
        self.paper, self.scales = paper, scales

    def at(self, ref: str | None, value: Any, across: bool, *, powers: bool = False) -> float:
        """The px of ``value``.

        Args:
            powers: values on a logarithmic axis are exponents, as those of notes are.
        """
        if ref in (None, "paper"):
            start, end = self.paper[0 if across else 3], self.paper[2 if across else 1]
            return float(start + value * (end - start))
        scale = self.scales[str(ref).split(" ")[0]]
        if str(ref).endswith("domain"):
            start, end = scale.pixels
            return float(start + value * (end - start))
        # A word names a category, a number its place.
        named = isinstance(value, str) or (scale.kind == "log" and not powers)
        return float(scale.at([value])[0] if named else scale.place(value))


def reached(layout: Spec, name: str) -> list[Extent]:
    """What shapes span on an axis."""
    return [
        Extent([shape[f"{name[0]}{end}"]])
        for shape in layout.get("shapes", ())
        for end in "01"
        if shape.get(f"{name[0]}ref") == name
    ]


def shapes(layout: Spec, where: Where, *, below: bool) -> Iterator[Item]:
    """Lines and rectangles, those below the data or those above it."""
    for shape in layout.get("shapes", ()):
        if (shape.get("layer") == "below") != below:
            continue
        x0, x1 = (where.at(shape.get("xref"), shape[k], True) for k in ("x0", "x1"))
        y0, y1 = (where.at(shape.get("yref"), shape[k], False) for k in ("y0", "y1"))
        edge = shape.get("line", {})
        look = {"stroke": edge.get("color") if edge.get("width", 2) else None,
                "width": edge.get("width", 2), "dash": edge.get("dash", "solid")}  # fmt: skip
        if shape["type"] == "line":
            yield line((x0, y0), (x1, y1), **look)
        else:
            yield rectangle((x0, y0, x1, y1), fill=shape.get("fillcolor"), **look)


def notes(layout: Spec, where: Where) -> Iterator[Item]:
    """Annotations."""
    for note in layout.get("annotations", ()):
        look = {**layout["font"], **note.get("font", {})}
        x = where.at(note.get("xref"), note["x"], True, powers=True)
        y = where.at(note.get("yref"), note["y"], False, powers=True)
        inner = note.get("borderpad", 1)
        anchor, valign = note.get("xanchor", "center"), note.get("yanchor", "middle")
        kind = "note" if note.get("xref") == "paper" else "cell"
        found = block(note["text"], x, y, look["size"], look["color"], anchor=anchor,
                      valign=valign, kind=kind)  # fmt: skip
        if note.get("bgcolor") and found:
            boxes = np.array([text.box for text in found])
            low, high = boxes[:, :2].min(0) - inner, boxes[:, 2:].max(0) + inner
            yield rectangle((*low, *high), fill=note["bgcolor"])
        yield from found


def color_bars(layout: Spec, where: Where) -> Iterator[Item]:
    """The bar of every colour axis."""
    for axis in (layout[k] for k in layout if k.startswith("coloraxis")):
        bar, low, high = axis["colorbar"], axis["cmin"], axis["cmax"]
        left = where.at("paper", bar["x"], True)
        middle = where.at("paper", bar["y"], False)
        top, bottom = middle - bar["len"] / 2, middle + bar["len"] / 2
        frame = left, top, left + bar["thickness"], bottom
        ramp = np.linspace(high, low, 256)[:, None]
        yield Cells(scaled(ramp, axis["colorscale"], low, high), frame)
        yield rectangle(frame, stroke=bar["outlinecolor"], width=bar["outlinewidth"])
        font = {**layout["font"], **bar.get("tickfont", {})}
        if bar.get("tickvals") is not None:
            marks = [(v, number(v, bar.get("tickformat") or ".6g")) for v in bar["tickvals"]]
        else:
            most = min(bar.get("nticks", 5), max(2, bar["len"] / (1.6 * font["size"])))
            marks = round_numbers(low, high, most, bar)
        right = frame[2]
        for value, words in marks:
            y = bottom - (value - low) / ((high - low) or 1) * bar["len"]
            yield line((frame[2], y), (frame[2] + bar["ticklen"], y), stroke=bar["outlinecolor"])
            for text in block(words, frame[2] + bar["ticklen"] + 3, y, font["size"], font["color"],
                              valign="middle", kind="tick"):  # fmt: skip
                right = max(right, text.box[2])
                yield text
        title = bar.get("title", {})
        if title.get("text"):
            font = {**layout["font"], **title.get("font", {})}
            yield from block(title["text"], right + 3, middle, font["size"], font["color"],
                             anchor="center", valign="top", angle=90, kind="title")  # fmt: skip


def legend(
    traces: Sequence[Spec], layout: Spec, where: Where
) -> tuple[list[Item], Frame | None]:  # fmt: skip
    """The legend's entries, and the box around them."""
    named = _named(traces, layout)
    if not named or layout.get("showlegend") is False or (
        layout.get("showlegend") is None and len(named) < 2
    ):  # fmt: skip
        return [], None
    spec = layout["legend"]
    font = {**layout["font"], **spec.get("font", {})}
    widths = [text_width(trace["name"], font["size"]) + ENTRY for trace in named]
    left = where.at("paper", spec.get("x", 1.02), True)
    room = layout["width"] - 2 * left if spec["orientation"] == "h" else 0.0
    if sum(widths) <= room:
        starts = np.cumsum([0.0, *widths[:-1]])
        places = [(left + float(s), 0) for s in starts]
    else:
        across = max(1, int(room // max(widths)))
        places = [(left + (i % across) * max(widths), i // across) for i in range(len(named))]
    rows = 1 + max(row for _, row in places)
    y = where.at("paper", spec["y"], False)
    top = y - ROW * rows if spec.get("yanchor") == "bottom" else y
    items: list[Item] = []
    right = left
    for trace, (x, row) in zip(named, places, strict=True):
        middle = top + ROW * (row + 0.5)
        items += _sample(trace, x, middle)
        words = block(trace["name"], x + NAME, middle, font["size"], font["color"],
                      valign="middle", kind="legend")  # fmt: skip
        right = max([right, *(t.box[2] for t in words)])
        items += words
    return items, (left, top, right, top + ROW * rows)


def _named(traces: Sequence[Spec], layout: Spec) -> list[Spec]:
    shown = [t for t in traces if t.get("name") and t.get("showlegend") is not False
             and t["type"] != "heatmap"]  # fmt: skip
    shown.sort(key=lambda t: t.get("legendrank", 1000))
    # Stacked bars are named from the top one down, as they stand.
    stacked = layout["barmode"] == "stack" and layout["legend"].get("traceorder") is None
    return shown[::-1] if stacked else shown


def _sample(trace: Spec, x: Number, y: Number) -> Iterator[Item]:
    marker = trace.get("marker", {})
    if trace["type"] == "bar":
        box = (x + SAMPLE / 2 - 6, y - 6, x + SAMPLE / 2 + 6, y + 6)
        color = marker["color"]
        color = color if isinstance(color, str) else color[0]
        yield from hatched(box, color, marker.get("pattern", {}), trace.get("opacity", 1), box)
        return
    mode, look = trace.get("mode", "lines+markers"), trace["line"]
    opacity = trace.get("opacity", 1)
    if trace.get("fill") == "toself":
        box = (x + 2, y - 4, x + SAMPLE - 2, y + 4)
        yield rectangle(box, fill=trace["fillcolor"], opacity=opacity)
    elif "lines" in mode:
        yield Outline(np.array([[x + 2, y], [x + SAMPLE - 2, y]]), stroke=look["color"],
                      width=look.get("width", 2), dash=look.get("dash", "solid"),
                      opacity=opacity)  # fmt: skip
    if "markers" in mode:
        seen = marks_look(marker)
        seen["size"] = max(seen["size"], 4)
        yield Marks(np.array([[x + SAMPLE / 2, y]]), **seen)


def title(layout: Spec) -> list[Text]:
    """The title, at the top left."""
    spec = layout["title"]
    if not spec.get("text"):
        return []
    font, pad = {**layout["font"], **spec.get("font", {})}, spec.get("pad", {})
    # Lines stand closer than those of a paragraph, as `Canvas.finish` makes room for them.
    found: list[Text] = []
    for i, words in enumerate(spec["text"].split("<br>")):
        found += block(words, pad.get("l", 6), 5 + 15 * i, font["size"], font["color"],
                       valign="top", kind="title")  # fmt: skip
    return found


def said(layout: Spec) -> str:
    """The title in plain words."""
    words = layout["title"].get("text") or ""
    return " ".join("".join(run.words for run in runs) for runs in lines(words, ""))
