"""Ship the blocks of a decomposition of austen-2l, and measure what ships.

``ship_gated.py FOLDER FOLDER`` takes a folder of ``gated-interp decompose austen-2l`` for each
layer. The block whose FVU is the median of its layer's seeds is shipped (of one seed, that one).
Writes
``austen-2l-gated`` where the package looks, and its measures to ``figures/austen-2l-gated.csv``.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ship import SHIPPED, rounded

import gated_interp as gi
from gated_interp.analysis.block_measures import block_measures
from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.experiments.decompose import SEQUENCES, held_out
from gated_interp.metrics.predictions import next_token_loss
from gated_interp.models.toy import HookedTransformer

ORIGINAL, NAME = "austen-2l", "austen-2l-gated"
CSV = Path(__file__).parents[1] / "figures" / f"{NAME}.csv"
# More than of a model's weights (see ship.py): as many bits are left as bfloat16 has. It changes a
# weight by at most 0.4%, a block's error in the fifth digit, and keeps the wheel under 8 MB.
DROPPED = 16
REPEATS, SEED, FIRST_COPY = 40, 11, 26


@torch.no_grad()
def together(folders: list[Path]) -> HookedTransformer:
    """The shipped model with the median block of each layer; one folder for each layer."""
    model, chosen = load(ORIGINAL), {}
    for layer, folder in zip(range(model.cfg.n_layers), folders, strict=True):
        runs = pd.read_csv(folder / "runs.csv")
        of_layer = runs[runs["layer"] == layer].sort_values("fvu")
        seed = int(of_layer.iloc[(len(of_layer) - 1) // 2]["seed"])
        found = load(folder / f"L{layer}-seed{seed}.safetensors")
        for weight in (block := found.blocks[layer].attn).parameters():
            weight.data = rounded(weight.data, DROPPED)
        model = gi.splice(model, layer, block)
        chosen[str(layer)] = {"seed": seed, "of_seeds": len(of_layer), **found.notes}
    model.notes = {"original": ORIGINAL, "chosen": "median FVU of its layer's seeds", **chosen}
    return model


@torch.no_grad()
def measured(model: HookedTransformer) -> pd.DataFrame:
    """A row for each layer, with its block alone in the model, and one for both blocks."""
    original = gi.unsplice(model)
    text = held_out(original, original.task, "test", SEQUENCES)
    repeats = gi.text.repeated_random_tokens(original, REPEATS, seed=SEED)
    copies = torch.zeros_like(repeats, dtype=torch.bool)
    copies[:, FIRST_COPY:] = True

    def on_repeats(one: HookedTransformer) -> float:
        losses = next_token_loss(one(repeats), repeats, copies[:, :-1])
        return float(losses.mean())

    rows: list[dict[str, Any]] = []
    for layer in range(model.cfg.n_layers):
        alone = gi.splice(original, layer, model.blocks[layer].attn)
        row = {"layer": str(layer), **block_measures(alone, layer, text)}
        for of, one in (("", alone), ("_original", original)):
            for tokens, where, on in ((text, None, ""), (repeats, copies, "_on_repeats")):
                table = gi.head_sharing(one, layer, tokens).table(where).set_index("measure")
                row[f"participation{on}{of}"] = table.loc["participation", "median"]
                row[f"alone{on}{of}"] = table.loc["alone", "mean"]
        rows.append(row | {"ce_on_repeats": on_repeats(alone)})
    both = gi.loss_recovered(model, tokens=text) | {"ce_on_repeats": on_repeats(model)}
    rows.append({"layer": "both", **both})
    return pd.DataFrame(rows).assign(ce_on_repeats_original=on_repeats(original))


def main(folders: list[Path]) -> None:
    model = together(folders)
    save(model, SHIPPED / f"{NAME}.safetensors", notes=model.notes, base=ORIGINAL)
    table = measured(load(NAME))
    table.to_csv(CSV, index=False, float_format="%.6g")
    print(table.T.to_string())


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
