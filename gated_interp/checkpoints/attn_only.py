"""TransformerLens' own attention-only models: by name from the hub, or from a folder.

Their weights are PyTorch files, which are read with ``weights_only``: tensors come out of them and
nothing else is made or run.
"""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.metadata import require_limits
from gated_interp.models.kinds import LANGUAGE_MODEL
from gated_interp.models.language_model import (
    LanguageModelConfig,
    LanguageTransformer,
    build_language_model,
    folded,
    give_text,
)
from gated_interp.tasks.text import TextTask
from gated_interp.tasks.tokenizers import tokenizer_text

REPOSITORIES = {f"attn-only-{n}l": f"NeelNanda/Attn_Only_{n}L512W_C4_Code" for n in range(1, 5)}
TOKENIZER_REPOSITORY = "NeelNanda/gpt-neox-tokenizer-digits"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "final.pth", "tokenizer.json"


def is_attn_only(folder: Path) -> bool:
    """Whether ``folder`` looks like a download of such a model."""
    # A name too long for a path is no folder, and for located to refuse.
    return os.path.isfile(folder / CONFIG) and any(folder.glob(f"*{WEIGHTS}"))


def from_name(name: str) -> LanguageTransformer:
    """One of :data:`REPOSITORIES`, downloaded or taken from the local cache."""
    from gated_interp.core.hub import explained, hub_library

    hub, repo, wanted = hub_library(), REPOSITORIES[name], CONFIG
    try:
        config = hub.hf_hub_download(repo, CONFIG)
        wanted = f"*{WEIGHTS}"
        weights = next(f for f in hub.list_repo_files(repo) if f.endswith(WEIGHTS))
        weights = hub.hf_hub_download(repo, weights)
        repo, wanted = TOKENIZER_REPOSITORY, TOKENIZER
        tokenizer = hub.hf_hub_download(repo, TOKENIZER)
    except Exception as error:
        raise explained(error, repo, wanted, None) from error
    model = _read(Path(config), Path(weights), Path(tokenizer))
    model.model_name = name
    return model


def from_folder(folder: Path) -> LanguageTransformer:
    """The model in a download of one of :data:`REPOSITORIES`, with its ``tokenizer.json``."""
    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(
            "tokenizer-file-missing", folder=folder, file=TOKENIZER, repo=TOKENIZER_REPOSITORY
        )
    model = _read(
        folder / CONFIG, next(iter(sorted(folder.glob(f"*{WEIGHTS}")))), folder / TOKENIZER
    )
    model.model_name = folder.resolve().name
    return model


def _read(config_path: Path, weights_path: Path, tokenizer_path: Path) -> LanguageTransformer:
    try:
        said = json.loads(config_path.read_text(encoding="utf-8"))
        norm = said["normalization" if "normalization" in said else "normalization_type"]
        if not said["attn_only"]:
            raise CheckpointError("model-with-mlps", path=config_path)
        config = LanguageModelConfig(
            **{name: said[name] for name in ("d_vocab", "n_ctx", "n_layers", "d_model")},
            n_heads=said["n_heads"],
            d_head=said["d_head"],
            normalization="none" if norm is None else norm,
            positions="shortformer" if said.get("shortformer_pos") else "standard",
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, GatedInterpError):
            raise
        raise CheckpointError("not-attention-only-config", path=config_path) from error
    try:
        state = torch.load(weights_path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError("weights-damaged", path=weights_path) from error
    require_limits(config)
    _require_shapes(state, config, weights_path)
    model = build_language_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state:  # else a bias, which is zero
                parameter.copy_(state[name])
    task = TextTask.stored([], config.n_ctx, tokenizer_text(tokenizer_path), "")
    give_text(model, task)
    return folded(model)


def _require_shapes(state: Any, config: LanguageModelConfig, path: Path) -> None:
    """Before a model is made, which takes the memory that the config says, not that of the file."""
    for name, shape in LANGUAGE_MODEL.shapes(config).items():
        value = state.get(name) if isinstance(state, dict) else None
        if value is None and name.rpartition(".")[2].startswith("b_"):
            continue
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
            raise CheckpointError("weights-lack-a-tensor", path=path, name=name, shape=list(shape))
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise CheckpointError("weights-cut-short", path=path, name=name)
        if not bool(value.isfinite().all()):
            raise CheckpointError("weights-not-finite", path=path, name=name)
