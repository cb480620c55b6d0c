"""Do gates that see positions pay? Blocks with and without, in a small rotary model.

    python tests/gates_and_positions.py

trains a model of two layers of attention on repeated random tokens, replaces the attention of each
layer by gated blocks over three seeds, with ``gate_rotary`` 0 and 4 of 8 dimensions, and writes
``figures/gates-and-positions.csv`` (some two minutes on one core). With numbers of layers behind
it, only their rows are measured anew.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from transformer_lens import HookedTransformerConfig

import gated_interp as gi
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer, attention_only, draw_weights

OUT = Path(__file__).parents[1] / "figures" / "gates-and-positions.csv"
TASK = gi.tasks.RepeatedTokensTask(n_tokens=24, shortest=4, longest=10, n_positions=24)
SEEDS, ROTATED, STEPS = range(3), (0, 4), 300


def drawn(n: int, source: torch.Generator) -> torch.Tensor:
    """Sequences of the task."""
    return TASK.sample(n, source).tokens


def trained_model() -> HookedTransformer:
    """Two layers of four rotary heads, which learn to copy what came after the same token."""
    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_heads=4, d_head=8, n_ctx=TASK.n_positions, device="cpu",
        d_vocab=TASK.d_vocab, attn_only=True, normalization_type="LNPre", act_fn="relu",
        positional_embedding_type="rotary", rotary_dim=8, rotary_base=100,
    )  # fmt: skip
    model = attention_only(config)
    draw_weights(model, seed=0)
    how = gi.TrainConfig.toy(steps=1000, batch_size=64, lr=3e-3, data="fresh", seed=0)
    gi.train_model(model, how, data=drawn, progress=False)
    return model.eval()


def main(layers: Sequence[int]) -> None:
    """Train and measure, on sequences of their own."""
    model = trained_model()
    tokens = drawn(256, generator(10**6))
    copied = torch.arange(TASK.n_positions - 1) > TASK.longest  # every token has come before
    loss = model(tokens, return_type="loss", loss_per_token=True)[:, copied].mean()
    print(f"loss on copied tokens: {loss.item():.3f} nats")
    for layer, seed, rotated in itertools.product(layers, SEEDS, ROTATED):
        how = {"d_gate": 8, "gate_rotary": rotated, "width": 1, "downstream": 0.0}
        how |= {"steps": STEPS, "batch_size": 24, "fvu": 0.05, "seed": seed, "progress": False}
        block = gi.fit_gated(model, layer, drawn, **how).model
        said = gi.faithfulness(gi.splice(model, layer, block), tokens).measures()
        row = {"layer": layer, "seed": seed, "gate_rotary": rotated}
        row |= {name: round(float(said[name][0]), 4) for name in ("fvu", "l0", "kl")}
        print(row, flush=True)
        rows = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=[*row])
        same = (rows[[*row][:3]] == [*row.values()][:3]).all(axis=1)
        rows = pd.concat([rows[~same], pd.DataFrame([row])]).sort_values([*row][:3])
        rows.to_csv(OUT, index=False, lineterminator="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main([int(i) for i in sys.argv[1:]] or [0, 1])
