"""Find and undo attention head superposition with gated attention blocks, on TransformerLens.

The public names are gathered here and imported when first used, so that ``import gated_interp``
and the command line's ``--help`` are quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "GatedInterpError": "core.errors",
    "CheckpointError": "core.errors",
    "SkipTrigramTask": "tasks.skip_trigrams",
    "TrigramBatch": "tasks.skip_trigrams",
    "ToyConfig": "models.toy",
    "build_toy": "models.toy",
    "GatedConfig": "models.gated_attention",
    "GatedAttention": "models.gated_attention",
    "splice": "models.splice",
    "unsplice": "models.splice",
    "load": "models.checkpoint",
    "save": "models.checkpoint",
    "save_pretrained": "models.checkpoint",
    "read_info": "models.checkpoint",
    "shipped_names": "models.shipped",
    "push_to_hub": "models.hub",
    "from_hub": "models.hub",
    "TrainConfig": "training.config",
    "TrainResult": "training.loop",
    "train_toy": "training.loop",
    "train_gated": "training.loop",
    "ToyRun": "training.stacked.runs",
    "GatedRun": "training.stacked.runs",
    "train_toys": "training.stacked.runs",
    "train_gated_runs": "training.stacked.runs",
    "Verdict": "analysis.verdict",
    "verdict": "analysis.verdict",
    "ablate": "analysis.ablation",
    "ablated": "analysis.ablation",
    "subset_values": "analysis.subsets",
    "shapley": "analysis.subsets",
    "pair_interactions": "analysis.subsets",
    "logit_attribution": "analysis.attribution",
    "source_attribution": "analysis.attribution",
    "edge_loadings": "analysis.attribution",
    "activation_patch": "analysis.patching",
    "path_patch": "analysis.patching",
    "patch_effects": "analysis.patching",
    "ov_circuit": "analysis.circuits",
    "qk_circuit": "analysis.circuits",
    "gate_circuit": "analysis.circuits",
    "copying_scores": "analysis.circuits",
    "composition_scores": "analysis.circuits",
    "predict_from_circuits": "analysis.circuits",
    "faithfulness": "analysis.faithfulness",
    "loading_matrix": "analysis.superposition",
    "superposition_report": "analysis.superposition",
    "manual_model": "models.analytic",
    "paired_model": "models.analytic",
    "conditional_pair": "models.analytic",
    "prune_dead_heads": "models.pruning",
    "HeadExplorer": "explorer",
    "train_seeds": "experiments.seeds",
    "Recipe": "experiments.recipes",
    "recipe_named": "experiments.recipes",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"gated_interp.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
