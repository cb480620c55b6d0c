"""Where one token stands before another in text, and what comes next there."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.encoded_text import Part
from gated_interp.tasks.text import TextTask

# Pairs of positions that are looked at at once; sequences of held-out text.
AT_ONCE, SEQUENCES = 2**21, 1000


def own_text(
    model: HookedTransformer,
    tokens: Tokens | None,
    part: Part,
    n: int,
    seed: int = 0,
    attention_mask: Mask | None = None,
    *,
    padding: bool = True,
) -> Batch:
    """``tokens``, or ``n`` sequences of a part of the model's own text.

    Raises:
        GatedInterpError: no tokens and no text, or tokens the model cannot read.
    """
    if tokens is None:
        if not isinstance(getattr(model, "task", None), TextTask):
            raise GatedInterpError("the model names no text; give tokens.")
        tokens = model.task.part(part).sample(n, seed).tokens.to(model.embed.W_E.device)
    return Batch.of(model, tokens, attention_mask, padding=padding)


def held_out_text(model: HookedTransformer, tokens: Tokens | None) -> Int[Tensor, "batch pos"]:
    """``tokens``, or the first 1,000 sequences of the ``test`` part of the model's own text.

    In order and without overlap, so that what one sequence says, no other repeats.

    Raises:
        GatedInterpError: no tokens and no text, or tokens the model cannot read.
    """
    if tokens is None and isinstance(getattr(model, "task", None), TextTask):
        batches = model.task.part("test").in_order(SEQUENCES)
        tokens = next(batches).to(model.embed.W_E.device)
    return own_text(model, tokens, "test", SEQUENCES, padding=False).tokens


def names_for(model: HookedTransformer, names: Sequence[str] | None) -> Sequence[str]:
    """``names`` of tokens, those of the model's task unless given, or else their numbers.

    Raises:
        GatedInterpError: fewer names than tokens.
    """
    if names is None:
        names = getattr(getattr(model, "task", None), "token_names", None)
    known = max(model.cfg.d_vocab, model.cfg.d_vocab_out)
    if names is None:
        names = [str(i) for i in range(known)]
    if len(names) < known:
        raise GatedInterpError(f"there are {len(names)} names; the model has {known} tokens.")
    return names


def seen_pairs(
    tokens: Int[Tensor, "batch pos"], kept: Int[Tensor, " kept"]
) -> Int[Tensor, "source destination"]:
    """In how many sequences each of ``kept`` stands somewhere before each of ``kept``.

    Examples:
        >>> seen_pairs(torch.tensor([[5, 3, 5], [5, 3, 4]]), torch.tensor([3, 5])).tolist()
        [[0, 1], [2, 1]]
    """
    n, length = len(kept), tokens.shape[1]
    place = torch.full((int(max(tokens.max(), kept.max())) + 1,), -1, device=tokens.device)
    place[kept] = torch.arange(n, device=tokens.device)
    before, after = torch.triu_indices(length, length, 1, device=tokens.device)
    counts = torch.zeros(n * n + 1, dtype=torch.long, device=tokens.device)
    for part in torch.split(tokens, max(1, AT_ONCE // length**2)):
        source, destination = place[part[:, before]], place[part[:, after]]
        pair = torch.where((source >= 0) & (destination >= 0), source * n + destination, n * n)
        pair = pair.sort(1).values
        first = torch.ones_like(pair, dtype=torch.bool)
        first[:, 1:] = pair[:, 1:] != pair[:, :-1]
        counts += pair[first].bincount(minlength=n * n + 1)
    return counts[:-1].view(n, n)


def last_before(tokens: Int[Tensor, "batch pos"], source: int) -> Int[Tensor, "batch pos"]:
    """The last position before each that holds ``source``; -1 where none does.

    Examples:
        >>> last_before(torch.tensor([[5, 3, 5, 4]]), 5).tolist()
        [[-1, 0, 0, 2]]
    """
    at = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    found = torch.where(tokens == source, at, -1).cummax(1).values
    return torch.cat([torch.full_like(found[:, :1], -1), found[:, :-1]], 1)


class Continuations:
    """How often ``[source] … [destination]`` goes on with a token in text, and how often by chance.

    Examples:
        >>> count = Continuations(torch.tensor([[5, 3, 8, 3, 7], [4, 3, 8, 3, 7]]))
        >>> count(5, 3, 8)  # two places, one followed by 8, as one of two is without a 5
        (2, 1, 1.0)
    """

    def __init__(self, tokens: Int[Tensor, "batch pos"]):
        self._tokens = tokens
        here = tokens[:, :-1]
        self._next = tokens[:, 1:].flatten()
        order = here.flatten().argsort()
        self._where = torch.split(order, here.flatten().bincount().tolist())
        self._behind: dict[int, Tensor] = {}

    def __call__(self, source: int, destination: int, out: int) -> tuple[int, int, float]:
        """
        Returns:
            Positions of ``destination`` with a ``source`` somewhere before it and a token after it;
            how many of these tokens are ``out``; and how many would be if ``out`` followed as often
            as it follows ``destination`` without a ``source`` before it (NaN where it never stands
            so).
        """
        if source not in self._behind:
            self._behind[source] = (last_before(self._tokens, source) >= 0)[:, :-1].flatten()
        if destination >= len(self._where):
            return 0, 0, float("nan")
        at = self._where[destination]
        behind, follows = self._behind[source][at], self._next[at] == out
        n, usual = int(behind.sum()), int((~behind).sum())
        expected = n * int((~behind & follows).sum()) / usual if usual else float("nan")
        return n, int((behind & follows).sum()), expected
