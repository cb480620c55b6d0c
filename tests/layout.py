"""Whether a drawn figure can be read: the boxes of its texts, on paper and in a browser.

``measure`` and, in a browser, ``MEASURE`` and ``measure_svg`` return boxes; ``faults`` says what is
wrong with them, one sentence each.
"""

from typing import Any

from gated_interp.plots.paper import Drawing

# Of a text: its words, kind (the class plotly gives it) and box. Of a panel: the box of its data
# area. Of a legend: the box outside which plotly clips it.
MEASURE = """(root) => {
  const svgs = [...root.querySelectorAll("svg.main-svg, svg")].filter((s) => s.isConnected);
  const frame = svgs[0].getBoundingClientRect();
  const [x0, y0] = [frame.left, frame.top];
  const box = (r) => [r.left - x0, r.top - y0, r.right - x0, r.bottom - y0];
  const texts = [];
  for (const t of root.querySelectorAll("svg text, svg g.text")) {
    const said = (t.getAttribute("aria-label") || t.textContent).replace(/\\u200b/g, "").trim();
    const r = t.getBoundingClientRect();
    const hidden = t.closest(".hoverlayer, .infolayer .modebar, defs")
      || getComputedStyle(t).opacity === "0" || getComputedStyle(t).visibility === "hidden";
    if (!said || hidden || !r.width) continue;
    const b = box(r);
    if (t.tagName === "text") { // the em box: a fifth above and below holds no ink
      const spare = 0.2 * Math.min(parseFloat(getComputedStyle(t).fontSize), r.width, r.height);
      if (r.height > r.width && said.length > 2) { b[0] += spare; b[2] -= spare; }
      else { b[1] += spare; b[3] -= spare; }
    }
    const holder = t.closest("[class]:not(.text):not(text)");
    const kind = `${t.getAttribute("class") || ""} ${holder ? holder.getAttribute("class") : ""}`;
    texts.push({said, kind, box: b});
  }
  const panels = [...root.querySelectorAll("clipPath.plotclip")].map((clip) => {
    const rect = root.querySelector(`[id="${clip.id.replace(/plot$/, "")}"] rect`);
    const [x, y, w, h] = ["x", "y", "width", "height"].map((k) => Number(rect.getAttribute(k)));
    return [x, y, x + w, y + h];
  });
  const legends = [...root.querySelectorAll("g.legend rect.bg")]
    .map((r) => box(r.getBoundingClientRect()));
  return {size: [frame.width, frame.height], texts, panels, legends};
}"""

Box = list[float]


def measure(drawing: Drawing) -> dict[str, Any]:
    """The boxes of a figure as it is drawn on paper."""
    texts = [
        {"said": t.words, "kind": t.kind, "box": list(t.box), "turned": t.angle % 180 != 0}
        for t in drawing.texts
    ]
    return {
        "size": [drawing.width, drawing.height],
        "texts": texts,
        "panels": [list(panel) for panel in drawing.panels],
        "legends": [list(drawing.legend)] if drawing.legend else [],
    }


def measure_svg(page: Any, svg: bytes) -> dict[str, Any]:
    """The boxes of an SVG, shown alone on an empty page of a browser."""
    page.set_content(f"<!DOCTYPE html><body style='margin: 0'>{svg.decode('utf-8')}</body>")
    return page.evaluate(f"() => ({MEASURE})(document.body)")


def faults(seen: dict[str, Any], slack: float = 1.0) -> list[str]:
    """What is wrong with the layout: a sentence each, none where all is well.

    Args:
        seen: of :func:`measure` or :func:`measure_svg`.
        slack: px that texts may reach over an edge, as round letters do.
    """
    found = []
    texts, panels = seen["texts"], seen["panels"]
    width, height = seen["size"]
    for text in texts:
        said, box = text["said"], text["box"]
        if not _inside(box, [0, 0, width, height], 0.0):
            found.append(f"{said!r} leaves the figure")
        if "legend" in text["kind"] and not any(_inside(box, r, slack) for r in seen["legends"]):
            found.append(f"{said!r} is cut by its legend")
        for panel in panels:
            crosses = _overlap(box, panel, slack) and not _inside(box, panel, slack)
            if crosses or (_overlap(box, panel, slack) and _belongs_outside(text["kind"])):
                found.append(f"{said!r} ({text['kind'].strip()}) crosses the edge of a panel")
    for i, one in enumerate(texts):
        for other in texts[i + 1 :]:
            # Side by side, two words need a gap to be two words; lines need less between them.
            left, top, right, bottom = one["box"]
            turned = one.get("turned", bottom - top > right - left)
            across, down = (0, 1) if turned else (1, 0)
            wider = [left - across, top - down, right + across, bottom + down]
            if _overlap(wider, other["box"], 0.3):
                found.append(f"{one['said']!r} touches {other['said']!r}")
    for legend in seen["legends"]:
        if any(_overlap(legend, panel, slack) for panel in panels):
            found.append("the legend lies over data")
    return found


def unnamed(fig: dict[str, Any]) -> list[str]:
    """Axes of a figure (as a dictionary) that name only some of their categories."""
    axes = {k: v for k, v in fig["layout"].items() if k.startswith(("xaxis", "yaxis"))}
    return [
        f"{key} names {len(axis['tickvals'])} of {len(axis['labelalias'])}"
        for key, axis in axes.items()
        if "labelalias" in axis
        and axis.get("showticklabels", True)
        and len(axis["tickvals"]) < len(axis["labelalias"])
    ]


def _belongs_outside(kind: str) -> bool:
    return any(word in kind for word in ("tick", "title", "legend"))


def _inside(box: Box, other: Box, slack: float) -> bool:
    return (
        box[0] >= other[0] - slack
        and box[1] >= other[1] - slack
        and box[2] <= other[2] + slack
        and box[3] <= other[3] + slack
    )


def _overlap(box: Box, other: Box, slack: float) -> bool:
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    return across > slack and down > slack
