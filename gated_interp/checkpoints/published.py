"""The checkpoint format of the 2024 post's code drop, recognised by its tensor names.

The post: *Gated Attention Blocks: Preliminary Progress toward Removing Attention Head
Superposition* (Mathwin, Akar, Sharkey). A toy file holds ``attn.W_Q`` .. ``attn.b_V`` and the mask
value ``attn.IGNORE``; a gated file the same names without prefix or ``IGNORE``, plus
``W_gate_Q/K`` and ``b_gate_Q/K``. There is no metadata: shapes say how many heads and trigrams,
and the rest is as in the post (:meth:`GatedConfig.reference`, 11 positions).
"""

from pathlib import Path

from torch import Tensor

from gated_interp.checkpoints.checkpoint_format import PUBLISHED, CheckpointInfo, Part
from gated_interp.core.errors import CheckpointError
from gated_interp.core.tensor_file import Header
from gated_interp.models.toy import ToyConfig
from gated_interp.replacements.gated_attention import GatedConfig
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

IGNORE = "attn.IGNORE"
# Softmax gives masked pairs exp(IGNORE); from here on that is zero in float32, as in our models.
LARGEST_IGNORE = -1e4


def is_published(header: Header) -> bool:
    """Whether the tensor names are those of the post's files (some may be missing or extra)."""
    names = header.shapes
    return any(n.startswith("attn.") for n in names) or "W_gate_Q" in names or "W_gate_K" in names


def published_info(path: Path, header: Header) -> tuple[CheckpointInfo, dict[str, str]]:
    """What the shapes of a published file say, and its name for each of our tensors."""
    toy = any(n.startswith("attn.") for n in header.shapes)
    name = "attn.W_Q" if toy else "W_Q"
    shape = header.shapes.get(name)
    if shape is None:
        raise CheckpointError("published-tensor-missing", path=path, name=name)
    if len(shape) != 3 or min(shape) < 1 or shape[1] % 2 or shape[1] < 4:
        raise CheckpointError(
            "published-tensor-wrong-shape", path=path, name=name, shape=list(shape)
        )
    heads, d_model, d_head = shape
    task = SkipTrigramTask((d_model - 2) // 2)
    try:
        if toy:
            config = ToyConfig(n_trigrams=task.n_trigrams, n_heads=heads, d_head=d_head)
            info = CheckpointInfo(task, Part("toy", config), format=PUBLISHED)
        else:
            block = GatedConfig.reference(d_model, heads).replace(d_head=d_head)
            info = CheckpointInfo(task, None, {0: Part("gated", block)}, format=PUBLISHED)
    except CheckpointError as error:
        raise CheckpointError("cannot-load", path=path, reason=error) from error
    prefix = "attn." if toy else ""
    return info, {
        ours: prefix + ours.rpartition(".")[2].removeprefix("raw_") for ours in info.shapes
    }


def require_mask(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse a toy whose mask value would let attention see what comes later."""
    if IGNORE in tensors and float(tensors[IGNORE]) > LARGEST_IGNORE:
        raise CheckpointError(
            "bad-mask-value",
            path=path,
            value=float(tensors[IGNORE]),
            name=IGNORE,
            most=LARGEST_IGNORE,
        )
