"""Which head holds which case, by intervention, and what is left without them.

A *case* is one of the answers that a task asks for, such as one skip trigram. Head ``h`` *holds*
case ``b`` when three ablations say so, each on examples that complete ``b`` (or, for the third,
another case):

- *sufficient*: with every other head zero-ablated the model still answers C in more than 99%;
- *necessary*: with ``h`` alone zero-ablated it answers C in less than half;
- *specific*: with ``h`` alone zero-ablated every other case stays above 99%.

A model is *clean* when every case is learnt and held by exactly one head, and these heads
differ. "Every other head" is of every layer, so what one layer answers only by what another wrote,
no head holds; given the other layers (``rest="intact"``) one may. The post's sole owner is another
thing: it compares only what heads write, leaves the query token's own logit out, and asks neither
for necessity nor for specificity.
"""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.heads import Head, all_heads, chosen_layer, head_name, intervened
from gated_interp.analysis.replacements import Reference, replacements
from gated_interp.anatomy.batch import token_vocabulary
from gated_interp.metrics.predictions import leads
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import Probes, Task, probes_for

SUFFICIENT, NECESSARY, SPECIFIC = 0.99, 0.5, 0.99
EXAMPLES, SEED = 1000, 42


@dataclasses.dataclass(frozen=True)
class Holders:
    """Who holds which case, and the accuracies that say so.

    Attributes:
        holders: per case the heads (ascending) that hold it.
        accuracy: ``[case]``, of the intact model; case 1 first.
        alone: ``[case head_index]``, with every other head zero-ablated.
        without: ``[case head_index]``, with the head alone zero-ablated.
        layer: whose heads they are.
        whole: ``[case]``, with the heads of every other layer zero-ablated (where they may
            help, with nothing ablated).
    """

    holders: dict[int, list[int]]
    accuracy: Float[Tensor, " case"] = dataclasses.field(repr=False)
    alone: Float[Tensor, "case head_index"] = dataclasses.field(repr=False)
    without: Float[Tensor, "case head_index"] = dataclasses.field(repr=False)
    layer: int = 0
    whole: Float[Tensor, " case"] | None = dataclasses.field(default=None, repr=False)

    @property
    def clean(self) -> bool:
        """Every case is held by exactly one head, and these heads differ."""
        return is_clean(self.holders)

    @property
    def learnt(self) -> list[int]:
        """The cases answered in more than 99% of their examples."""
        return [b for b in self.holders if bool(self.accuracy[b - 1] > SUFFICIENT)]

    def why_not(self) -> dict[int, str]:
        """Of each case that no head holds, the first of the conditions that fails, in words.

        Examples:
            >>> from gated_interp.models.analytic_tasks import marked_relay
            >>> truth = marked_relay()
            >>> holders(truth.model, truth.task, layer=1, n=200).why_not()[2]
            'spread over layers: layer 1 alone answers 0.0%'
        """
        whole = self.accuracy if self.whole is None else self.whole
        reasons = {}
        for b in (b for b, heads in self.holders.items() if not heads):
            alone, without = self.alone[b - 1], self.without[b - 1]
            can = (alone > SUFFICIENT).nonzero().flatten().tolist()
            needed = [h for h in can if without[h] < NECESSARY]
            if not self.accuracy[b - 1] > SUFFICIENT:
                reasons[b] = f"not learnt: answered in {self.accuracy[b - 1]:.1%}"
            elif not whole[b - 1] > SUFFICIENT:
                reasons[b] = (
                    f"spread over layers: layer {self.layer} alone answers {whole[b - 1]:.1%}"
                )
            elif not can:
                reasons[b] = f"no head is sufficient: the best answers {alone.max():.1%} alone"
            elif not needed:
                least = without[can].min()
                reasons[b] = f"no head is necessary: without any of them {least:.1%} are answered"
            else:
                name = head_name((self.layer, needed[0]))
                lost = (self.without[:, needed[0]] <= SPECIFIC).nonzero().flatten() + 1
                others = ", ".join(str(i) for i in lost.tolist() if i != b)
                reasons[b] = f"not specific: without {name} also {others} suffer"
        return reasons


def is_clean(holders: dict[int, list[int]]) -> bool:
    """Whether every case is held by exactly one head and these heads differ.

    Examples:
        >>> is_clean({1: [5], 2: [0]}), is_clean({1: [5], 2: [5]}), is_clean({1: [5], 2: []})
        (True, False, False)
    """
    held_by = [h for heads in holders.values() for h in heads]
    return all(len(heads) == 1 for heads in holders.values()) and len(set(held_by)) == len(held_by)


def holders_from_accuracy(
    accuracy: Float[Tensor, " case"],
    alone: Float[Tensor, "case head_index"],
    without: Float[Tensor, "case head_index"],
    layer: int = 0,
    whole: Float[Tensor, " case"] | None = None,
) -> Holders:
    """Apply the definition of the module's docstring to the three accuracies, each 0 to 1.

    A case that is not learnt has no holder.
    """
    spared = without > SPECIFIC
    found: dict[int, list[int]] = {}
    for i in range(len(accuracy)):
        others = torch.cat([spared[:i], spared[i + 1 :]]).all(0)
        holds = (alone[i] > SUFFICIENT) & (without[i] < NECESSARY) & others
        learnt = accuracy[i] > SUFFICIENT
        found[i + 1] = holds.nonzero().flatten().tolist() if learnt else []
    return Holders(found, accuracy, alone, without, layer, whole)


def holders_from_writes(
    writes: Float[Tensor, "example head_index d_vocab"],
    logits: Float[Tensor, "example d_vocab"],
    probes: Probes,
) -> Holders:
    """The holders of a model that is linear in its heads, from one forward pass.

    What is left when heads are zero-ablated is a sum: this equals :func:`holders` up to rounding.

    Args:
        writes, logits: of :func:`~gated_interp.analysis.writes.head_writes` at each probe.
        probes: with some of every case.
    """
    c = probes.target
    base = logits - writes.sum(1)  # the embedding and the biases
    every_head = c[:, None].expand(-1, writes.shape[1])
    alone = leads(base[:, None] + writes, every_head) > 0
    without = leads(logits[:, None] - writes, every_head) > 0
    intact = leads(logits, c) > 0
    mine = [probes.case == b for b in probes.cases]
    accuracy, each, left = (
        torch.stack([right[m].double().mean(0) for m in mine]) for right in (intact, alone, without)
    )
    return holders_from_accuracy(accuracy, each, left)


@torch.no_grad()
def holders(
    model: HookedTransformer,
    task: Task,
    *,
    layer: int | None = None,
    rest: Literal["ablated", "intact"] = "ablated",
    n: int = EXAMPLES,
    seed: int = SEED,
) -> Holders:
    """Which head of a layer holds which case, by ablating heads at ``hook_z``.

    Two forward passes per head. :func:`~gated_interp.analysis.verdict.verdict` gives the same from
    one pass where the model is linear in its heads.

    Args:
        model: a toy, or one with a gated block spliced in; the embedding and biases are never
            ablated.
        task: the task it was trained on.
        layer: whose heads; may be left out where there is one layer only.
        rest: the heads of other layers while a head is to answer alone: ablated too, or intact,
            which finds what is held *given* the other layers.
        n, seed: of the sequences, each with exactly one case (the verdict's by default).

    Raises:
        GatedInterpError: no such layer, a model of another vocabulary, or a case that never
            occurs in the sequences.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> found = holders(truth.model, truth.task, n=200)
        >>> found.alone[2].tolist(), found.clean
        ([0.0, 0.0], False)
    """
    layer = chosen_layer(model, layer)
    probes = probes_for(task, token_vocabulary(model), n, seed).to(model.embed.W_E.device)

    def accuracy(ablated: list[Head]) -> Float[Tensor, " case"]:
        at = _logits(model, probes.tokens, ablated)[probes.row, probes.position]
        right = (leads(at, probes.target) > 0).double()
        return torch.stack([right[probes.case == b].mean() for b in probes.cases])

    mine = [head for head in all_heads(model) if head[0] == layer]
    others = [head for head in all_heads(model) if head[0] != layer and rest == "ablated"]
    alone = [accuracy([*others, *(o for o in mine if o != h)]) for h in mine]
    without = [accuracy([h]) for h in mine]
    intact = accuracy([])
    whole = accuracy(others) if others else intact
    return holders_from_accuracy(
        intact, torch.stack(alone, 1), torch.stack(without, 1), layer, whole
    )


def _logits(
    model: HookedTransformer, tokens: Tensor, ablated: list[Head]
) -> Float[Tensor, "batch pos d_vocab"]:
    with intervened(model, replacements(model, ablated, "zero", Reference(model, None))):
        logits: Tensor = model(tokens)
    return logits
