"""The value of every subset of heads, and what each head adds.

A subset is a number: bit ``i`` set means the ``i``-th of the chosen heads stays, the others are
ablated; heads that are not chosen stay. What it is worth:

- of a task whose answers are known, at a case's position the mean of ``logit``: the
  logit of C, ``lead``: the logit of C minus the largest other logit, ``accuracy``: 1 where that
  lead is positive, else 0;
- on any other tokens, their next-token ``loss`` (nats);
- or any metric of logits and tokens, averaged.

Where the logits are linear in the heads of a layer (attention only, no normalisation, the last
layer), zero ablation is a sum and one forward pass gives every subset: then the logit of C is
additive, its Shapley values are the heads' mean writes and its interactions are zero. Any other
model is intervened on, a forward pass for each subset.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.games import harsanyi_dividends, shapley_values
from gated_interp.analysis.heads import Head, HeadLike, head_name
from gated_interp.analysis.logits import MetricFunction
from gated_interp.analysis.subset_games import Game, Values, game_of
from gated_interp.analysis.verdict import EXAMPLES, SEED
from gated_interp.anatomy.batch import Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import Task

__all__ = [
    "SubsetValues",
    "harsanyi_dividends",
    "pair_interactions",
    "shapley",
    "shapley_values",
    "subset_values",
]

Fill = Literal["zero", "mean"]
MAX_EXACT = 16


@dataclasses.dataclass(frozen=True)
class SubsetValues:
    """The value of every subset of heads for every case, or of all tokens at once.

    Attributes:
        n_heads: heads; there are ``2 ** n_heads`` subsets.
        members: the heads, ``(layer, head)``, in the order of a subset's bits.
        values: by metric, ``[case subset]``, means over the case's examples; one case of all tokens
            where none is known.
        cases: the numbers of the cases; ``None`` where none is known.
        layer: whose heads; ``None`` where they are of several.
    """

    n_heads: int
    members: tuple[Head, ...] = dataclasses.field(repr=False)
    values: Mapping[str, Float[Tensor, "case subset"]] = dataclasses.field(repr=False)
    cases: tuple[int, ...] | None = dataclasses.field(repr=False)
    layer: int | None = 0

    @property
    def logit(self) -> Float[Tensor, "case subset"]:
        """Values of the metric ``logit``."""
        return self.values["logit"]

    @property
    def lead(self) -> Float[Tensor, "case subset"]:
        """Values of the metric ``lead``."""
        return self.values["lead"]

    @property
    def accuracy(self) -> Float[Tensor, "case subset"]:
        """Values of the metric ``accuracy``."""
        return self.values["accuracy"]

    def heads(self, subset: int) -> list[int]:
        """Which of :attr:`members` stay in ``subset``; of a whole layer, its heads."""
        return [h for h in range(self.n_heads) if subset >> h & 1]

    def to_frame(self) -> pd.DataFrame:
        """One row per case and subset: ``trigram`` (missing where there are no cases),
        ``subset``, ``heads``, and each metric."""
        rows = [
            {
                "trigram": case,
                "subset": subset,
                "heads": "+".join(head_name(self.members[h]) for h in self.heads(subset)) or "none",
                **{metric: value[i, subset].item() for metric, value in self.values.items()},
            }
            for i, case in enumerate(self.cases or [None])
            for subset in range(2**self.n_heads)
        ]
        return pd.DataFrame(rows).astype({"trigram": "int64" if self.cases else "Int64"})


def subset_values(
    model: HookedTransformer,
    task: Task | Tokens,
    *,
    layer: int | None = None,
    heads: Sequence[HeadLike] | None = None,
    metric: MetricFunction | None = None,
    method: Fill = "zero",
    attention_mask: Mask | None = None,
    reference_tokens: Tokens | None = None,
    reference_mask: Mask | None = None,
    n: int = EXAMPLES,
    seed: int = SEED,
) -> SubsetValues:
    """The value of all ``2 ** n_heads`` subsets of a layer's heads, or of any heads.

    Args:
        task: a task, or tokens ``[batch pos]``.
        layer: whose heads; may be left out where it is the only one.
        heads: these instead, each as ``(layer, head)`` or by its name, such as ``"L0H1"``.
        metric: what a subset is worth, in the place of what the module says: a function of logits
            ``[batch pos d_vocab]`` and tokens ``[batch pos]`` that gives a scalar, ``[batch]`` or
            ``[batch pos]``.
        method: how the other heads are ablated: z is zero, or its mean over ``reference_tokens``.
        attention_mask, reference_mask: of the tokens and of these, 1 at tokens and 0 at padding.
        n, seed: sequences sampled from a task (of one with known answers, those of the verdict).

    Raises:
        GatedInterpError: more than 16 heads, or more subsets and sequences than anyone would wait
            for; a head or layer that is not there; a model not of the task's vocabulary; tokens it
            cannot read; a case that never occurs; a metric that gives something else; mean
            ablation without a reference.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> values = subset_values(truth.model, truth.task, n=100).accuracy[2]  # of trigram 3
        >>> values.tolist()  # with no head, head 0, head 1, both
        [0.0, 0.0, 0.0, 1.0]
        >>> tokens = torch.tensor([[7, 0, 3]])  # BOS A B3
        >>> def says_c3(logits, tokens):
        ...     return (logits[:, -1].argmax(-1) == 6).float()
        >>> subset_values(truth.model, tokens, metric=says_c3).values["says_c3"].tolist()
        [[0.0, 0.0, 0.0, 1.0]]
    """
    game = game_of(
        model,
        task,
        layer=layer,
        heads=heads,
        metric=metric,
        method=method,
        attention_mask=attention_mask,
        reference_tokens=reference_tokens,
        reference_mask=reference_mask,
        n=n,
        seed=seed,
    )
    return SubsetValues(
        len(game.heads),
        tuple(game.heads),
        _every_subset(game),
        None if game.cases is None else tuple(game.cases),
        _only({layer for layer, _ in game.heads}),
    )


def shapley(
    model: HookedTransformer,
    task: Task | Tokens,
    *,
    layer: int | None = None,
    heads: Sequence[HeadLike] | None = None,
    metric: MetricFunction | None = None,
    method: Fill = "zero",
    attention_mask: Mask | None = None,
    reference_tokens: Tokens | None = None,
    reference_mask: Mask | None = None,
    n: int = EXAMPLES,
    seed: int = SEED,
    permutations: int | None = None,
    permutation_seed: int | None = None,
) -> pd.DataFrame:
    """Shapley value of every head for every case and metric.

    Exact up to 16 heads. Beyond, or where ``permutations`` is given, the mean gain of each head
    over random orders of arrival, with a 95% interval (normal approximation over orders; Castro et
    al., 2009).

    Args:
        task, layer, heads, metric, method, attention_mask: as :func:`subset_values`.
        reference_tokens, reference_mask, n, seed: as there.
        permutations, permutation_seed: how many orders, and their seed.

    Returns:
        Columns ``metric``, ``trigram`` (missing where there are no cases), ``head``, ``value``,
        ``low``, ``high``, ``exact``.

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
    game = game_of(
        model,
        task,
        layer=layer,
        heads=heads,
        metric=metric,
        method=method,
        attention_mask=attention_mask,
        reference_tokens=reference_tokens,
        reference_mask=reference_mask,
        n=n,
        seed=seed,
    )
    return shapley_of(game, permutations, permutation_seed)


def shapley_of(
    game: Game, permutations: int | None = None, permutation_seed: int | None = None
) -> pd.DataFrame:
    """The Shapley value of every head of a game, see :func:`shapley`."""
    if permutations is not None and (permutations < 2 or permutation_seed is None):
        raise GatedInterpError(
            "sampling-without-seed", permutations=permutations, permutation_seed=permutation_seed
        )
    if permutations is None or permutation_seed is None:
        gains = {m: shapley_values(v)[:, None] for m, v in _every_subset(game).items()}
    else:
        gains = _sampled_gains(game, permutations, permutation_seed)
    return _shapley_table(game, gains)


def pair_interactions(
    model: HookedTransformer,
    task: Task | Tokens,
    *,
    layer: int | None = None,
    heads: Sequence[HeadLike] | None = None,
    metric: MetricFunction | None = None,
    method: Fill = "zero",
    attention_mask: Mask | None = None,
    reference_tokens: Tokens | None = None,
    reference_mask: Mask | None = None,
    n: int = EXAMPLES,
    seed: int = SEED,
) -> dict[str, Float[Tensor, "case head_index head_index"]]:
    """Harsanyi dividends of single heads (diagonal) and pairs, per metric; exact for any number.

    ``m(i) = v(i) - v(none)`` and ``m(i, j) = v(i, j) - v(i) - v(j) + v(none)``: positive where
    two heads do together what neither does alone, negative where one makes the other superfluous.

    Args:
        task, layer, heads, metric, method, attention_mask: as :func:`subset_values`.
        reference_tokens, reference_mask, n, seed: as there.

    Raises:
        GatedInterpError: as :func:`subset_values`, at any number of heads.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> found = pair_interactions(truth.model, truth.task, n=100)["accuracy"]
        >>> found[2].tolist()  # of trigram 3: neither head alone, only both
        [[0.0, 1.0], [1.0, 0.0]]
    """
    game = game_of(
        model,
        task,
        layer=layer,
        heads=heads,
        metric=metric,
        method=method,
        attention_mask=attention_mask,
        reference_tokens=reference_tokens,
        reference_mask=reference_mask,
        n=n,
        seed=seed,
    )
    return interactions_of(game)


def interactions_of(game: Game) -> dict[str, Float[Tensor, "case head_index head_index"]]:
    """Dividends of a game's heads and pairs, per metric, see :func:`pair_interactions`."""
    size = len(game.heads)
    eye = torch.eye(size, dtype=torch.double)
    pairs = (eye[:, None] + eye[None]).clamp(max=1).reshape(size * size, size)
    found = {}
    for name, value in game.values(torch.cat([pairs, 0 * eye[:1]])).items():
        v = value[:, :-1].view(-1, size, size) - value[:, -1, None, None]
        alone = v.diagonal(dim1=1, dim2=2)
        found[name] = v - (alone[:, :, None] + alone[:, None]) * (1 - eye)
    return found


def _every_subset(game: Game) -> Values:
    size = len(game.heads)
    if size > MAX_EXACT:
        raise GatedInterpError("too-many-heads", size=size, most=MAX_EXACT)
    numbers = torch.arange(2**size)
    return game.values((numbers[:, None] >> torch.arange(size) & 1).double())


def _shapley_table(
    game: Game, gains: Mapping[str, Float[Tensor, "case order head_index"]]
) -> pd.DataFrame:
    rows = []
    for metric, gain in gains.items():
        orders = gain.shape[1]
        mean = gain.mean(1)
        margin = 1.96 * gain.std(1) / orders**0.5 if orders > 1 else torch.zeros_like(mean)
        for i, case in enumerate(game.cases or [None]):
            for h, head in enumerate(game.heads):
                value, width = mean[i, h].item(), margin[i, h].item()
                rows.append(
                    {
                        "metric": metric,
                        "trigram": case,
                        "head": head_name(head),
                        "value": value,
                        "low": value - width,
                        "high": value + width,
                        "exact": orders == 1,
                    }
                )
    return pd.DataFrame(rows).astype({"trigram": "int64" if game.cases else "Int64"})


def _sampled_gains(
    game: Game, permutations: int, seed: int
) -> dict[str, Float[Tensor, "case order head_index"]]:
    heads = len(game.heads)
    source = generator(seed)
    orders = torch.stack([torch.randperm(heads, generator=source) for _ in range(permutations)])
    arrived = torch.tril(torch.ones(heads + 1, heads, dtype=torch.double), -1)
    # keep[order, step, head]: whether the head is among the first `step` of its order.
    rank = orders.argsort(1)
    keep = arrived[:, rank].transpose(0, 1)
    gains = {}
    for metric, value in game.values(keep.reshape(-1, heads)).items():
        steps = value.view(-1, permutations, heads + 1).diff(dim=2)
        gains[metric] = steps.gather(2, rank.expand(len(value), -1, -1))
    return gains


def _only(layers: set[int]) -> int | None:
    return layers.pop() if len(layers) == 1 else None
