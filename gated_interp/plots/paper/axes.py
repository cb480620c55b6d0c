"""The lines, ticks and words around a panel."""

import itertools
from collections.abc import Iterator

from gated_interp.plots.fonts import text_width
from gated_interp.plots.paper.items import Frame, Item, Text, line
from gated_interp.plots.paper.scales import Scale
from gated_interp.plots.paper.spec import Spec
from gated_interp.plots.paper.words import block
from gated_interp.plots.style import Number

# Px between a tick and its label, and between two labels.
BESIDE, APART = 3.0, 3.0


def behind(x: Scale, y: Scale, frame: Frame) -> Iterator[Item]:
    """Grid and zero lines, which data covers."""
    for scale, (low, high) in ((x, (frame[1], frame[3])), (y, (frame[0], frame[2]))):
        spec, across = scale.spec, scale is x
        if spec.get("visible") is False:
            continue
        ends = [(at, spec["gridcolor"], 1.0) for at, _ in scale.ticks() if spec.get("showgrid")]
        zero = float(scale.place(0.0)) if scale.kind == "linear" else float("nan")
        if spec.get("zeroline") and scale.inside(zero):
            ends.append((zero, spec["zerolinecolor"], spec["zerolinewidth"]))
        for at, color, width in ends:
            points = ((at, low), (at, high)) if across else ((low, at), (high, at))
            yield line(*points, stroke=color, width=width)


def around(x: Scale, y: Scale, frame: Frame) -> Iterator[Item]:
    """The lines of both axes, their ticks, labels and titles."""
    left, top, right, bottom = frame
    for scale in (x, y):
        spec, across = scale.spec, scale is x
        if spec.get("visible") is False:
            continue
        out = spec["ticklen"] if spec.get("ticks") == "outside" else 0
        places = scale.ticks()
        for at, _ in places if out else ():
            points = (
                ((at, bottom), (at, bottom + out)) if across else ((left, at), (left - out, at))
            )
            yield line(*points, stroke=spec.get("tickcolor", spec["linecolor"]), width=1)
        look = {"stroke": spec["linecolor"], "width": spec["linewidth"]}
        if spec.get("showline"):
            near = ((left, bottom), (right, bottom)) if across else ((left, top), (left, bottom))
            far = ((left, top), (right, top)) if across else ((right, top), (right, bottom))
            yield line(*near, **look)
            if spec.get("mirror"):
                yield line(*far, **look)
        labels: list[Text] = []
        if spec.get("showticklabels", True):
            labels = list(_labels(scale, across, places, left - out, bottom + out))
            yield from labels
        title = spec["title"]
        if title.get("text"):
            yield from _title(spec, across, labels, frame, out)


def _labels(
    scale: Scale, across: bool, places: list[tuple[Number, str]], left: Number, bottom: Number
) -> Iterator[Text]:
    spec = scale.spec
    size, color = spec["tickfont"]["size"], spec["tickfont"]["color"]
    if not across:
        for at, words in places:
            yield from block(words, left - BESIDE, at, size, color, anchor="right",
                             valign="middle", kind="tick")  # fmt: skip
        return
    angle = spec.get("tickangle")
    pitch = min((abs(b - a) for (a, _), (b, _) in itertools.pairwise(places)),
                default=float("inf"))  # fmt: skip
    if angle is None and scale.kind == "category":
        places = [(at, broken(words, pitch - APART, size)) for at, words in places]
    for at, words in places:
        if angle in (None, 0):
            yield from block(words, at, bottom + 2, size, color, anchor="center", valign="top",
                             kind="tick")  # fmt: skip
        else:
            yield from block(words, at, bottom + BESIDE, size, color, anchor="right",
                             valign="middle", angle=90, kind="tick")  # fmt: skip


def broken(words: str, pixels: Number, size: Number) -> str:
    """``words`` on as many lines as it takes to stay within ``pixels``.

    Examples:
        >>> broken("opened at random", 40, 9.5)
        'opened<br>at<br>random'
    """
    rows = [""]
    for word in words.split(" "):
        longer = f"{rows[-1]} {word}".strip()
        if rows[-1] and text_width(longer, size) > pixels:
            rows.append(word)
        else:
            rows[-1] = longer
    return "<br>".join(rows)


def _title(
    spec: Spec, across: bool, labels: list[Text], frame: Frame, out: Number
) -> Iterator[Text]:
    title = spec["title"]
    size, color = title["font"]["size"], title["font"]["color"]
    if across:
        edge = max([t.box[3] for t in labels], default=frame[3] + out)
        at, y = (frame[0] + frame[2]) / 2, edge + title["standoff"] - 0.15 * size
        yield from block(title["text"], at, y, size, color, anchor="center", valign="top",
                         kind="title")  # fmt: skip
        return
    edge = min([t.box[0] for t in labels], default=frame[0] - out)
    yield from block(title["text"], edge - title["standoff"], (frame[1] + frame[3]) / 2, size,
                     color, anchor="center", valign="bottom", angle=90, kind="title")  # fmt: skip
