"""The value of every subset of heads from one forward pass, and what each head adds.

A subset is a number: bit ``h`` set means head ``h`` stays, the others are zero-ablated. Its value
at a trigram's B is the mean of

- ``logit``: the logit of C,
- ``lead``: the logit of C minus the largest other logit,
- ``accuracy``: 1 where that lead is positive, else 0.

The logits are linear in the heads of one layer, so the logit of C is additive: its Shapley values
are the heads' mean writes and its interactions are zero. Lead and accuracy are not.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.games import harsanyi_dividends, shapley_values
from gated_interp.analysis.heads import chosen_layer, head_name
from gated_interp.analysis.verdict import EXAMPLES, SEED
from gated_interp.analysis.writes import probe_writes
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import ProbedTask

__all__ = [
    "SubsetValues",
    "harsanyi_dividends",
    "pair_interactions",
    "shapley",
    "shapley_values",
    "subset_values",
]

Metric = Literal["logit", "lead", "accuracy"]
MAX_EXACT = 16


@dataclasses.dataclass(frozen=True)
class SubsetValues:
    """The value of every subset of heads for every trigram.

    Attributes:
        n_heads: heads; there are ``2 ** n_heads`` subsets.
        logit, lead, accuracy: ``[trigram subset]``, means over the trigram's examples.
        layer: whose heads.
    """

    n_heads: int
    logit: Float[Tensor, "trigram subset"] = dataclasses.field(repr=False)
    lead: Float[Tensor, "trigram subset"] = dataclasses.field(repr=False)
    accuracy: Float[Tensor, "trigram subset"] = dataclasses.field(repr=False)
    layer: int = 0

    def heads(self, subset: int) -> list[int]:
        """The heads that stay in ``subset``."""
        return [h for h in range(self.n_heads) if subset >> h & 1]

    def to_frame(self) -> pd.DataFrame:
        """One row per trigram and subset: ``trigram``, ``subset``, ``heads``, the three values."""
        rows = [
            {
                "trigram": b + 1,
                "subset": subset,
                "heads": "+".join(head_name((self.layer, h)) for h in self.heads(subset)) or "none",
                **{m: getattr(self, m)[b, subset].item() for m in get_args(Metric)},
            }
            for b in range(self.logit.shape[0])
            for subset in range(2**self.n_heads)
        ]
        return pd.DataFrame(rows)


@dataclasses.dataclass(frozen=True)
class _Examples:
    """One trigram's examples: what C's logit and its lead over each other token are made of."""

    logit: Float[Tensor, " example"]  # without any head
    logit_writes: Float[Tensor, "example head_index"]
    lead: Float[Tensor, "example other"]  # without any head
    lead_writes: Float[Tensor, "example head_index other"]

    def values(self, keep: Float[Tensor, "subset head_index"]) -> dict[str, Tensor]:
        """Mean logit, lead and accuracy of each subset, ``[subset]``."""
        logit = self.logit.mean() + keep @ self.logit_writes.mean(0)
        e, h, v = self.lead_writes.shape
        flat = self.lead_writes.transpose(0, 1).reshape(h, e * v)
        lead, accuracy = [], []
        for part in torch.split(keep, max(1, 2**22 // (e * v))):
            least = (part @ flat).view(-1, e, v).add_(self.lead).amin(-1)
            lead.append(least.mean(-1))
            accuracy.append((least > 0).double().mean(-1))
        return {"logit": logit, "lead": torch.cat(lead), "accuracy": torch.cat(accuracy)}


def subset_values(
    model: HookedTransformer,
    task: ProbedTask,
    *,
    layer: int | None = None,
    n: int = EXAMPLES,
    seed: int = SEED,
) -> SubsetValues:
    """The value of all ``2 ** n_heads`` subsets of a layer's heads, from one pass.

    Args:
        layer: the last, the others as they are; may be left out where it is the only one.
        n, seed: sequences with exactly one trigram each (the verdict's by default).

    Raises:
        GatedInterpError: more than 16 heads, a model that is not linear in its heads or not of
            the task's vocabulary, or a trigram that never occurs.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> values = subset_values(truth.model, truth.task, n=100).accuracy[2]  # of trigram 3
        >>> values.tolist()  # with no head, head 0, head 1, both
        [0.0, 0.0, 0.0, 1.0]
    """
    examples = list(_examples(model, task, layer, n, seed))
    heads = examples[0].logit_writes.shape[1]
    if heads > MAX_EXACT:
        raise GatedInterpError(
            f"the model has {heads} heads; all subsets are listed for up to {MAX_EXACT} "
            "(shapley and pair_interactions take more)."
        )
    numbers = torch.arange(2**heads)
    keep = (numbers[:, None] >> torch.arange(heads) & 1).double()
    each = [e.values(keep) for e in examples]
    values = {m: torch.stack([v[m] for v in each]) for m in get_args(Metric)}
    return SubsetValues(heads, layer=chosen_layer(model, layer), **values)


def shapley(
    model: HookedTransformer,
    task: ProbedTask,
    *,
    layer: int | None = None,
    n: int = EXAMPLES,
    seed: int = SEED,
    permutations: int | None = None,
    permutation_seed: int | None = None,
) -> pd.DataFrame:
    """Shapley value of every head for every trigram and metric.

    Exact up to 16 heads. Beyond, or where ``permutations`` is given, the mean gain of each head
    over random orders of arrival, with a 95% interval (normal approximation over orders).

    Args:
        n, seed: sequences with exactly one trigram each.
        permutations, permutation_seed: how many orders, and their seed.

    Returns:
        Columns ``metric``, ``trigram``, ``head``, ``value``, ``low``, ``high``, ``exact``.

    Raises:
        GatedInterpError: as :func:`subset_values`; more than 16 heads without ``permutations``;
            fewer than two permutations, or no seed for them.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> table = shapley(truth.model, truth.task, n=100)
        >>> table.query("metric == 'accuracy' and trigram == 3")["value"].tolist()
        [0.5, 0.5]
    """
    if permutations is None:
        exact = subset_values(model, task, layer=layer, n=n, seed=seed)
        gains = {m: shapley_values(getattr(exact, m))[:, None] for m in get_args(Metric)}
    else:
        if permutations < 2 or permutation_seed is None:
            raise GatedInterpError(
                f"sampling takes at least 2 permutations and a permutation_seed; got "
                f"{permutations} and {permutation_seed}."
            )
        gains = _sampled_gains(
            list(_examples(model, task, layer, n, seed)), permutations, permutation_seed
        )
    rows = []
    for metric, gain in gains.items():  # [trigram order head_index]
        mean = gain.mean(1)
        margin = torch.zeros_like(mean)
        if permutations is not None:
            margin = 1.96 * gain.std(1) / permutations**0.5
        for i, b in enumerate(task.cases):
            for h in range(gain.shape[2]):
                value, width = mean[i, h].item(), margin[i, h].item()
                rows.append(
                    {
                        "metric": metric,
                        "trigram": b,
                        "head": head_name((chosen_layer(model, layer), h)),
                        "value": value,
                        "low": value - width,
                        "high": value + width,
                        "exact": permutations is None,
                    }
                )
    return pd.DataFrame(rows)


def pair_interactions(
    model: HookedTransformer,
    task: ProbedTask,
    *,
    layer: int | None = None,
    n: int = EXAMPLES,
    seed: int = SEED,
) -> dict[str, Float[Tensor, "trigram head_index head_index"]]:
    """Harsanyi dividends of single heads (diagonal) and pairs, per metric; exact for any number.

    ``m(i) = v(i) - v(none)`` and ``m(i, j) = v(i, j) - v(i) - v(j) + v(none)``: positive where
    two heads do together what neither does alone, negative where one makes the other superfluous.

    Raises:
        GatedInterpError: as :func:`subset_values`, at any number of heads.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> found = pair_interactions(truth.model, truth.task, n=100)["accuracy"]
        >>> found[2].tolist()  # of trigram 3: neither head alone, only both
        [[0.0, 1.0], [1.0, 0.0]]
    """
    examples = list(_examples(model, task, layer, n, seed))
    heads = examples[0].logit_writes.shape[1]
    eye = torch.eye(heads, dtype=torch.double)
    pairs = (eye[:, None] + eye[None]).clamp(max=1).reshape(heads * heads, heads)
    keep = torch.cat([pairs, torch.zeros(1, heads, dtype=torch.double)])
    found: dict[str, list[Tensor]] = {m: [] for m in get_args(Metric)}
    for example in examples:
        for metric, value in example.values(keep).items():
            v = value[:-1].view(heads, heads) - value[-1]
            alone = v.diagonal()
            found[metric].append(v - (alone[:, None] + alone[None]) * (1 - eye))
    return {metric: torch.stack(each) for metric, each in found.items()}


def _sampled_gains(
    examples: list[_Examples], permutations: int, seed: int
) -> dict[str, Float[Tensor, "trigram order head_index"]]:
    heads = examples[0].logit_writes.shape[1]
    source = generator(seed)
    orders = torch.stack([torch.randperm(heads, generator=source) for _ in range(permutations)])
    arrived = torch.tril(torch.ones(heads + 1, heads, dtype=torch.double), -1)
    # keep[order, step, head]: whether the head is among the first `step` of its order.
    rank = orders.argsort(1)
    keep = arrived[:, rank].transpose(0, 1)
    gains: dict[str, list[Tensor]] = {m: [] for m in get_args(Metric)}
    for example in examples:
        for metric, value in example.values(keep.reshape(-1, heads)).items():
            steps = value.view(permutations, heads + 1).diff(dim=1)
            gains[metric].append(steps.gather(1, rank))
    return {metric: torch.stack(each) for metric, each in gains.items()}


def _examples(
    model: HookedTransformer, task: ProbedTask, layer: int | None, n: int, seed: int
) -> Iterator[_Examples]:
    found = probe_writes(model, task, n, seed, chosen_layer(model, layer)).double()
    writes, probes = found.writes, found.probes
    base = found.logits - writes.sum(1)
    for b in probes.cases:
        mine = probes.case == b
        c = probes.target[mine, None]
        other = torch.arange(task.d_vocab) != c  # [example d_vocab]
        e, heads, v = writes[mine].shape
        logit = base[mine].gather(1, c)
        written = writes[mine].gather(2, c[:, None].expand(-1, heads, 1))
        yield _Examples(
            logit=logit[:, 0],
            logit_writes=written[..., 0],
            lead=(logit - base[mine])[other].view(e, v - 1),
            lead_writes=(written - writes[mine])[other[:, None].expand(-1, heads, -1)].view(
                e, heads, v - 1
            ),
        )
