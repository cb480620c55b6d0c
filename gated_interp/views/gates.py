"""How far each gate of a toy opens for every pair of tokens."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from gated_interp.models.toy import HookedTransformer
from gated_interp.plots import gate_maps
from gated_interp.replacements.splice import gated_block, require_gated_block
from gated_interp.subject import Subject
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.views.shown import Shown, View, marked


def show(subject: Subject) -> Iterator[Shown]:
    """A map per head."""
    side, names = subject.after[0], subject.task.token_names
    gates = gate_table(side.model)
    frames = [
        pd.DataFrame(gate, index=names, columns=names)
        .rename_axis("query_token")
        .reset_index()
        .melt("query_token", var_name="key_token", value_name="gate")
        .assign(head=head)
        for head, gate in zip(side.heads, gates, strict=True)
    ]
    title = f"{subject.name}: when each head's gate opens"
    yield Shown(
        "gates",
        "When each head's gate opens",
        "How far the gate opens for each pair of query and key token. 0 is shut.",
        pd.concat(frames, ignore_index=True),
        lambda: gate_maps(
            gates, names, side.heads, marks=side.marks, title=marked(title, side.marks)
        ),
    )


@torch.no_grad()
def gate_table(gated: HookedTransformer) -> np.ndarray:
    """Each gate as a function of the tokens, ``[head, query_token, key_token]``, by hooks."""
    require_gated_block(gated)
    # Without positional signal every pair of tokens can be read off two-token sequences.
    tokens = torch.arange(gated.cfg.d_vocab)
    pairs = torch.cartesian_prod(tokens, tokens)  # (query, key)
    name = "blocks.0.attn.hook_gate"
    _, cache = gated.run_with_cache(pairs.flip(1), names_filter=name)
    gate = cache[name][:, :, 1, 0]
    return gate.T.reshape(-1, len(tokens), len(tokens)).cpu().numpy()


VIEW = View(
    "circuits",
    show,
    lambda subject: (
        isinstance(subject.task, SkipTrigramTask) and gated_block(subject.model) is not None
    ),
    20,
    "each",
)
