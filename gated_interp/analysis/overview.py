"""All heads of a model at a glance: what each is worth, and which attend in a known way.

A deep model has too many heads to read one by one. This says where to look first.
"""

import dataclasses
from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.heads import all_heads, head_counts
from gated_interp.analysis.induction import (
    attention_in,
    bos_of_model,
    followers,
    repeated_random_tokens,
)
from gated_interp.analysis.rest import Rest
from gated_interp.analysis.text_pairs import own_text
from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.written import change
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import originals

SEQUENCES, REPEATED = 16, 8
# Of a model of more layers, one layer is looked at after the overview.
DEEP = 4
# A head is marked where this share of its attention goes where the mark says.
MARKED = 0.4
# Heads times tokens times weights: below it, every head is ablated on every sequence (a minute).
EVERY = 2**40
# Above, so many sequences count, and the heads of so many layers.
FEW, LAYERS = 4, 3
MARKS = {
    "prefix_matching": "induction",
    "previous_token": "previous token",
    "first_token": "first token",
}
"""What a head is marked as, by the column of its score."""


@dataclasses.dataclass(frozen=True, eq=False)
class HeadOverview:
    """Every head of a model. Made by :func:`head_overview`.

    Attributes:
        table: one row per head: ``layer``, ``head``, ``effect`` (by how many nats per token the
            loss on the text rises without it), ``effect_repeats`` (the same where random tokens are
            repeated), ``prefix_matching`` (there), ``previous_token`` and ``first_token`` (on the
            text), each the mean share of the head's attention, 0 to 1. Missing is what was not
            measured.
        layers: one row per layer, numbered by the index: ``effect`` and ``effect_repeats`` of all
            its heads at once.
        loss, loss_repeats: of the model as it is, in nats per token.
        read: how many tokens of the text, and of repeats, effects were measured on.
        spliced: the layers that hold a replacement.
    """

    table: pd.DataFrame
    layers: pd.DataFrame
    loss: float
    loss_repeats: float
    read: tuple[int, int]
    spliced: list[int]

    @property
    def every(self) -> bool:
        """Whether each head was ablated, and not only those of some layers."""
        return not bool(self.table["effect"].isna().any())

    @property
    def marks(self) -> list[list[str]]:
        """Of each row, what the head is marked as, of :data:`MARKS`."""
        scores = self.table[[*MARKS]].to_numpy(float)
        return [
            [word for word, score in zip(MARKS.values(), row, strict=True) if score >= MARKED]
            for row in scores
        ]

    @property
    def layer(self) -> int:
        """The layer to look at first: see :attr:`why`."""
        if self.spliced:
            return self.spliced[0]
        return int(self.layers[self._column].to_numpy().argmax())

    @property
    def why(self) -> str:
        """Why that one, in a sentence."""
        if self.spliced:
            return f"Layer {self.layer} holds a replacement."
        where = "repeated tokens" if self._column == "effect_repeats" else "text"
        rise = change(self.layers[self._column][self.layer], 2)
        return f"Without layer {self.layer}'s heads, the loss on {where} rises most ({rise} nats)."

    @property
    def _column(self) -> str:
        return "effect" if self.layers["effect_repeats"].isna().all() else "effect_repeats"


def head_overview(
    model: HookedTransformer,
    tokens: Tokens | None = None,
    *,
    n: int = REPEATED,
    seed: int = 0,
    bos: int | None = None,
    every: bool | None = None,
    attention_mask: Mask | None = None,
) -> HeadOverview:
    """What every layer's heads are worth, and which heads attend in a known way.

    A head is worth what the loss rises by when its output is replaced by its mean over the same
    sequences (mean ablation). In a large model, all heads of each layer are ablated at once, on a
    few sequences; then one by one the heads of the three layers that matter most on each text. A
    gradient would be faster and misses what matters: in SmolLM2 the head that most of the copying
    hangs on, L16H0, would get an effect of -0.3 nats instead of 4.2.

    Args:
        tokens: text; 16 sequences of the ``test`` part of the model's own unless given.
        n: sequences of repeated random tokens.
        seed: of these.
        bos: the token they begin with; that of the model's task unless given.
        every: whether every head is ablated, on every sequence; by the size of the model unless
            given.
        attention_mask: of ``tokens``, 1 at tokens and 0 at padding.

    Raises:
        GatedInterpError: no text, tokens the model cannot read, a model that predicts no tokens, or
            a layer without attention.

    Examples:
        >>> from gated_interp.models.analytic_tasks import induction_model
        >>> truth = induction_model()
        >>> found = head_overview(truth.model, truth.task.sample(20, seed=0).tokens, bos=0)
        >>> found.marks, found.layer, found.every
        ([['previous token'], ['induction']], 0, True)
    """
    text = own_text(model, tokens, "test", SEQUENCES, seed, attention_mask)
    text.require_loss()
    repeated = _repeated(model, n, seed, bos)
    if every is None:
        read = text.tokens.numel() + (0 if repeated is None else repeated.tokens.numel())
        weights = sum(p.numel() for p in model.parameters())
        every = len(all_heads(model)) * read * weights < EVERY
    table = pd.DataFrame(all_heads(model), columns=["layer", "head"])
    layers = pd.DataFrame(index=pd.RangeIndex(model.cfg.n_layers, name="layer"))
    losses, counts = [], []
    for name, batch, scores in (
        ("effect", text, text_scores),
        ("effect_repeats", repeated, _repeats),
    ):
        used = batch if every or batch is None else _shorter(batch[:FEW], scores is _repeats)
        found = _Effects.none(model) if used is None else _effects(model, used, every, scores)
        layers[name], table[name] = found.layers, found.heads
        for mark, values in found.scores.items():
            table[mark] = values
        losses.append(found.loss)
        counts.append(0 if used is None else int(used.counted.sum()))
    for mark in set(MARKS) - set(table):
        table[mark] = float("nan")
    order = ["layer", "head", "effect", "effect_repeats", *MARKS]
    return HeadOverview(
        table[order], layers, losses[0], losses[1], (counts[0], counts[1]), sorted(originals(model))
    )


def _repeated(model: HookedTransformer, n: int, seed: int, bos: int | None) -> Batch | None:
    """Repeated random tokens; ``None`` where the model has no room or no token to begin with."""
    try:
        bos = bos_of_model(model, bos)
        return Batch.of(model, repeated_random_tokens(model, n, seed=seed, bos=bos))
    except GatedInterpError as error:
        if error.code in ("no-first-token", "context-too-short-for-repeats"):
            return None
        raise


def _shorter(batch: Batch, repeats: bool) -> Batch:
    """Of repeated tokens, the first two times they are said."""
    if not repeats:
        return batch
    again = int((batch.tokens[0, 2:] == batch.tokens[0, 1]).nonzero()[0]) + 1
    return dataclasses.replace(batch, tokens=batch.tokens[:, : 2 * again + 1])


Scores = dict[str, Tensor]
Score = Callable[[Float[Tensor, "batch head query_pos key_pos"], Batch], Scores]


def text_scores(
    pattern: Float[Tensor, "batch head_index query_pos key_pos"], batch: Batch
) -> dict[str, Float[Tensor, " head_index"]]:
    """Each head's attention to the token before and to the first, but for the first two positions.

    The columns ``previous_token`` and ``first_token`` of :class:`HeadOverview`.
    """
    asked = batch.later[:, 1:] & batch.later[:, :-1]
    first = batch.counted.long().argmax(1)  # padding may stand before it
    sink = pattern.gather(3, first[:, None, None, None].expand(*pattern.shape[:3], 1))[..., 0]
    n = asked.sum().clamp(min=1)
    return {
        "previous_token": (pattern.diagonal(-1, 2, 3) * asked[:, None]).sum((0, 2)) / n,
        "first_token": (sink[:, :, 1:] * asked[:, None]).sum((0, 2)) / n,
    }


def _repeats(pattern: Tensor, batch: Batch) -> Scores:
    """Attention to the keys that follow an earlier copy of the query's token."""
    after = followers(batch)
    return {"prefix_matching": (pattern * after[:, None]).sum((0, 2, 3)) / after.any(-1).sum()}


@dataclasses.dataclass(frozen=True, eq=False)
class _Effects:
    """What was measured on one text: the loss, effects by layer and by head, scores of heads."""

    loss: float
    layers: list[float]
    heads: list[float]
    scores: dict[str, list[float]]

    @classmethod
    def none(cls, model: HookedTransformer) -> "_Effects":
        """Of a text that is not there."""
        nan = float("nan")
        return cls(nan, [nan] * model.cfg.n_layers, [nan] * len(all_heads(model)), {})


@torch.no_grad()
def _effects(model: HookedTransformer, batch: Batch, every: bool, score: Score) -> _Effects:
    known = torch.zeros_like(batch.counted)
    known[:, :-1] = batch.predicts
    if score is _repeats:  # elsewhere nothing says what comes next
        known &= followers(batch).any(-1)
    counts, scores, loss = head_counts(model), dict[str, list[float]](), 0.0
    ends = ("hook_resid_pre", "hook_z", "hook_pattern", "hook_gated_pattern")
    _, cache = batch.cache(model, lambda name: name.endswith(ends), stop_at_layer=len(counts))

    def loss_of(rest: Rest, z: Tensor) -> float:
        total = 0.0
        for first in range(0, len(batch), step := rest.rows_at_once(known)):
            rows = slice(first, first + step)
            total += float(rest.losses(z[rows], known, rows).sum())
        return total / int(known.sum())

    def without(layer: int, heads: list[list[int]]) -> list[float]:
        found, mean = [], batch.mean(wide(rests[layer].z)).to(rests[layer].z)
        for some in heads:
            z = rests[layer].z.clone()
            z[:, :, some] = mean[some]
            found.append(loss_of(rests[layer], z) - loss)
        return found

    rests = [Rest(model, layer, batch, held=cache) for layer in range(len(counts))]
    loss = loss_of(rests[-1], rests[-1].z)
    for layer, n in enumerate(counts):
        for name, value in score(attention_in(cache, layer, n), batch).items():
            scores.setdefault(name, []).extend(value.tolist())
    layers = [without(layer, [[*range(n)]])[0] for layer, n in enumerate(counts)]
    most = sorted(range(len(counts)), key=lambda i: -abs(layers[i]))
    measured = set(most if every else most[:LAYERS])
    heads: list[float] = []
    for layer, n in enumerate(counts):
        missing = [float("nan")] * n
        heads += without(layer, [[h] for h in range(n)]) if layer in measured else missing
    return _Effects(loss, layers, heads, scores)
