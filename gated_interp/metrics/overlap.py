"""How much heads write at the same position."""

import torch
from jaxtyping import Float
from torch import Tensor


def overlap(squared: Float[Tensor, "*batch head_index"]) -> Float[Tensor, "*batch"]:
    """``(sum_h n_h)^2 - sum_h n_h^2`` from the squared lengths ``n_h^2`` of the heads' writes."""
    # The square root's slope at zero is infinite; a head that writes nothing has no gradient.
    writes = squared > 1e-12
    lengths = torch.where(writes, torch.where(writes, squared, 1.0).sqrt(), 0.0)
    return lengths.sum(-1).square() - lengths.square().sum(-1)


def overlap_cost(
    shared: Float[Tensor, "*batch"], unit: Float[Tensor, "*unit"], power: float
) -> Float[Tensor, "*batch"]:
    """``unit * (shared / unit)^power``.

    Above power 1 much overlap at few positions costs more than little at many.
    """
    if power == 1:
        return shared
    return unit * (shared / unit).clamp(min=0) ** power
