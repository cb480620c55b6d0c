"""Colours as plotly writes them."""

import re
from typing import Any

import numpy as np

from gated_interp.plots.style import Number

# A cell darker than this carries white words.
DARK = 0.55
LIGHT_INK, DARK_INK = "#FFFFFF", "#222222"


def rgba(color: str) -> tuple[float, float, float, float]:
    """Red, green, blue and opacity, from 0 to 1.

    Examples:
        >>> rgba("#FF0000"), rgba("rgba(0, 255, 0, 0.5)")
        ((1.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.5))
    """
    if color == "white":
        color = "#FFFFFF"
    if color.isalpha():
        from matplotlib.colors import CSS4_COLORS

        color = CSS4_COLORS[color.lower()]
    if color.startswith("#"):
        r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return r, g, b, 1.0
    parts = [float(v) for v in re.findall(r"[\d.]+", color)]
    return parts[0] / 255, parts[1] / 255, parts[2] / 255, parts[3] if len(parts) > 3 else 1.0


def scaled(values: np.ndarray, scale: Any, low: Number, high: Number) -> np.ndarray:
    """The colours of ``values`` on ``scale``, ``[..., 4]``; where there is no value, nothing."""
    stops = np.array([float(at) for at, _ in scale])
    parts = np.array([rgba(color) for _, color in scale])
    at = np.clip((values - low) / ((high - low) or 1), 0, 1)
    found = np.stack([np.interp(at, stops, parts[:, i]) for i in range(4)], axis=-1)
    found[~np.isfinite(values)] = (1, 1, 1, 0)
    return found


def mixed(over: str, under: str, share: Number) -> str:
    """A colour of which ``share`` is ``over``, and the rest ``under``.

    Examples:
        >>> mixed("#FFFFFF", "#000000", 0.5)
        '#808080'
    """
    parts = share * np.array(rgba(over)[:3]) + (1 - share) * np.array(rgba(under)[:3])
    return "#" + "".join(f"{round(255 * float(c)):02X}" for c in parts)


def ink_on(color: np.ndarray) -> str:
    """The colour of words on ``color``: light on dark, dark on light."""
    brightness = float(np.dot(color[:3], (0.299, 0.587, 0.114)))
    return LIGHT_INK if brightness < DARK else DARK_INK
