"""How far an adversary moves a replacement's predictions by opening what is shut.

A replacement explains a layer if what it leaves shut does not matter. So shut gates and unused
heads are opened, at random and by gradient ascent on masks between 0 (as it is) and 1 (open), as
in *Adversarial Parameter Decomposition* (2026); the longer the ascent, the higher the rung.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gated_interp.analysis.heads import intervened
from gated_interp.analysis.replacements import Edits
from gated_interp.anatomy.batch import Batch, Mask, Tokens, logit_rows
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.metrics.intervals import mean_interval
from gated_interp.metrics.predictions import kl_divergence, next_token_loss
from gated_interp.metrics.reconstruction import pairs_of
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.replacement import Replacement, active
from gated_interp.replacements.splice import originals, replacement_in, splice_in, unsplice

RUNGS = (20, 40, 80, 160, 320)
SHUT = 1e-3
"""A gate up to this is shut, as in L0."""
# Numbers of masks that are there at once.
AT_ONCE = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class AdversaryLadder:
    """KL(original || model) in nats per position, of each sequence, by how much is opened.

    Attributes:
        kl: by rung, ``[sequence]``: ``nothing opened``, ``opened at random``, ``20 steps``..,
            ``layer zeroed`` and ``random weights``.
        steps: by rung, of gradient ascent; rungs that are none are not there.
        shut: what can be opened, as a share of all: (head, query, key) triples of gated blocks,
            (head, position) pairs of others.
        loss: by rung, ``[sequence]``: next-token loss in nats where the KL is as high as that, and
            of the ``original``; empty where the model predicts no tokens of its own vocabulary.
    """

    kl: dict[str, Float[Tensor, " sequence"]] = dataclasses.field(repr=False)
    steps: dict[str, int]
    shut: float
    loss: dict[str, Float[Tensor, " sequence"]] = dataclasses.field(repr=False)

    def table(self) -> pd.DataFrame:
        """One row per rung: ``rung``, ``steps``, ``kl``, ``kl_low``, ``kl_high``, ``sequences``.

        The interval is of 95%, over sequences; missing where there is only one. Where there is a
        loss, ``loss_increase`` says by how many nats per token it is above the original's.
        """
        rows = []
        for rung, kl in self.kl.items():
            low, high = mean_interval(kl.double().cpu().numpy())
            steps = self.steps.get(rung)
            rows.append(
                {
                    **{"rung": rung, "steps": steps, "kl": float(kl.double().mean())},
                    **{"kl_low": low, "kl_high": high, "sequences": len(kl)},
                    **self._increase(rung),
                }
            )
        return pd.DataFrame(rows).astype({"steps": "Int64"})

    def _increase(self, rung: str) -> dict[str, float]:
        if not self.loss:
            return {}
        increase = self.loss[rung].double() - self.loss["original"].double()
        return {"loss_increase": float(increase.mean())}

    def __repr__(self) -> str:
        values = ", ".join(f"{rung} {float(kl.mean()):.3g}" for rung, kl in self.kl.items())
        return f"AdversaryLadder({self.shut:.0%} shut; KL: {values})"


def adversary_ladder(
    model: HookedTransformer,
    layer: int | None = None,
    tokens: Tokens | None = None,
    *,
    seed: int,
    rungs: Sequence[int] = RUNGS,
    draws: int = 4,
    restarts: int = 3,
    attention_mask: Mask | None = None,
) -> AdversaryLadder:
    """How far predictions move when an adversary opens what replacements keep shut.

    What is opened: in a gated block each shut gate (at most 0.001), for its (head, query, key);
    in another replacement each head at each position where it does not write, which then writes
    what its attention alone would have it write. A mask says how far, from 0 to 1. ``opened at
    random`` opens each fully with probability one half. The adversary starts at one half, then
    again at random masks, and takes steps along the sign of the gradient of the KL, of size
    ``5 / (20 + step)``. Each sequence keeps the worst that any start has found so far, so that
    rungs never fall. What it finds is a lower bound: a better adversary may find more.

    Beside it stand the original with the layer's writes zeroed, and the model whose blocks have
    their weights shuffled: numbers of the same sizes that compute nothing.

    Args:
        layer: whose replacement is opened; unless given, all of the model's together.
        tokens: ``[batch pos]``.
        seed: of the random openings, of the random starts and of the shuffled weights.
        rungs: numbers of steps, rising.
        draws: random openings to average over.
        restarts: starts of the ascent. Each costs as many passes as the longest rung has steps.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding.

    Raises:
        GatedInterpError: no replacement, tokens the model cannot read, or bad rungs, draws or
            restarts.

    Examples:
        >>> import gated_interp as gi
        >>> model = gi.load("2H3ST-gated")
        >>> tokens = model.task.sample(20, seed=0).tokens
        >>> ladder = adversary_ladder(model, 0, tokens, seed=0, rungs=(2, 4), draws=1)
        >>> table = ladder.table().set_index("rung")["kl"]
        >>> bool(table["nothing opened"] < table["2 steps"] <= table["4 steps"])
        True
    """
    batch = Batch.of(model, tokens, attention_mask)
    layers = list(originals(model)) if layer is None else [layer]
    blocks = {i: replacement_in(model, i) for i in layers}
    for i, block in blocks.items():
        if block is None:
            raise GatedInterpError("no-replacement", layer=i)
    if not blocks:
        raise GatedInterpError("nothing-spliced")
    if not rungs or list(rungs) != sorted(set(rungs)) or rungs[0] < 1:
        raise GatedInterpError("bad-rungs", rungs=list(rungs))
    for what, value in (("draws", draws), ("restarts", restarts)):
        if value < 1:
            raise GatedInterpError("too-small", name=what, value=value, least=1)
    named = {i: block for i, block in blocks.items() if block is not None}
    original = unsplice(model, layer)
    shuffled = _shuffled(original, named, seed)
    zeroed: Edits = {f"blocks.{i}.hook_attn_out": torch.zeros_like for i in named}
    coins = {
        (i, draw): generator(derive(seed, Stream.LADDER, i, draw))
        for i in named
        for draw in range(draws)
    }
    starts = {
        (i, start): generator(derive(seed, Stream.LADDER_STARTS, i, start))
        for i in named
        for start in range(1, restarts)
    }
    found: dict[str, list[_Moved]] = {}
    shut, every = 0, 0
    pairs = max(len(block.W_O) for block in named.values()) * batch.tokens.shape[1] ** 2
    rows = min(logit_rows(batch, model.cfg.d_vocab_out), max(1, AT_ONCE // pairs))
    # Where heads without gates write; what is typical is measured on all of the batch.
    writing = {
        i: _writing(model, i, block, batch, rows)
        for i, block in named.items()
        if not isinstance(block, GatedAttention)
    }
    for n, part in enumerate(batch.split(rows)):
        opener = _Opener.of(model, original, named, part, {i: w[n] for i, w in writing.items()})
        shut += sum(int(mask.sum()) for mask in opener.shut.values())
        every += sum(int(mask.sum()) for mask in opener.could.values())
        some = {"nothing opened": opener.moved({}), "opened at random": opener.at_random(coins)}
        some |= opener.ascended(rungs, restarts, starts)
        with torch.no_grad():
            with intervened(original, zeroed):
                some["layer zeroed"] = opener.compared(part.logits(original))
            some["random weights"] = opener.compared(part.logits(shuffled))
        some["original"] = opener.compared(opener.intact)
        for rung, moved in some.items():
            found.setdefault(rung, []).append(moved)
    kl, loss = (
        {
            rung: torch.cat([getattr(part, what).detach() for part in parts])
            for rung, parts in found.items()
        }
        for what in ("kl", "loss")
    )
    del kl["original"]
    steps = {"nothing opened": 0} | {f"{n} steps": n for n in rungs}
    return AdversaryLadder(kl, steps, shut / every, loss if batch.next_token else {})


@dataclasses.dataclass(frozen=True)
class _Moved:
    """How far predictions moved, and the next-token loss that they have (NaN where none)."""

    kl: Float[Tensor, " batch"]
    loss: Float[Tensor, " batch"]

    def or_worse(self, other: "_Moved") -> "_Moved":
        """Of each sequence the one that moved further; without gradients."""
        further = other.kl > self.kl
        kl, loss = other.kl.where(further, self.kl), other.loss.where(further, self.loss)
        return _Moved(kl.detach(), loss.detach())


Masks = dict[int, Tensor]
"""By layer, how far each gate or head is opened: ``[batch head_index query_pos key_pos]`` of a
gated block, ``[batch pos head_index]`` of another."""


@torch.no_grad()
def _writing(
    model: HookedTransformer, layer: int, block: Replacement, batch: Batch, rows: int
) -> tuple[Tensor, ...]:
    """Where each head writes, ``[rows pos head_index]``, so many rows at a time."""
    name = f"blocks.{layer}.attn.hook_z"
    z = [part.cache(model, name, stop_at_layer=layer + 1)[1][name] for part in batch.split(rows)]
    return torch.split(active(torch.cat(z), block.W_O, counted=batch.real), rows)


@dataclasses.dataclass(frozen=True)
class _Opener:
    """Some sequences, what the original predicts, and what can be opened.

    Attributes:
        shut: by layer, 1 at what is shut and can be opened, else 0.
        could: by layer, 1 at all that there is, shut or not.
    """

    model: HookedTransformer
    blocks: dict[int, Replacement]
    batch: Batch
    intact: Float[Tensor, "batch pos d_vocab"]
    shut: Masks
    could: Masks

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: HookedTransformer,
        original: HookedTransformer,
        blocks: dict[int, Replacement],
        batch: Batch,
        writing: dict[int, Tensor],
    ) -> "_Opener":
        counted, n = batch.counted, batch.tokens.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=counted.device).tril()
        pairs = (pairs_of(counted) & causal)[:, None]
        shut, could = {}, {}
        for layer, block in blocks.items():
            if isinstance(block, GatedAttention):
                name = f"blocks.{layer}.attn.hook_gate"
                gate = batch.cache(model, name, stop_at_layer=layer + 1)[1][name]
                is_shut, there = gate <= SHUT, pairs.expand(gate.shape)
            else:
                is_shut = ~writing[layer]
                there = counted[..., None].expand(is_shut.shape)
            could[layer] = there.float()
            shut[layer] = (is_shut & there).float()
        return cls(model, blocks, batch, batch.logits(original), shut, could)

    def compared(self, logits: Float[Tensor, "batch pos d_vocab"]) -> _Moved:
        """How far these predictions are from the original's, and how good they are."""
        batch = self.batch
        kl = kl_divergence(self.intact, logits, batch.real)
        if not batch.next_token:
            return _Moved(kl, torch.full_like(kl.detach(), torch.nan))
        return _Moved(kl, next_token_loss(logits.detach(), batch.tokens, batch.known))

    def opened(self, masks: Masks) -> AbstractContextManager[HookedTransformer]:
        """The model with what is shut opened as far as masks say."""
        edits: Edits = {}
        for layer, mask in masks.items():
            edits |= _opening(self.blocks[layer], layer, mask * self.shut[layer])
        return intervened(self.model, edits)

    def moved(self, masks: Masks) -> _Moved:
        """How far the predictions move."""
        with self.opened(masks):
            return self.compared(self.batch.logits(self.model))

    @torch.no_grad()
    def at_random(self, coins: dict[tuple[int, int], torch.Generator]) -> _Moved:
        """How far they move on average where each is opened with probability one half."""
        found = []
        for draw in sorted({draw for _, draw in coins}):
            masks = {}
            for layer, shut in self.shut.items():
                tossed = torch.rand(shut.shape, generator=coins[layer, draw])
                masks[layer] = (tossed < 0.5).to(shut)
            found.append(self.moved(masks))
        kl, loss = (torch.stack([getattr(m, what) for m in found]) for what in ("kl", "loss"))
        return _Moved(kl.mean(0), loss.mean(0))

    def ascended(
        self, rungs: Sequence[int], restarts: int, starts: dict[tuple[int, int], torch.Generator]
    ) -> dict[str, _Moved]:
        """How far they move after so many steps of gradient ascent, the worst of all starts."""
        found: dict[str, _Moved] = {}
        for start in range(restarts):
            masks = {layer: torch.full_like(shut, 0.5) for layer, shut in self.shut.items()}
            if start:
                masks = {
                    layer: torch.rand(half.shape, generator=starts[layer, start]).to(half)
                    for layer, half in masks.items()
                }
            for rung, worst in self._climbed(rungs, masks).items():
                found[rung] = found[rung].or_worse(worst) if rung in found else worst
        return found

    def _climbed(self, rungs: Sequence[int], masks: Masks) -> dict[str, _Moved]:
        """The same from one start, the worst so far."""
        found: dict[str, _Moved] = {}
        worst: _Moved | None = None
        for step in range(rungs[-1] + 1):
            with torch.enable_grad():
                leaves = [mask.requires_grad_() for mask in masks.values()]
                moved = self.moved(masks)
                slopes = torch.autograd.grad(moved.kl.sum(), leaves)
            worst = (worst or moved).or_worse(moved)
            if step in rungs:
                found[f"{step} steps"] = worst
            size = 5 / (20 + step)
            masks = {
                layer: (mask.detach() + size * slope.sign()).clamp(0, 1)
                for (layer, mask), slope in zip(masks.items(), slopes, strict=True)
            }
        return found


def _opening(block: Replacement, layer: int, by: Tensor) -> Edits:
    """The edits that open a block's gates, or else its heads, ``by`` this much."""
    prefix = f"blocks.{layer}.attn."
    if isinstance(block, GatedAttention):
        return {f"{prefix}hook_gate": lambda gate: gate + by.to(gate) * (1 - gate)}
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Callable[[Tensor], None]:
        return lambda value: seen.update({name: value})

    def opened(z: Tensor) -> Tensor:
        would = block.opened({**seen, "hook_z": z})
        return z + by[..., None].to(z) * (would - z)

    looks = {f"{prefix}{name}": look(name) for name in block.opened_from}
    return {**looks, f"{prefix}hook_z": opened}


@torch.no_grad()
def _shuffled(
    original: HookedTransformer, blocks: dict[int, Replacement], seed: int
) -> HookedTransformer:
    """The model with the numbers of each of its blocks' weights in another order."""
    model = copy.deepcopy(original)
    for layer, block in blocks.items():
        source = generator(derive(seed, Stream.LADDER_SHUFFLED, layer))
        mixed = copy.deepcopy(block)
        for name, weight in mixed.named_parameters():
            if not name.startswith("original."):
                order = torch.randperm(weight.numel(), generator=source).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
        splice_in(model, layer, mixed)
    return model
