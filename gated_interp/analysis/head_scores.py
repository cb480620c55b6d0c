"""What heads of language models are known by: scores on sequences made for it."""

import pandas as pd
import torch

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer

RANDOM_TOKENS, REPEATS = 25, 4


@torch.no_grad()
def prefix_matching(
    model: HookedTransformer, *, n: int = 50, seed: int = 0, bos: int | None = None
) -> pd.DataFrame:
    """How far each head attends to what followed the present token before (induction heads do).

    Olsson et al. 2022, "In-context Learning and Induction Heads", appendix: 25 random tokens are
    repeated four times behind the token that a text begins with. Where the context is shorter,
    repeats are left out, down to two; then tokens.

    Args:
        n: sequences.
        bos: the token to begin with; the model's own unless given.

    Returns:
        One row per head: ``layer``, ``head_index``, ``prefix_matching``, the mean of the pattern's
        entries from a token to the token behind each earlier copy of it (as published; with four
        repeats at most 1/2), and ``matched``, the mean of their sum (at most 1).

    Raises:
        GatedInterpError: a context of fewer than five positions, or a model that names no token to
            begin with.

    Examples:
        >>> from gated_interp.models.language_model import LanguageModelConfig, build_language_model
        >>> shape = LanguageModelConfig(d_vocab=300, n_ctx=101, d_model=32, n_heads=4)
        >>> prefix_matching(build_language_model(shape), n=2, bos=0).columns.tolist()
        ['layer', 'head_index', 'prefix_matching', 'matched']
    """
    if bos is None:
        bos = getattr(getattr(model, "task", None), "bos", None)
        if bos is None:
            raise GatedInterpError("the model names no token to begin with; give bos=.")
    repeats = max(2, min(REPEATS, (model.cfg.n_ctx - 1) // RANDOM_TOKENS))
    length = min(RANDOM_TOKENS, (model.cfg.n_ctx - 1) // repeats)
    if length < 2:
        raise GatedInterpError(
            f"the model's context has {model.cfg.n_ctx} positions; prefix matching needs 5."
        )
    source = generator(seed)
    # Drawn without repetition: every copy is one of the repeats.
    order = torch.rand(n, model.cfg.d_vocab, generator=source)
    order[:, bos] = 2.0
    drawn = order.argsort(-1)[:, :length]
    tokens = torch.cat([torch.full((n, 1), bos), drawn.repeat(1, repeats)], 1)
    tokens = tokens.to(model.embed.W_E.device)
    query, key = _pairs(length, repeats)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(tokens, return_type=None, names_filter=names)
    rows = []
    for layer, name in enumerate(names):
        entries = cache[name][:, :, query, key].double().mean(0)  # [head_index pair]
        n_queries = len(set(query))
        for head, values in enumerate(entries):
            rows.append((layer, head, float(values.mean()), float(values.sum()) / n_queries))
    columns = ["layer", "head_index", "prefix_matching", "matched"]
    return pd.DataFrame(rows, columns=columns)


def _pairs(length: int, repeats: int) -> tuple[list[int], list[int]]:
    """Positions of tokens in later copies, and of what follows each earlier copy of them."""
    pairs = [
        (1 + copy * length + i, 2 + earlier * length + i)
        for copy in range(1, repeats)
        for earlier in range(copy)
        for i in range(length)
    ]
    return [query for query, _ in pairs], [key for _, key in pairs]
