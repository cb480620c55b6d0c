"""A metric, per sequence, where some heads of one layer are on and the others ablated."""

import dataclasses
from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gated_interp.analysis.games import shapley_values
from gated_interp.analysis.logits import MetricFunction, metric_values
from gated_interp.analysis.replacements import other_rows
from gated_interp.analysis.rest import Rest
from gated_interp.analysis.subset_games import MOST
from gated_interp.anatomy.batch import Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide

# A head lives where its z differs from what replaces it by more than this share of the largest z.
LIVES = 1e-6
# Subsets are all measured up to so many live heads, where it takes no more multiplications than
# this: a minute or two of one core.
MAX_EXACT, MOST_EXACT = 10, 2**40
# Orders in all that are drawn where not every subset is measured.
ORDERS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class LayerGame:
    """What subsets of a layer's heads are worth on each sequence.

    Attributes:
        rest: the layer, and the model behind it.
        fill: what an ablated head's z is replaced by; of all rows and positions, or of each.
        metric: ``None`` is the next-token loss.
        positions: ``[batch pos]``, where it is measured; ``None`` is everywhere.
        known: what has been measured.
    """

    rest: Rest
    fill: Float[Tensor, "#batch #pos head_index d_head"]
    metric: MetricFunction | None
    positions: Bool[Tensor, "batch pos"] | None
    known: dict[bytes, Tensor] = dataclasses.field(default_factory=dict, repr=False)

    def live(self) -> list[int]:
        """The heads whose z differs anywhere from what replaces it."""
        z, counted = wide(self.rest.z), self.rest.batch.counted
        gap = (z - self.fill).abs().amax(-1)[counted].amax(0)
        most: list[int] = (gap > LIVES * z[counted].abs().max()).nonzero().flatten().tolist()
        return most

    def values(
        self, keep: Bool[Tensor, "subset batch live"], live: list[int]
    ) -> Float[Tensor, "subset sequence"]:
        """The metric where these heads are on, in each row others; heads that do not live stay.

        Of each sequence in which something is measured, or a single one of all sequences.

        Raises:
            GatedInterpError: nothing to measure, more logits than minutes allow, or as
                :func:`~gated_interp.analysis.logits.metric_values`.
        """
        z, rows = self.rest.z, self.measured
        whole = torch.ones(*keep.shape[:2], z.shape[2], dtype=torch.bool, device=z.device)
        whole[..., live] = keep.to(z.device)
        if not len(rows):
            raise GatedInterpError("no-positions-to-measure")
        counts = self._counts if self.metric is None else torch.ones_like(self._counts)
        if len(keep) * int(counts.sum()) * self.rest.model.unembed.W_U.shape[-1] > MOST:
            raise GatedInterpError(
                "too-many-subsets", subsets=len(keep), sequences=len(self.rest.batch)
            )
        if self.metric is not None:
            return torch.stack(self._found(whole, self._measured_by_metric))
        number = rows.int().expand(len(keep), -1)
        pairs = torch.cat([number[..., None], whole[:, rows]], -1).flatten(0, 1)
        return torch.stack(self._found(pairs, self._losses)).view(len(keep), len(rows))

    def _found(
        self, asked: Shaped[Tensor, "ask *each"], measure: Callable[[Tensor], list[Tensor]]
    ) -> list[Tensor]:
        """What is measured of each, once of those that are the same."""
        keys = [each.tobytes() for each in asked.cpu().numpy()]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        if new:
            chosen = asked[list(new.values())]
            self.known.update(zip(new, measure(chosen), strict=True))
        return [self.known[key] for key in keys]

    def _measured_by_metric(
        self, keep: Bool[Tensor, "subset batch head_index"]
    ) -> list[Float[Tensor, " sequence"]]:
        """A metric of one's own may be of all sequences together, so it gets them at once."""
        rest, metric = self.rest, self.metric
        assert metric is not None
        return [
            metric_values(metric, rest.logits(self._z(each)), rest.batch, self.positions).double()
            for each in keep
        ]

    def _losses(self, pairs: Int[Tensor, "ask number_and_heads"]) -> list[Float[Tensor, ""]]:
        """The loss of rows, by number, where some heads are on."""
        parts = torch.split(pairs, self.rest.rows_at_once(self._counts))
        each = [self._losses_of(part[:, 0].long(), part[:, 1:].bool()) for part in parts]
        return [*torch.cat(each)]

    def same_in_all(
        self, subsets: Bool[Tensor, "subset live"], live: list[int]
    ) -> Float[Tensor, "subset sequence"]:
        """:meth:`values` where the same heads are on in every row."""
        return self.values(subsets[:, None].expand(-1, len(self.rest.batch), -1), live)

    @property
    def measured(self) -> Int[Tensor, " sequence"]:
        """The rows in which something is measured."""
        return self._counts.any(1).nonzero().flatten()

    @cached_property
    def _counts(self) -> Bool[Tensor, "batch pos"]:
        """The positions that count; of the loss those whose next token is known."""
        batch = self.rest.batch
        there = torch.nn.functional.pad(batch.predicts, (0, 1))
        there = batch.counted if self.metric is not None else there
        return there if self.positions is None else there & self.positions

    def _losses_of(
        self, rows: Int[Tensor, " row"], keep: Bool[Tensor, "row head_index"]
    ) -> Float[Tensor, " row"]:
        loss = self.rest.losses(self._z(keep, rows), self._counts, rows)
        n = self._counts[rows].sum(1)
        of_row = torch.arange(len(rows), device=n.device).repeat_interleave(n)
        total = torch.zeros(len(rows), dtype=torch.double, device=n.device)
        return total.index_add_(0, of_row, loss.double()) / n

    def _z(
        self, keep: Bool[Tensor, "row head_index"], rows: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, "row pos head_index d_head"]:
        z = self.rest.z
        fill = self.fill if len(self.fill) == 1 or rows is None else self.fill[rows]
        return torch.where(keep[:, None, :, None], z if rows is None else z[rows], fill.to(z))


def game_for(
    rest: Rest,
    method: str,
    metric: MetricFunction | None,
    positions: Bool[Tensor, "batch pos"] | None,
    source: torch.Generator,
    reference_tokens: Tokens | None,
    reference_mask: Mask | None,
) -> LayerGame:
    """The game of a layer's heads, those that are off ablated by a method."""
    own = reference_tokens is None
    reference = (
        rest
        if own
        else Rest(rest.model, rest.layer, reference_tokens, attention_mask=reference_mask)
    )
    if method == "zero":
        fill = torch.zeros_like(rest.z[:1, :1])
    elif method == "mean":
        fill = reference.batch.mean(wide(reference.z))[None, None]
    elif method == "resample":
        fill = _resampled(rest, reference, source)
    else:
        choices = ["mean", "zero", "resample"]
        raise GatedInterpError("not-one-of", name="method", value=method, choices=choices)
    return LayerGame(rest, fill, metric, positions)


def _resampled(
    rest: Rest, reference: Rest, source: torch.Generator
) -> Float[Tensor, "batch pos head_index d_head"]:
    """Each row's z from another row, of the reference or of the batch itself."""
    n, pos = rest.batch.tokens.shape
    if reference.batch.real is not None:
        raise GatedInterpError("resample-with-padding")
    m, there = reference.batch.tokens.shape
    if there < pos:
        raise GatedInterpError("reference-too-short", n=there, wanted=pos)
    if reference is not rest:
        rows = torch.randint(m, (n,), generator=source)
    elif n == 1:
        raise GatedInterpError("nothing-to-resample")
    else:
        rows = other_rows(n, source)
    return reference.z[rows.to(reference.z.device), :pos]


def shapley_by_sequence(
    game: LayerGame, live: list[int], source: torch.Generator, permutations: int | None
) -> tuple[Float[Tensor, "sequence live"], bool]:
    """What the metric gains as each head goes, over subsets of those that are there, and whether
    every subset was measured.

    Else over random orders, half of them the others backwards; each sequence has orders of its own,
    so an interval over sequences is of both.
    """
    rows, heads = len(game.rest.batch), len(live)
    each = game.rest.weights * game.rest.batch.tokens.numel()
    if permutations is None and heads <= MAX_EXACT and 2**heads * each <= MOST_EXACT:
        numbers = torch.arange(2**heads)
        subsets = (numbers[:, None] >> torch.arange(heads) & 1).bool()
        return -shapley_values(game.same_in_all(subsets, live).T), True
    measured = game.measured
    intact = game.same_in_all(torch.ones(1, heads, dtype=torch.bool), live)
    own = intact.shape[1] == len(measured)  # else the metric is of all sequences together
    different = rows if own else 1
    pairs = -(-(permutations or max(2, ORDERS // different)) // 2)
    drawn = torch.rand(pairs, different, heads, generator=source).argsort(-1)
    rank = torch.cat([drawn, heads - 1 - drawn])  # of each head in its order, from 0
    step = torch.arange(heads + 1)[:, None, None]
    keep = (rank[:, None] < step).expand(-1, -1, rows, -1)  # [order step row head]
    found = game.values(keep.flatten(0, 1), live).view(len(rank), heads + 1, -1)
    gains = found[:, :-1] - found[:, 1:]  # [order step sequence]
    rank = (rank[:, measured.cpu()] if own else rank).transpose(1, 2).to(gains.device)
    return gains.gather(1, rank).mean(0).T, False
