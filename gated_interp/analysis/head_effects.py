"""How much each head of a layer matters: alone, without the others, and shared between all."""

import dataclasses
from functools import cached_property
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated_interp.analysis.effect_games import game_for, shapley_by_sequence
from gated_interp.analysis.heads import head_name
from gated_interp.analysis.induction import repeated_random_tokens, repeats
from gated_interp.analysis.logits import MetricFunction, metric_name
from gated_interp.analysis.rest import Rest
from gated_interp.anatomy.batch import Batch, Mask, Tokens, position_mask
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.metrics.intervals import mean_interval, ratio_interval
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import chosen_layer

# Sequences of random tokens that are repeated, where no tokens are given.
SEQUENCES = 32
# An effect of one sequence, or of a metric of all, is nothing where it is below this share of it.
ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class HeadEffects:
    """What a metric changes by without each head of a layer, measured by intervention.

    All are changes of the metric, so of a loss an effect above zero says that the head helps.

    Attributes:
        layer: whose heads.
        metric: its name; ``loss`` is the next-token cross-entropy (nats).
        method: what ablated heads' z is replaced by.
        intact: ``[sequence]``, the metric with every head on.
        effect: ``[sequence]``, its change where every head is off: the layer's effect.
        off: ``[sequence head_index]``, its change where this head alone is off.
        alone: ``[sequence head_index]``, how much of the layer's effect goes away where this head
            alone is on.
        shapley: ``[sequence head_index]``, its change as this head goes off, averaged over which
            others are on. They sum to the layer's effect.
        order: heads in the order in which :meth:`carriers` adds them.
        carried: ``[sequence step]``, how much of the layer's effect goes away where the first
            ``step`` heads of ``order`` alone are on.
        exact: whether Shapley values are of every subset, or else of random orders.
    """

    layer: int
    metric: str
    method: str
    intact: Float[Tensor, " sequence"]
    effect: Float[Tensor, " sequence"]
    off: Float[Tensor, "sequence head_index"]
    alone: Float[Tensor, "sequence head_index"]
    shapley: Float[Tensor, "sequence head_index"]
    order: list[int]
    carried: Float[Tensor, "sequence step"]
    exact: bool

    def __repr__(self) -> str:
        said = f"layer {self.layer}, {self.method} ablation, {len(self.effect)} sequences"
        return f"HeadEffects({said}: {self.metric} changes by {float(self.effect.mean()):.4g})"

    @cached_property
    def matters(self) -> bool:
        """Whether the layer's effect is more than noise: its 95% interval leaves zero out.

        Of a single sequence, or a metric of all of them, whether it is more than rounding.
        """
        mean = float(self.effect.mean())
        if len(self.effect) < 2:
            return abs(mean) > ROUNDING * max(abs(float(self.intact.mean())), abs(mean), 1e-30)
        low, high = mean_interval(self.effect.numpy())
        return low > 0 or high < 0

    def table(self) -> pd.DataFrame:
        """One row per head, and a last one, ``all``, of all heads together.

        Columns: ``head``; ``off``, ``alone`` and ``shapley``, each with ``_low`` and ``_high``
        (95%, Student's t over sequences; missing of one value); ``share``, the Shapley value as a
        share of the layer's effect, with its interval; ``n`` sequences. Shares are missing where
        the layer's effect is within noise of zero: see :attr:`matters`.
        """
        rows = []
        for h in range(self.off.shape[1]):
            each = {"off": self.off, "alone": self.alone, "shapley": self.shapley}
            rows.append(
                self._row(head_name((self.layer, h)), {k: v[:, h] for k, v in each.items()})
            )
        rows.append(self._row("all", dict.fromkeys(("off", "alone", "shapley"), self.effect)))
        return pd.DataFrame(rows)

    def _row(self, name: str, each: dict[str, Tensor]) -> dict[str, object]:
        row: dict[str, object] = {"head": name}
        for column, values in each.items():
            low, high = mean_interval(values.numpy())
            row |= {column: float(values.mean()), f"{column}_low": low, f"{column}_high": high}
        return row | self._share("share", each["shapley"]) | {"n": len(self.effect)}

    def _share(self, name: str, part: Float[Tensor, " sequence"]) -> dict[str, float]:
        nothing = (float("nan"),) * 3
        found = ratio_interval(part.numpy(), self.effect.numpy()) if self.matters else nothing
        return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))

    def _require_matters(self) -> None:
        if not self.matters:
            mean, (low, high) = float(self.effect.mean()), mean_interval(self.effect.numpy())
            raise GatedInterpError(
                "layer-hardly-matters",
                layer=self.layer,
                metric=self.metric,
                change=f"{mean:+.3g}",
                low=f"{low:+.3g}",
                high=f"{high:+.3g}",
            )

    def carriers_table(self) -> pd.DataFrame:
        """What the first heads of :attr:`order` carry together, with all other heads off.

        Columns ``heads`` (how many), ``added`` (the last of them), ``share`` of the layer's effect
        with ``share_low`` and ``share_high``.

        Raises:
            GatedInterpError: the layer's effect is within noise of zero.
        """
        self._require_matters()
        added = ["", *(head_name((self.layer, h)) for h in self.order)]
        rows = [
            {"heads": k, "added": name, **self._share("share", self.carried[:, k])}
            for k, name in enumerate(added[: self.carried.shape[1]])
        ]
        return pd.DataFrame(rows)

    def carriers(self, share: float = 0.9) -> int:
        """The smallest number of heads that carry this share of the layer's effect alone.

        Heads are added in :attr:`order`, with all others off. Where what heads do together passes
        the share and falls below it again, the first time counts.

        Raises:
            GatedInterpError: the layer's effect is within noise of zero, or a share outside 0 to 1.
        """
        if not 0 < share <= 1:
            raise GatedInterpError("not-a-share-of-effect", name="share", value=share)
        shares = self.carriers_table()["share"]
        # All heads carry all of it; rounding may leave them short.
        return next((k for k, found in enumerate(shares) if found >= share), len(shares) - 1)

    @property
    def spread(self) -> float:
        """Over how many heads the effect is spread: the participation number of Shapley values.

        The squared sum of those that have the sign of the layer's effect over the sum of their
        squares: 1 where one head does all, as many as there are heads where all do the same.

        Raises:
            GatedInterpError: the layer's effect is within noise of zero.
        """
        self._require_matters()
        helps = (self.shapley.mean(0) * self.effect.mean().sign()).clamp(min=0)
        return float(helps.sum().square() / helps.square().sum())

    def summary(self) -> dict[str, float]:
        """``effect`` with ``effect_low`` and ``effect_high``, and where the layer matters
        ``carriers`` of 90%, ``spread`` and ``top_share``, the largest head's share."""
        low, high = mean_interval(self.effect.numpy())
        found = {"effect": float(self.effect.mean()), "effect_low": low, "effect_high": high}
        if self.matters:
            top = float((self.shapley.mean(0) / self.effect.mean()).max())
            found |= {"carriers": self.carriers(), "spread": self.spread, "top_share": top}
        return found


@torch.no_grad()
def head_effects(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    metric: MetricFunction | None = None,
    positions: Bool[Tensor, "..."] | Literal["repeats"] | None = None,
    method: Literal["mean", "zero", "resample"] = "mean",
    *,
    attention_mask: Mask | None = None,
    reference_tokens: Tokens | None = None,
    reference_mask: Mask | None = None,
    order: list[int] | None = None,
    permutations: int | None = None,
    seed: int = 0,
    bos: int | None = None,
) -> HeadEffects:
    """How much each head of a layer anywhere in a model matters, by intervention.

    Each head is off alone, on alone, and shares the layer's effect with the others by its Shapley
    value. Only the layers behind run again, so a late layer costs least. Heads whose z never
    differs from what replaces it, such as those whose gates stay shut, are not measured.

    On average text a single layer of a deep model hardly matters. Then there are no shares of its
    effect, and :attr:`HeadEffects.matters` says so. Measure where it matters: without ``tokens``
    these are random tokens, repeated, and only later copies count.

    Args:
        layer: may be left out where one layer holds a replacement, or the model has one.
        tokens: ``[batch pos]``; 25 random tokens repeated, see :func:`induction_scores`, unless
            given.
        metric: the next-token loss unless given; else a function of logits ``[batch pos d_vocab]``
            and tokens ``[batch pos]`` that gives a scalar, ``[batch]`` or ``[batch pos]``.
        positions: ``[batch pos]`` or ``[pos]``, where the loss, or a metric of each position, is
            measured; the loss at a position is that of the token after it. ``"repeats"``: where the
            token and the one after it follow each other as they did before in the sequence.
        method: ablated heads hold their ``mean`` z over ``tokens``, ``zero``, or the z of another
            sequence at the same position (``resample``).
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding, which is not counted.
        reference_tokens, reference_mask: take means or other sequences from these.
        order: heads in the order in which :meth:`HeadEffects.carriers` adds them. That of the
            Shapley values on these tokens unless given; give the ``order`` of effects on other
            tokens to choose on some and measure on others.
        permutations: draw so many orders for each sequence (an even number: half are the others
            backwards). Unless given, all subsets are measured up to 10 heads where that takes a
            minute or two, else two orders per sequence are drawn, or more of few sequences.
        seed: of orders, and of the sequences that ``resample`` takes.
        bos: the token that repeated random tokens begin with; that of the model's task or
            tokenizer unless given.

    Raises:
        GatedInterpError: no such layer, tokens the model cannot read, an unknown method, a metric
            or mask of another shape, nothing to measure, nothing that repeats, one sequence to
            resample from, an order that names other heads, more subsets than minutes allow.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_model
        >>> truth = induction_model()
        >>> tokens = truth.task.sample(30, seed=0).tokens
        >>> effects = head_effects(truth.model, 1, tokens, positions="repeats")
        >>> effects.carriers(), effects.table()["share"].round(2).tolist()
        (1, [1.0, 1.0])
    """
    layer = chosen_layer(model, layer)
    if tokens is None:
        tokens = repeated_random_tokens(model, SEQUENCES, seed=seed, bos=bos)
        positions = "repeats" if positions is None else positions
    batch = Batch.of(model, tokens, attention_mask)
    if metric is None:
        batch.require_loss()
    rest, source = Rest(model, layer, batch), generator(seed)
    game = game_for(
        rest, method, metric, _where(batch, positions), source, reference_tokens, reference_mask
    )
    n, live = rest.z.shape[2], game.live()
    if order is not None and sorted(order) != list(range(n)):
        raise GatedInterpError("bad-order", order=order, n=n)
    k = len(live)
    eye = torch.eye(k, dtype=torch.bool)
    on = torch.ones(1, k, dtype=torch.bool)
    found = game.same_in_all(torch.cat([on, ~on, ~eye, eye]), live)
    intact, none, off, alone = found[0], found[1], found[2 : 2 + k], found[2 + k :]
    shapley, exact = torch.zeros_like(off).T, True
    if k:
        shapley, exact = shapley_by_sequence(game, live, source, permutations)
    effect = none - intact

    def of_all(values: Float[Tensor, "sequence live"]) -> Float[Tensor, "sequence head_index"]:
        whole = values.new_zeros(len(values), n)
        whole[:, live] = values
        return whole.cpu()

    whole = of_all(shapley)
    if order is None:
        order = (whole.mean(0) * effect.mean().sign().cpu()).argsort(descending=True).tolist()
    first = torch.tensor(order).argsort()[live] < torch.arange(n + 1)[:, None]
    carried = none - game.same_in_all(first, live)
    return HeadEffects(
        layer=layer,
        metric="loss" if metric is None else metric_name(metric),
        method=method,
        intact=intact.cpu(),
        effect=effect.cpu(),
        off=of_all((off - intact).T),
        alone=of_all((none - alone).T),
        shapley=whole,
        order=order,
        carried=carried.T.cpu(),
        exact=exact,
    )


def _where(
    batch: Batch, positions: Bool[Tensor, "..."] | str | None
) -> Bool[Tensor, "batch pos"] | None:
    """``positions`` for every position of the tokens."""
    if positions is None:
        return None
    if isinstance(positions, str):
        if positions != "repeats":
            raise GatedInterpError(
                "not-one-of", name="positions", value=positions, choices=["repeats", "a mask"]
            )
        found = repeats(batch)
        if not bool(found.any()):
            raise GatedInterpError("nothing-repeats")
        return found
    return position_mask("positions", positions, batch.tokens)
