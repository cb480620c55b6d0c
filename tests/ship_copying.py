"""Ship a block of the study of copying in SmolLM2-135M, for notebook 09.

``ship_copying.py RUN`` takes the folder of ``gated-interp study smollm2``. Of the gated blocks of
layer 17, that is shipped whose best two heads carry the median share. The nine heads that write
most are kept, so that the file is smaller than 6 MB.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

import gated_interp as gi
from gated_interp.experiments.copying import STORE
from gated_interp.replacements.pruning import with_heads
from gated_interp.training.activations import ActivationStore

LAYER, SEQUENCES, HEADS = 17, 80, 9
FILE = Path(__file__).parents[1] / "notebooks" / "smollm2-L17-gated.safetensors"


def median_seed(table: pd.DataFrame) -> int:
    """The seed of the layer's median block; the lower one of an even number."""
    blocks = table[(table["layer"] == LAYER) & (table["method"] == "gated")].sort_values("top2")
    return int(blocks.iloc[(len(blocks) - 1) // 2]["seed"])


@torch.no_grad()
def written(block: gi.GatedAttention, store: ActivationStore) -> torch.Tensor:
    """What each head writes on captured sequences: squared length, as a share of all."""
    total = torch.zeros(block.config.n_heads)
    for seed in range(SEQUENCES // 8):
        seen: list[torch.Tensor] = []
        handle = block.hook_z.register_forward_hook(lambda module, given, z, s=seen: s.append(z))
        block(*store.read(LAYER, store.sample(8, seed=seed)).inputs)
        handle.remove()
        total += torch.einsum("bphd,hdm->bphm", seen[0][:, 1:], block.W_O).square().sum((0, 1, 3))
    return total / total.sum()


def main(run: Path) -> None:
    seed = median_seed(pd.read_csv(run / "copying.csv"))
    block = gi.GatedAttention.from_pretrained(run / f"L{LAYER}-gated-seed{seed}.safetensors")
    folder = next(f for f in sorted((run / STORE).iterdir()) if str(LAYER) in f.name.split("-"))
    shares = written(block, ActivationStore.open(folder))
    heads = sorted(shares.argsort(descending=True)[:HEADS].tolist())
    with_heads(block, heads).save_pretrained(FILE)
    size = FILE.stat().st_size / 1e6
    print(f"seed {seed}: heads {heads} write {shares[heads].sum():.2%} of all; {size:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
