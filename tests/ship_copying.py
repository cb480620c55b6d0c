"""Ship a block of the study of copying in SmolLM2-135M, for notebook 09.

``ship_copying.py RUN`` takes the folder of ``gated-interp study smollm2``. Of the blocks of layer
17 in which two heads write at a position, that is shipped whose best two heads carry the median
share. The ten heads that write most are kept, so that the file is smaller than 6 MB.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

import gated_interp as gi
from gated_interp.experiments.copying import STORE, TWO_HEADS
from gated_interp.replacements.topk import TopKAttention
from gated_interp.training.activations import ActivationStore

LAYER, SEQUENCES, HEADS = 17, 80, 10
FILE = Path(__file__).parents[1] / "notebooks" / "smollm2-L17-topk.safetensors"


def median_seed(table: pd.DataFrame) -> int:
    """The seed of the layer's median block; the lower one of an even number."""
    blocks = table[(table["layer"] == LAYER) & (table["method"] == TWO_HEADS)].sort_values("top2")
    return int(blocks.iloc[(len(blocks) - 1) // 2]["seed"])


@torch.no_grad()
def written(block: TopKAttention, store: ActivationStore) -> torch.Tensor:
    """What each head writes on captured sequences: squared length, as a share of all."""
    total = torch.zeros(block.config.n_heads)
    for seed in range(SEQUENCES // 8):
        seen: list[torch.Tensor] = []
        handle = block.hook_z.register_forward_hook(lambda module, given, z, s=seen: s.append(z))
        block(*store.read(LAYER, store.sample(8, seed=seed)).inputs)
        handle.remove()
        total += torch.einsum("bphd,hdm->bphm", seen[0][:, 1:], block.W_O).square().sum((0, 1, 3))
    return total / total.sum()


@torch.no_grad()
def with_heads(block: TopKAttention, heads: list[int]) -> TopKAttention:
    """The block with these heads only, each with a circuit of its own."""
    smaller = TopKAttention(block.config.replace(n_heads=len(heads), n_circuits=None))
    for name, parameter in smaller.named_parameters():
        whole = getattr(block, name.removeprefix("raw_"))
        parameter.copy_(whole if name == "b_O" else whole[heads])
    smaller.stands_for = block.stands_for
    return smaller


def main(run: Path) -> None:
    seed = median_seed(pd.read_csv(run / "copying.csv"))
    name = f"L{LAYER}-{TWO_HEADS.replace(' ', '-')}-seed{seed}.safetensors"
    block = gi.Replacement.from_pretrained(run / name)
    folder = next(f for f in sorted((run / STORE).iterdir()) if str(LAYER) in f.name.split("-"))
    shares = written(block, ActivationStore.open(folder))
    heads = sorted(shares.argsort(descending=True)[:HEADS].tolist())
    with_heads(block, heads).save_pretrained(FILE)
    size = FILE.stat().st_size / 1e6
    print(f"seed {seed}: heads {heads} write {shares[heads].sum():.2%} of all; {size:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
