"""Whether one set of removed heads breaks the answer in too many examples, exactly.

A head stays; each other head may stay or go. The worst set for one example is known in closed form
(:func:`gated_interp.analysis.verdict.worst_leads`), but different examples may be broken by
different sets. A set that breaks many is looked for first; where none is found, branch and bound
shows that there is none. The bound: two examples that one set breaks are broken *on average* too,
and the worst set for their average is again known in closed form.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CANDIDATES = 256
PAIRWISE = 256  # items up to which the bound over pairs is worth its cost


@dataclasses.dataclass(frozen=True)
class Items:
    """The (example, other token) pairs at which some set of removed heads breaks C.

    Attributes:
        alone: ``[item]``, by how much C leads when only head ``h`` stays (0 or less: broken).
        others: ``[item other_head]``, what each other head adds to that lead if it stays.
        example: ``[item]``, which example each is of.
        n_examples: of how many.
    """

    alone: Float[Tensor, " item"]
    others: Float[Tensor, "item other_head"]
    example: Int[Tensor, " item"]
    n_examples: int

    def broken(self, hit: Bool[Tensor, "set item"]) -> Int[Tensor, " set"]:
        """How many examples have an item that is hit, for each set."""
        counts = torch.zeros(len(hit), self.n_examples, device=hit.device)
        return (counts.index_add_(1, self.example, hit.float()) > 0).sum(1)

    def broken_by(self, stays: Float[Tensor, "set other_head"]) -> Int[Tensor, " set"]:
        """How many examples each set of heads that stay (1) or go (0) breaks."""
        return self.broken(self.alone + stays @ self.others.T <= 0)


def some_set_breaks(
    lead: Float[Tensor, "example head_index token"],
    worst: Float[Tensor, "example token"],
    h: int,
    allowed: int,
) -> bool:
    """Whether one non-empty set of heads other than ``h``, removed, breaks > ``allowed`` examples.

    Args:
        lead: by how much each head's write to C exceeds its write to each other token.
        worst: the least total lead while ``h`` stays, over those sets.
    """
    heads = lead.shape[1]
    example, token = (worst <= 0).nonzero(as_tuple=True)
    if heads == 1:
        return _distinct(example) > allowed  # nothing can go: the bound is the answer
    all_leads = lead[example, :, token]
    others = torch.cat([all_leads[:, :h], all_leads[:, h + 1 :]], 1)
    # Heads that move most are decided first.
    others = others[:, others.abs().sum(0).argsort(descending=True)]
    items = Items(all_leads[:, h], others, example, lead.shape[0])
    return _found(items, allowed) or _proved(items, allowed)


def _distinct(example: Int[Tensor, " item"]) -> int:
    return int((example.bincount() > 0).sum())


def _found(items: Items, allowed: int) -> bool:
    """Look where a breaking set is likely: the worst sets of single items, and sets near those."""
    worst_of = items.others[:: 1 + len(items.example) // CANDIDATES]
    stays = (worst_of < 0).to(worst_of)
    # One head has to go: where all hurt, the one that hurts least.
    mildest = worst_of.argmax(1)
    everyone = stays.all(1)
    stays[everyone, mildest[everyone]] = 0
    counts = []
    for first in range(0, len(stays), 16):
        counts.append(items.broken_by(stays[first : first + 16]))
        if int(counts[-1].max()) > allowed:
            return True
    every_count = torch.cat(counts)
    for start in every_count.topk(min(8, len(stays))).indices.tolist():
        kept, best = stays[start], int(every_count[start])
        while True:
            flipped = (kept - torch.eye(len(kept)).to(kept)).abs()
            flipped = flipped[~flipped.all(1).bool()]
            if not len(flipped):
                break
            near = items.broken_by(flipped)
            if int(near.max()) <= best:
                break
            kept, best = flipped[int(near.argmax())], int(near.max())
        if best > allowed:
            return True
    return False


def _proved(items: Items, allowed: int) -> bool:
    """Branch and bound over the other heads: complete, and quick where few items are left."""
    n_others = items.others.shape[1]
    # (how many heads are decided, which items are in play, their lead so far, whether a head went)
    everything = torch.arange(len(items.example), device=items.example.device)
    stack = [(0, everything, items.alone, False)]
    while stack:
        decided, index, kept, some_went = stack.pop()
        rest = items.others[index, decided:]
        live = kept + rest.clamp(max=0).sum(1) <= 0
        index, kept, rest = index[live], kept[live], rest[live]
        index, kept = _compatible(items, index, kept, rest, allowed)
        if _distinct(items.example[index]) <= allowed:
            continue
        if decided == n_others:
            if some_went:
                return True
            continue
        # A greedy completion often answers at once: keep the heads that hurt on balance.
        rest = items.others[index, decided:]
        hurts = rest.mean(0) < 0
        hit = kept + rest[:, hurts].sum(1) <= 0
        if (some_went or not hurts.all()) and _distinct(items.example[index[hit]]) > allowed:
            return True
        stack.append((decided + 1, index, kept, True))
        stack.append((decided + 1, index, kept + rest[:, 0], some_went))
    return False


def _compatible(
    items: Items,
    index: Int[Tensor, " item"],
    kept: Float[Tensor, " item"],
    rest: Float[Tensor, "item undecided_head"],
    allowed: int,
) -> tuple[Tensor, Tensor]:
    """The items that one set can break together with items of ``allowed`` other examples."""
    if len(index) > PAIRWISE:
        return index, kept
    together = (rest[:, None] + rest[None]).clamp(max=0).sum(-1)  # [item item]
    pair = kept[:, None] + kept[None] + together <= 0
    while len(index):
        partners = torch.zeros(len(index), items.n_examples, device=index.device)
        partners.index_add_(1, items.example[index], pair.float())
        stays = (partners > 0).sum(1) > allowed
        if stays.all():
            break
        index, kept, pair = index[stays], kept[stays], pair[stays][:, stays]
    return index, kept
