"""One sequence in which a known answer is asked for, and what the heads of a layer do there."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.heads import chosen_layer
from gated_interp.analysis.verdict import EXAMPLES, SEED
from gated_interp.analysis.writes import is_linear, logit_writes
from gated_interp.anatomy.batch import token_vocabulary
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import ProbedTask, probes_for


@dataclasses.dataclass(frozen=True)
class Example:
    """What the heads of one layer do at one probe of a case, such as a trigram's B.

    Attributes:
        trigram: which case.
        tokens: the names of all tokens of the sequence.
        position: of the probe.
        pattern: attention of every position.
        gate: of every position; ``None`` for a layer without gates.
        effects: what each head writes to each logit at the probe; ``None`` where the logits are
            not a sum over the layer's heads.
        predicted: the token with the largest logit there.
    """

    trigram: int
    tokens: list[str]
    position: int
    pattern: Float[Tensor, "head_index query_pos key_pos"]
    gate: Float[Tensor, "head_index query_pos key_pos"] | None
    effects: Float[Tensor, "head_index d_vocab"] | None
    predicted: int


@torch.no_grad()
def example_of(
    model: HookedTransformer,
    task: ProbedTask,
    trigram: int,
    layer: int | None = None,
) -> Example:
    """The first of the verdict's examples of a case in the second half of its sequence, where
    there is something to look back on.

    Args:
        trigram: the case.
        layer: whose heads; may be left out where it is the only one.
    """
    layer = chosen_layer(model, layer)
    linear = is_linear(model, layer)
    probes = probes_for(task, token_vocabulary(model), EXAMPLES, SEED)
    found = (probes.case == trigram).nonzero().flatten()
    late = probes.position[found] > task.n_positions // 2
    chosen = found[late.int().argmax()]  # of equal ones, the first
    position = int(probes.position[chosen])
    tokens = probes.tokens[probes.row[chosen]][None].to(model.embed.W_E.device)
    names = {k: f"blocks.{layer}.attn.hook_{k}" for k in ("pattern", "gate", "z")}
    logits, cache = model.run_with_cache(tokens, names_filter=list(names.values()))
    z = cache[names["z"]][:, position]
    return Example(
        trigram=trigram,
        tokens=[task.token_names[t] for t in tokens[0].tolist()],
        position=position,
        pattern=cache[names["pattern"]][0].cpu(),
        gate=cache[names["gate"]][0].cpu() if names["gate"] in cache else None,
        effects=logit_writes(model, z, layer)[0].cpu() if linear else None,
        predicted=int(logits[0, position].argmax()),
    )
