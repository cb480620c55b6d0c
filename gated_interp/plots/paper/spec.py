"""What a figure's JSON says, once its template is applied and everything in it is known."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from gated_interp.core.errors import GatedInterpError

Spec = dict[str, Any]
_FONT = {"font": {"size": 0, "color": 0, "family": 0}}
_LINE = {"color": 0, "width": 0, "dash": 0}
_ERRORS = dict.fromkeys(
    ["type", "symmetric", "thickness", "width", "color", "array", "arrayminus"], 0
)
_SEEN = dict.fromkeys(["type", "name", "xaxis", "yaxis", "x", "y", "showlegend", "legendgroup",
                       "legendrank", "opacity"], 0)  # fmt: skip
# These concern the mouse, or nothing that can be seen.
_UNSEEN = dict.fromkeys(["hovertemplate", "hoverinfo", "hoverongaps", "customdata", "uid", "meta",
                         "hovertext"], 0)  # fmt: skip
_EACH = _SEEN | _UNSEEN
# Plotly's signs, as matplotlib calls them, and how much larger than a circle they are drawn there.
SYMBOLS: dict[str, tuple[str, float]] = {
    "circle": ("o", 1.0), "square": ("s", 1.0), "diamond": ("D", 0.92),
    "triangle-up": ("^", 1.1), "triangle-left": ("<", 1.1), "cross": ("P", 1.1), "x": ("X", 1.1),
    "star": ("*", 1.5), "hexagon": ("h", 1.15), "cross-thin": ("+", 1.4), "x-thin": ("x", 1.1),
    "line-ew": ("_", 1.4),
}  # fmt: skip
_MARKER = {"color": 0, "line": _LINE, "size": 0, "symbol": 0, "opacity": 0}
_PATTERN = dict.fromkeys(
    ["shape", "fgcolor", "bgcolor", "size", "solidity", "fillmode", "fgopacity"], 0
)
_TEXT = {"text": 0, **_FONT}
_AXIS: Spec = {
    **dict.fromkeys(
        ["anchor", "automargin", "categoryarray", "categoryorder", "domain", "gridcolor",
         "labelalias", "linecolor", "linewidth", "matches", "mirror", "nticks", "range",
         "rangemode", "showgrid", "showline", "showticklabels", "tickangle", "tickcolor",
         "tickformat", "ticklen", "tickmode", "ticks", "ticktext", "tickvals", "type", "visible",
         "zeroline", "zerolinecolor", "zerolinewidth", "exponentformat"], 0),
    "tickfont": _FONT["font"],
    "title": {**_TEXT, "standoff": 0},
}  # fmt: skip
_BAR: Spec = {
    **dict.fromkeys(
        ["thickness", "len", "lenmode", "x", "y", "xanchor", "yanchor", "xpad", "ypad", "ticks",
         "ticklen", "exponentformat", "outlinewidth", "outlinecolor", "tickvals", "nticks",
         "tickformat"], 0),
    "tickfont": _FONT["font"],
    "title": {**_TEXT, "side": 0},
}  # fmt: skip
TRACES: dict[str, Spec] = {
    "bar": {**_EACH, **dict.fromkeys(["base", "width", "orientation"], 0),
            "marker": {**_MARKER, "pattern": _PATTERN}, "error_y": _ERRORS},
    "scatter": {**_EACH, **dict.fromkeys(["mode", "text", "cliponaxis", "fill", "fillcolor"], 0),
                "line": _LINE, "marker": _MARKER, "error_x": _ERRORS, "error_y": _ERRORS},
    "heatmap": {**_EACH, **dict.fromkeys(["z", "text", "coloraxis", "xgap", "ygap",
                                          "texttemplate"], 0), "textfont": _FONT["font"]},
}  # fmt: skip
LAYOUT: Spec = {
    **dict.fromkeys(["width", "height", "showlegend", "barmode", "bargap", "bargroupgap",
                     "plot_bgcolor", "paper_bgcolor"], 0),
    **_FONT,
    "margin": dict.fromkeys("lrtb", 0),
    "title": {**_TEXT, **dict.fromkeys(["x", "y", "xref", "yref", "xanchor", "yanchor"], 0),
              "pad": dict.fromkeys("lrtb", 0)},
    "legend": {**dict.fromkeys(["orientation", "x", "y", "xanchor", "yanchor", "tracegroupgap",
                                "traceorder", "bgcolor"], 0), **_FONT},
    "annotations": {**dict.fromkeys(["text", "x", "y", "xref", "yref", "xanchor", "yanchor",
                                     "align", "showarrow", "borderpad", "bgcolor"], 0), **_FONT},
    "shapes": {**dict.fromkeys(["type", "x0", "x1", "y0", "y1", "xref", "yref", "layer",
                                "fillcolor"], 0), "line": _LINE},
    "coloraxis": {**dict.fromkeys(["colorscale", "cmin", "cmax"], 0), "colorbar": _BAR},
    "xaxis": _AXIS, "yaxis": _AXIS,
}  # fmt: skip
# Plotly's own defaults, where no template says otherwise.
BASE: Spec = {
    "width": 700, "height": 450, "paper_bgcolor": "white", "plot_bgcolor": "white",
    "font": {"size": 12.0, "color": "#444444"}, "margin": {"l": 80, "r": 80, "t": 100, "b": 80},
    "title": {"pad": {}}, "legend": {"orientation": "v", "x": 1.02, "y": 1.0, "yanchor": "top"},
    "barmode": "group", "bargroupgap": 0,
}  # fmt: skip
AXIS: Spec = {"domain": [0, 1], "ticks": "", "ticklen": 5, "linewidth": 1, "linecolor": "#444444",
              "gridcolor": "#EEEEEE", "zerolinecolor": "#444444", "zerolinewidth": 1,
              "title": {"standoff": 8}}  # fmt: skip


def read(fig: Mapping[str, Any]) -> tuple[Spec, dict[str, Spec], list[Spec]]:
    """The layout of a figure, its axes by the names traces call them (``y2``), and its traces.

    Raises:
        GatedInterpError: something in it that is not drawn on paper.
    """
    given = dict(fig["layout"])
    template = given.pop("template", {})
    looks = template.get("layout", {})
    for name, value in given.items():
        kind = name.rstrip("0123456789")
        for part in value if isinstance(value, list | tuple) else [value]:
            _known(kind, LAYOUT.get(kind), part)
    layout = merged(BASE, merged(looks, given))
    traces = [_trace(trace, template.get("data", {})) for trace in fig["data"]]
    used = {trace[key] for trace in traces for key in ("xaxis", "yaxis")}
    used |= {key.replace("axis", "") for key in given if key[1:].startswith("axis")}
    axes = {
        name: merged(
            merged(AXIS, looks.get(f"{name[0]}axis", {})), given.get(f"{name[0]}axis{name[1:]}", {})
        )
        for name in sorted(used)
    }
    # Those in use alone: a template may have others, which say little.
    scales = {trace["coloraxis"] for trace in traces if trace["type"] == "heatmap"}
    for name in [key for key in layout if key.startswith("coloraxis") and key not in scales]:
        del layout[name]
    for name in scales:
        missing = {"colorscale", "cmin", "cmax", "colorbar"} - set(layout.get(name, {}))
        if missing:
            what = f"a colour axis without {min(missing)}"
            raise GatedInterpError("figure-not-on-paper", what=what)
    if any(note.get("showarrow", True) for note in layout.get("annotations", ())):
        raise GatedInterpError("figure-not-on-paper", what="an annotation with an arrow")
    return layout, axes, traces


def _trace(given: Mapping[str, Any], looks: Mapping[str, Any]) -> Spec:
    kind = given.get("type", "scatter")
    _known(f"a trace of type {kind}", TRACES.get(kind), given)
    if kind == "heatmap" and "coloraxis" not in given:
        raise GatedInterpError("figure-not-on-paper", what="a heat map without a colour axis")
    varied = [k for k in ("color", "size", "symbol", "opacity") if kind == "scatter"
              and not isinstance(given.get("marker", {}).get(k, 0), str | int | float)]  # fmt: skip
    if varied:
        raise GatedInterpError("figure-not-on-paper", what=f"marks that differ in {varied[0]}")
    symbol = str(given.get("marker", {}).get("symbol", "circle")).removesuffix("-open")
    if kind == "scatter" and symbol not in SYMBOLS:
        raise GatedInterpError("figure-not-on-paper", what=f"a mark of shape {symbol}")
    values = {key: _values(value) for key, value in given.items()}
    kept = {k: v for k, v in (looks.get(kind) or [{}])[0].items() if k in TRACES[kind]}
    trace = merged(kept, {"type": kind, "xaxis": "x", "yaxis": "y", **values})
    for key in ("error_x", "error_y"):
        error = trace.pop(key, {})
        if "array" in error:
            plain = {"arrayminus": error["array"], "thickness": 2, "color": "#444444"}
            trace[key] = plain | error
    return trace


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Spec:
    """``over``, and of ``under`` what ``over`` does not say."""
    found = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def _known(name: str, known: Spec | int | None, given: Any) -> None:
    if known is None:
        raise GatedInterpError("figure-not-on-paper", what=name)
    if isinstance(known, dict) and isinstance(given, Mapping) and "bdata" not in given:
        for key, value in given.items():
            _known(f"{name}, {key}" if key in known else f"{key} of {name}", known.get(key), value)


def _values(given: Any) -> Any:
    """Numbers that plotly has packed, unpacked."""
    if not isinstance(given, Mapping):
        return given
    if "bdata" not in given:
        return {key: _values(value) for key, value in given.items()}
    flat = np.frombuffer(base64.b64decode(given["bdata"]), dtype=given["dtype"])
    shape = given.get("shape")
    return flat.reshape([int(n) for n in str(shape).split(",")]) if shape else flat
