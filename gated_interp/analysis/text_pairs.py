"""A model's text, the names of its tokens, and where one stands before another."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from gated_interp.anatomy.batch import Batch, Mask, Tokens
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.encoded_text import Part
from gated_interp.tasks.text import TextTask

AT_ONCE = 2**21  # pairs of positions


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
    """``tokens``, or ``n`` sequences of a part of the model's own text."""
    if tokens is None:
        if not isinstance(getattr(model, "task", None), TextTask):
            raise GatedInterpError("no-text")
        drawn: Tensor = model.task.part(part).sample(n, seed).tokens.to(model.embed.W_E.device)
        # A document may end where a sequence does; that token is no padding.
        tokens, attention_mask = drawn, torch.ones_like(drawn)
    return Batch.of(model, tokens, attention_mask, padding=padding)


def names_for(model: HookedTransformer, names: Sequence[str] | None) -> Sequence[str]:
    """``names`` of tokens, those of the model's task unless given, or else their numbers."""
    known = max(model.cfg.d_vocab, model.cfg.d_vocab_out)
    if names is None:
        names = getattr(getattr(model, "task", None), "token_names", ())
        # Of all tokens where there is no task; else of those that its tokenizer leaves unused.
        names = [*names, *(str(i) for i in range(len(names), known))]
    if len(names) < known:
        raise GatedInterpError("too-few-names", names=len(names), tokens=known)
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
