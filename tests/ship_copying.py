"""Ship a block of the study of copying in SmolLM2-135M, for notebook 09.

``ship_copying.py RUN`` takes the folder of ``gated-interp study smollm2``. Of the blocks of layer
17 in which two heads write at a position, that is shipped whose best two heads carry the median
share, in half precision, so that the file is smaller than 6 MB.
"""

import sys
from pathlib import Path

import pandas as pd

import gated_interp as gi
from gated_interp.experiments.copying import TWO_HEADS

LAYER = 17
FILE = Path(__file__).parents[1] / "notebooks" / "smollm2-L17-topk.safetensors"


def median_seed(table: pd.DataFrame) -> int:
    """The seed of the layer's median block; the lower one of an even number."""
    blocks = table[(table["layer"] == LAYER) & (table["method"] == TWO_HEADS)].sort_values("top2")
    return int(blocks.iloc[(len(blocks) - 1) // 2]["seed"])


def main(run: Path) -> None:
    seed = median_seed(pd.read_csv(run / "copying.csv"))
    name = f"L{LAYER}-{TWO_HEADS.replace(' ', '-')}-seed{seed}.safetensors"
    gi.Replacement.from_pretrained(run / name).half().save_pretrained(FILE)
    print(f"seed {seed}: {FILE.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
