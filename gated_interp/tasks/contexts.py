"""A position without positional signal: its query token and the counts of its prefix.

With no positional embedding, what one layer of attention writes at a position depends on its own
token and on how often each token has occurred up to it, and on nothing else.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Positions as (query token, prefix counts).

    Attributes:
        query: ``[context]``, the token at the position.
        counts: ``[context d_vocab]``, how often each token occurs up to and including it.
        total_counts: ``[context d_vocab]``, how often each token occurs in the whole sequence
            (the penalty over all pairs needs the keys behind the query too).
        target: ``[context]``, the next token; -1 at the last position.
    """

    query: Int[Tensor, " context"]
    counts: Float[Tensor, "context d_vocab"]
    total_counts: Float[Tensor, "context d_vocab"]
    target: Int[Tensor, " context"]

    def __len__(self) -> int:
        return self.query.shape[0]


def contexts_of(tokens: Int[Tensor, "batch pos"], d_vocab: int) -> Contexts:
    """Every position of ``tokens`` as a context, in reading order.

    Examples:
        >>> c = contexts_of(torch.tensor([[3, 0, 0]]), d_vocab=4)
        >>> c.counts.tolist()
        [[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0], [2.0, 0.0, 0.0, 1.0]]
    """
    batch, pos = tokens.shape
    one_hot = torch.nn.functional.one_hot(tokens, d_vocab).float()
    counts = one_hot.cumsum(1)
    target = torch.full((batch, pos), -1, dtype=torch.long, device=tokens.device)
    target[:, :-1] = tokens[:, 1:]
    total = counts[:, -1:].expand(-1, pos, -1)
    return Contexts(
        query=tokens.flatten(),
        counts=counts.flatten(0, 1),
        total_counts=total.reshape(batch * pos, d_vocab),
        target=target.flatten(),
    )
