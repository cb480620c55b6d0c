"""Arrays and labels in, plotly figures out; and from figures to files.

Every figure takes ``title``, which stands above it, and ``columns``, the paper columns (1 or 2)
that it spans.

Nothing here computes a metric, shows a figure or holds a model: each function that draws returns a
``plotly.graph_objects.Figure`` (``attention_view`` an :class:`AttentionView`), which a notebook
shows and :func:`save_figure` writes.

Examples:
    >>> import gated_interp as gi
    >>> figure = gi.plots.loading_matrix({"toy": [[1.0, 0.0]]}, ["B1"], {"toy": ["L0H0", "L0H1"]})
    >>> type(figure).__name__
    'Figure'
"""

from gated_interp.plots.ablation import ablation_bars, shapley_and_interactions
from gated_interp.plots.attention_views import AttentionView, attention_view
from gated_interp.plots.attribution import attribution_scores
from gated_interp.plots.copying import copying_controls, copying_shares
from gated_interp.plots.edges import qk_attribution
from gated_interp.plots.frontier import frontier, frontier_point, held_frontier
from gated_interp.plots.heatmaps import (
    attention_patterns,
    circuit_maps,
    gate_maps,
    loading_matrix,
)
from gated_interp.plots.holdings import Holdings
from gated_interp.plots.ladder import adversary_ladder
from gated_interp.plots.overview import head_overview
from gated_interp.plots.reliability import reliability
from gated_interp.plots.roles import head_roles_figure
from gated_interp.plots.save import save_figure, save_figures
from gated_interp.plots.style import TEMPLATE, WIDTHS
from gated_interp.plots.sweeps import phase_diagram, sweep_curves
from gated_interp.plots.text import head_effects
from gated_interp.plots.training import loss_curves
from gated_interp.plots.verdicts import before_after
from gated_interp.plots.wiring import wiring_diagram

__all__ = [
    "TEMPLATE",
    "WIDTHS",
    "AttentionView",
    "Holdings",
    "ablation_bars",
    "adversary_ladder",
    "attention_patterns",
    "attention_view",
    "attribution_scores",
    "before_after",
    "circuit_maps",
    "copying_controls",
    "copying_shares",
    "frontier",
    "frontier_point",
    "gate_maps",
    "head_effects",
    "head_overview",
    "head_roles_figure",
    "held_frontier",
    "loading_matrix",
    "loss_curves",
    "phase_diagram",
    "qk_attribution",
    "reliability",
    "save_figure",
    "save_figures",
    "shapley_and_interactions",
    "sweep_curves",
    "wiring_diagram",
]
