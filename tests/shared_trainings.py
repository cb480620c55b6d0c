"""Trainings that processes share: run by a launcher, and by the tests in one process.

``python -m torch.distributed.run --nproc_per_node 2 tests/shared_trainings.py FOLDER`` writes the
histories and the final weights of each process to FOLDER.
"""

import json
import sys
from pathlib import Path

import torch

from gated_interp.core.files import write_text
from gated_interp.core.launch import rank
from gated_interp.core.seeds import generator
from gated_interp.models.language_model import LanguageModelConfig, build_language_model
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import TrainResult, train_gated, train_model

SHAPE = LanguageModelConfig(d_vocab=37, n_ctx=9, n_layers=2, d_model=12, n_heads=3, seed=3)
HOW = {"batch_size": 8, "log_every": 1, "evaluate_every": 10, "n_held_out": 7, "device": "cpu"}


def bigrams(n: int, source: torch.Generator) -> torch.Tensor:
    """Tokens of which each says much of the next."""
    table = torch.randint(37, (37, 3), generator=generator(0))
    tokens = torch.randint(37, (n, 9), generator=source)
    choice = torch.randint(3, (n, 9), generator=source)
    for at in range(1, 9):
        tokens[:, at] = table[tokens[:, at - 1], choice[:, at]]
    return tokens


def language(dtype: torch.dtype, **changes) -> TrainResult:
    """A tiny language model."""
    config = TrainConfig.language(steps=50, seed=1, **{**HOW, **changes})
    model = build_language_model(SHAPE).to(dtype)
    return train_model(model, config, data=bigrams, progress=False)


def gated(dtype: torch.dtype, **changes) -> TrainResult:
    """A tiny gated block with every penalty, on the second layer of a language model."""
    with_penalties = {"alpha_unit": "variance", "overlap": 0.3, "fvu_target": 0.2, "lr": 0.002}
    config = TrainConfig.plain(steps=50, seed=2, **{**HOW, **with_penalties, **changes})
    model = build_language_model(SHAPE).to(dtype)
    block = GatedAttention.from_attention(
        model.blocks[1].attn, 2, init="duplicate", d_gate=2, seed=4
    ).to(dtype)
    return train_gated(model, block, config, layer=1, data=bigrams, progress=False)


CASES = {
    "language model": lambda: language(torch.float64),
    "language model, float32": lambda: language(torch.float32),
    "language model, two parts, a fixed set": lambda: language(
        torch.float64, accumulate=2, batch_size=4, data="fixed", n_sequences=16
    ),
    "gated block": lambda: gated(torch.float64),
    "gated block, float32": lambda: gated(torch.float32),
    "gated block, two parts": lambda: gated(torch.float64, accumulate=2, batch_size=4),
}


def told(result: TrainResult) -> dict[str, list[float]]:
    """The history by column, and the final weights in one list."""
    weights = [p.detach().flatten().double() for p in result.model.parameters()]
    return {**result.history.to_dict("list"), "weights": torch.cat(weights).tolist()}


def main(folder: Path) -> None:
    """All cases."""
    found = {name: told(case()) for name, case in CASES.items()}
    write_text(folder / f"{rank()}.json", json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
