"""Which head holds which representation: holder, sole owner, distributed, not learnt.

*Holder* and *clean* are :mod:`~gated_interp.analysis.holders`' words, by ablation. *Sole owner* and
*distributed* are the 2024 gated attention post's, kept for comparison. The layer is linear in its
heads' outputs, so one forward pass is enough for every subset of heads.

What the post's rule leaves out: only what heads write is compared, not the query token's own logit
(nor biases), so an owner alone need not make the model answer C; the set in which nothing is
removed is not asked; a head may own several cases, and a case have several owners. Where the
verdict departs from the post's code drop: in which last positions count (here a B at the last
position, which has no room for its C, is never an example) and in how the 99% is counted (here per
case, over all its examples). A case that is not learnt has no owner here.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.breaking import some_set_breaks
from gated_interp.analysis.heads import chosen_layer
from gated_interp.analysis.holders import holders, holders_from_writes, is_clean
from gated_interp.analysis.writes import probe_writes
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import Probes, Task

THRESHOLD = 0.99
EXAMPLES = 1000
SEED = 42


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Who holds what in one model.

    Attributes:
        learnt: cases whose C tops the logits in more than 99% of their examples.
        holders: per case the heads (ascending) that hold it: sufficient, necessary and specific
            by ablation (:mod:`~gated_interp.analysis.holders`); none where it is not learnt.
        owners: per case the heads (ascending) that are its sole owner by the post's rule: what
            they and the heads that stay write keeps C on top, whichever non-empty set of other
            heads is removed, in more than 99% of its examples; none where it is not learnt.
        distributed: learnt cases without a sole owner.
        not_learnt: the other cases.
        accuracy: per case the share of its examples whose top logit is C.

    Examples:
        >>> found = Verdict(
        ...     learnt=[1, 2], owners={1: [0], 2: []}, distributed=[2], not_learnt=[],
        ...     accuracy={1: 1.0, 2: 0.995}, holders={1: [0], 2: []},
        ... )
        >>> found.success, found.clean
        (False, False)
    """

    learnt: list[int]
    owners: dict[int, list[int]]
    distributed: list[int]
    not_learnt: list[int]
    accuracy: dict[int, float]
    holders: dict[int, list[int]]

    @property
    def success(self) -> bool:
        """Whether every case is learnt and has a sole owner, as the post asks."""
        return not self.not_learnt and not self.distributed

    @property
    def clean(self) -> bool:
        """Every case is held by exactly one head, and these heads differ."""
        return is_clean(self.holders)

    def to_json(self) -> dict[str, Any]:
        """The verdict as published on the command line and in ``results.json``."""
        return {
            "learnt": self.learnt,
            "holders": {str(b): heads for b, heads in self.holders.items()},
            "clean": self.clean,
            "owners": {str(b): heads for b, heads in self.owners.items()},
            "distributed": self.distributed,
            "not_learnt": self.not_learnt,
        }


def verdict(
    model: HookedTransformer,
    task: Task,
    *,
    layer: int | None = None,
    n: int = EXAMPLES,
    seed: int = SEED,
) -> Verdict:
    """Who holds and who owns which case: exactly, from one forward pass, in a one-layer model.

    In a model of several layers owners are those of the last, the others as they are; holders must
    do without the other layers (they are found by ablation).

    Args:
        model: attention-only, with a replacement spliced in or not.
        task: the task it was trained on, with known answers (probes).
        layer: the last; may be left out where it is the only one.
        n: sequences; of cases, each with exactly one.
        seed: of those sequences (the post's is 42).

    Raises:
        GatedInterpError: a task without known answers, a layer that is not linear or not the last,
            a vocabulary that is not the task's, or a case that never occurs.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> found = verdict(truth.model, truth.task)
        >>> found.owners, found.distributed, found.holders
        ({1: [0], 2: [1], 3: []}, [3], {1: [], 2: [], 3: []})
    """
    layer = chosen_layer(model, layer)
    probed = probe_writes(model, task, n, seed, layer)
    found = verdict_from_writes(probed.writes, probed.logits, probed.probes)
    if model.cfg.n_layers == 1:
        return found
    by_ablation = holders(model, task, layer=layer, n=n, seed=seed).holders
    return dataclasses.replace(found, holders=by_ablation)


def verdict_from_writes(
    writes: Float[Tensor, "example head_index d_vocab"],
    logits: Float[Tensor, "example d_vocab"],
    probes: Probes,
) -> Verdict:
    """The verdict from what each head writes at each probe, see :func:`verdict`."""
    owners: dict[int, list[int]] = {}
    accuracy: dict[int, float] = {}
    cases = probes.cases
    for b in cases:
        mine = probes.case == b
        target = probes.target[mine]
        accuracy[b] = (logits[mine].argmax(-1) == target).double().mean().item()
        owners[b] = sole_owners(writes[mine], target)
    learnt = [b for b in cases if accuracy[b] > THRESHOLD]
    owners = {b: heads if b in learnt else [] for b, heads in owners.items()}
    return Verdict(
        learnt=learnt,
        owners=owners,
        distributed=[b for b in learnt if not owners[b]],
        not_learnt=[b for b in cases if b not in learnt],
        accuracy=accuracy,
        holders=holders_from_writes(writes, logits, probes).holders,
    )


def sole_owners(
    writes: Float[Tensor, "example head_index d_vocab"],
    target: int | Int[Tensor, " example"],
    threshold: float = THRESHOLD,
) -> list[int]:
    """The heads that alone guarantee the answer, whichever non-empty set of others is removed.

    Head ``h`` qualifies when for *every* such set the argmax of the summed writes of the heads
    that stay is the target in more than ``threshold`` of the examples.

    Args:
        writes: what each head writes to the logits, ``[example head_index d_vocab]``.
        target: the token that must win, of all examples or of each.
    """
    examples, heads, d_vocab = writes.shape
    at = torch.as_tensor(target, device=writes.device).expand(examples)[:, None, None]
    lead = writes.gather(-1, at.expand(-1, heads, 1)) - writes
    other = torch.arange(d_vocab, device=writes.device) != at[:, 0]
    lead = lead[other[:, None].expand(-1, heads, -1)].view(examples, heads, d_vocab - 1)
    allowed = _allowed_failures(lead.shape[0], threshold)
    worst = worst_leads(lead)
    fails = (worst <= 0).any(-1).sum(0)  # [head_index]: examples that some subset breaks
    return [
        h
        for h in range(lead.shape[1])
        # Where few examples break at all, no single subset breaks many. Else look for one subset.
        if fails[h] <= allowed or not some_set_breaks(lead, worst[:, h], h, allowed)
    ]


def worst_leads(
    lead: Float[Tensor, "example head_index token"],
) -> Float[Tensor, "example head_index token"]:
    """The smallest lead of C over each token when head ``h`` stays and some other head goes.

    Keeping only the heads that hurt is the worst case: ``lead_h + sum_o min(0, lead_o)``. At least
    one head must go, so where all the others hurt, the one that hurts least goes.
    """
    harm = lead.clamp(max=0)
    others_harm = harm.sum(1, keepdim=True) - harm
    heads = lead.shape[1]
    if heads == 1:
        return lead
    top = lead.topk(2, dim=1)
    is_top = torch.arange(heads, device=lead.device)[None, :, None] == top.indices[:, :1]
    mildest_other = torch.where(is_top, top.values[:, 1:], top.values[:, :1])
    return lead + others_harm - mildest_other.clamp(max=0)


def _allowed_failures(examples: int, threshold: float) -> int:
    """The most failing examples at which the share that holds still exceeds ``threshold``."""
    return max(f for f in range(-1, examples + 1) if examples - f > threshold * examples)
