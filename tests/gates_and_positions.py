"""Do gates that see positions pay? Blocks with and without, in a small rotary model.

    python tests/gates_and_positions.py

trains a model of two layers of attention on repeated random tokens, replaces the attention of each
layer by gated blocks over three seeds, with ``gate_rotary`` 0 and 4 of 8 dimensions, and writes
``figures/gates-and-positions.csv`` (some ten minutes on one core).
"""

from pathlib import Path

import pandas as pd
import torch
from transformer_lens import HookedTransformerConfig

import gated_interp as gi
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer, attention_only, draw_weights

OUT = Path(__file__).parents[1] / "figures" / "gates-and-positions.csv"
TASK = gi.tasks.RepeatedTokensTask(n_tokens=32, shortest=4, longest=16, n_positions=32)
SEEDS, ROTATED, STEPS = range(3), (0, 4), 500


def drawn(n: int, source: torch.Generator) -> torch.Tensor:
    """Sequences of the task."""
    return TASK.sample(n, source).tokens


def trained_model() -> HookedTransformer:
    """Two layers of four rotary heads, which learn to copy what came after the same token."""
    config = HookedTransformerConfig(
        n_layers=2, d_model=64, n_heads=4, d_head=16, n_ctx=TASK.n_positions, device="cpu",
        d_vocab=TASK.d_vocab, attn_only=True, normalization_type="LNPre", act_fn="relu",
        positional_embedding_type="rotary", rotary_dim=16, rotary_base=100,
    )  # fmt: skip
    model = attention_only(config)
    draw_weights(model, seed=0)
    how = gi.TrainConfig.toy(steps=1500, batch_size=64, lr=2e-3, data="fresh", seed=0)
    gi.train_model(model, how, data=drawn, progress=False)
    return model.eval()


def main() -> None:
    """Train and measure, on sequences of their own."""
    model = trained_model()
    tokens = drawn(256, generator(10**6))
    copied = torch.arange(TASK.n_positions - 1) > TASK.longest  # every token has come before
    loss = model(tokens, return_type="loss", loss_per_token=True)[:, copied].mean()
    print(f"loss on copied tokens: {float(loss):.3f} nats")
    rows = []
    for layer in range(2):
        for rotated in ROTATED:
            for seed in SEEDS:
                how = {"d_gate": 8, "gate_rotary": rotated, "steps": STEPS, "seed": seed}
                found = gi.fit_gated(model, layer, drawn, **how, progress=False)
                spliced = gi.splice(model, layer, found.model)
                seen = gi.loss_recovered(spliced, tokens)
                said = gi.faithfulness(spliced, tokens).measures()
                row = {"layer": layer, "gate_rotary": rotated, "seed": seed}
                row |= {n: round(float(said[n][0]), 4) for n in ("fvu", "l0", "kl") if n in said}
                row["ce_recovered_zero"] = round(float(seen["ce_recovered_zero"]), 4)
                rows.append(row | {"heads": found.model.config.n_heads})
                print(row, flush=True)
                pd.DataFrame(rows).to_csv(OUT, index=False, lineterminator="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
