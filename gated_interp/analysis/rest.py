"""Run what stands behind a layer's heads, and nothing before it, for any change of what they write.

An intervention on the heads of one layer leaves the layers below it as they are. So they run once;
each question then costs the layers behind, and logits only where they are asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated_interp.analysis.heads import intervened
from gated_interp.analysis.replacements import Edits
from gated_interp.anatomy.batch import Batch, Mask, Tokens, logits_at_once, position_mask
from gated_interp.core.components import AbstractAttention
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.heads import HeadAttention
from gated_interp.replacements.splice import chosen_layer

# Tokens that run through the layers at once.
TOKENS_AT_ONCE = 2**11
# Logits that a loss is made of at once.
LOSSES_AT_ONCE = 2**21

Where = Bool[Tensor, "..."] | slice | None
"""Positions: a mask ``[batch pos]`` or ``[pos]``, a slice of positions, or all of them."""


@contextmanager
def nothing_read(attn: Any) -> Iterator[None]:
    """While this lasts, the attention reads next to nothing: its z is replaced anyhow.

    An attention whose code is not known, or that somebody watches, stays as it is.
    """
    known = any(
        isinstance(attn, kind) and type(attn).forward is kind.forward
        for kind in (AbstractAttention, HeadAttention)
    )
    if not known or any(m._forward_hooks or m._forward_pre_hooks for m in attn.modules()):
        yield
        return
    whole = attn.forward

    def forward(query_input: Tensor, key_input: Tensor, value_input: Tensor, **_: Any) -> Tensor:
        output: Tensor
        if isinstance(attn, HeadAttention):
            heads, d_head, _m = attn.W_O.shape
            z = query_input.new_zeros(()).expand(*query_input.shape[:2], heads, d_head)
            _z, output = attn.written(z)
        else:  # of one position, in the place of whose z comes that of all
            output = whole(*(x[:1, :1] for x in (query_input, key_input, value_input)))
        return output

    attn.forward = forward
    try:
        yield
    finally:
        del attn.forward


class Rest:
    """A model behind the heads of one layer, on fixed tokens.

    The layer's own attention is computed again and its ``z`` replaced, so that whatever follows it
    (output weights, norms, MLPs beside or behind it) is the model's own code.

    Args:
        layer: whose heads; may be left out where :func:`chosen_layer` knows it.
        tokens: ``[batch pos]``.
        attention_mask: ``[batch pos]``, 1 at tokens and 0 at padding.
        held: the activations at ``hook_resid_pre`` and ``hook_z`` of the layer, by the names of
            their hook points, where they are known already.

    Attributes:
        model: as given; it must not change while this is in use.
        layer: whose heads.
        batch: the tokens.
        resid_pre: ``[batch pos d_model]``, what the layer reads.
        z: ``[batch pos head_index d_head]``, what the layer's heads hold on these tokens.

    Raises:
        GatedInterpError: no such layer, tokens the model cannot read, or a layer without heads.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=2, n_heads=3))
        >>> tokens = torch.tensor([[3, 0, 1, 2]])
        >>> rest = Rest(toy, 0, tokens)
        >>> bool((rest.logits() == toy(tokens)).all())
        True
        >>> rest.logits(torch.zeros_like(rest.z), positions=slice(-1, None)).shape
        torch.Size([1, 1, 6])
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HookedTransformer,
        layer: int | None = None,
        tokens: Tokens | None = None,
        *,
        attention_mask: Mask | None = None,
        held: Any = None,  # Mapping[str, Tensor] | ActivationCache | None
    ):
        self.model, self.layer = model, chosen_layer(model, layer)
        self.batch = Batch.of(model, tokens, attention_mask)
        names = [f"blocks.{self.layer}.hook_resid_pre", f"blocks.{self.layer}.attn.hook_z"]
        found: list[tuple[Tensor, ...]] = []
        step = max(1, TOKENS_AT_ONCE // self.batch.tokens.shape[1])
        for first in range(0, len(self.batch), step):
            part, cache = self.batch[first : first + step], held
            if cache is None:
                _, cache = part.cache(model, names, stop_at_layer=self.layer + 1)
            else:
                cache = {name: cache[name][first : first + step] for name in names}
            # What the blocks are given beside the stream, as the model's own forward makes it.
            _, _, beside, mask = model.input_to_embed(
                part.tokens, attention_mask=part.attention_mask
            )
            extra = [each for each in (beside, mask) if each is not None]
            here = [each.expand(len(part), *each.shape[1:]) for each in extra]
            found.append((cache[names[0]], cache[names[1]], *here))
        self.resid_pre, self.z, *extras = map(torch.cat, zip(*found, strict=True))
        self._beside = extras.pop(0) if beside is not None else None
        self._mask = extras.pop(0) if mask is not None else None

    def __repr__(self) -> str:
        rows, pos = self.batch.tokens.shape
        return f"Rest(layer {self.layer}, {rows} sequences of {pos} tokens)"

    @torch.no_grad()
    def logits(
        self,
        z: Float[Tensor, "row pos head_index d_head"] | Callable[[Tensor], Tensor] | None = None,
        positions: Where = None,
        rows: Int[Tensor, " row"] | slice | None = None,
    ) -> Float[Tensor, "... d_vocab"]:
        """What the model predicts where the layer's heads hold ``z``.

        Args:
            z: of the rows that are asked for, or what makes it of the present one; that itself
                unless given.
            positions: where logits are made. A mask ``[batch pos]`` is of the batch, whichever
                rows are asked for.
            rows: sequences of the batch by number, in any order and as often as wanted; all
                unless given.

        Returns:
            ``[row pos d_vocab]`` with the positions that are asked for, or with a mask ``[batch
            pos]`` one row of logits for each position in it.

        Raises:
            GatedInterpError: z of another shape, or a mask of another one.
        """
        chosen = self._rows(rows)
        picked = self._picked(positions, chosen)
        stream = self.stream(z, rows)[picked]
        ragged = stream.ndim == 2
        return self._unembedded(stream[None])[0] if ragged else self._unembedded(stream)

    @torch.no_grad()
    def stream(
        self,
        z: Float[Tensor, "row pos head_index d_head"] | Callable[[Tensor], Tensor] | None = None,
        rows: Int[Tensor, " row"] | slice | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """The residual stream behind the last layer where the layer's heads hold ``z``.

        As :meth:`logits`, without the final norm and the unembedding.
        """
        chosen = self._rows(rows)
        given = self.z[chosen] if z is None or callable(z) else z
        given = z(given) if callable(z) else given
        wanted = (len(chosen), *self.z.shape[1:])
        if given.shape != wanted:
            raise GatedInterpError("bad-z", shape=tuple(given.shape), wanted=wanted)
        at_once = max(1, TOKENS_AT_ONCE // self.batch.tokens.shape[1])
        both = zip(torch.split(chosen, at_once), torch.split(given, at_once), strict=True)
        return torch.cat([self._stream(part, own) for part, own in both])

    @torch.no_grad()
    def losses(
        self,
        z: Float[Tensor, "row pos head_index d_head"] | Callable[[Tensor], Tensor] | None,
        positions: Bool[Tensor, "batch pos"],
        rows: Int[Tensor, " row"] | slice | None = None,
    ) -> Float[Tensor, " position"]:
        """The loss of the next token (nats) where the layer's heads hold ``z``; see :meth:`logits`.

        Args:
            positions: whose next token is known.

        Returns:
            One for each of these positions, row by row.
        """
        chosen = self._rows(rows)
        following = self.batch.tokens.roll(-1, 1)[chosen][positions[chosen]]
        # Logits of a few positions at a time stay in the cache, and nobody keeps them.
        at_once = max(1, LOSSES_AT_ONCE // self.model.unembed.W_U.shape[-1])
        parts = zip(
            torch.split(self.stream(z, rows)[positions[chosen]], at_once),
            torch.split(following, at_once),
            strict=True,
        )
        return torch.cat(
            [
                torch.nn.functional.cross_entropy(
                    wide(self._unembedded(stream[None])[0]), ids, reduction="none"
                )
                for stream, ids in parts
            ]
        )

    def _rows(self, rows: Int[Tensor, " row"] | slice | None) -> Int[Tensor, " row"]:
        """The numbers of the rows that are asked for."""
        every = torch.arange(len(self.batch), device=self.resid_pre.device)
        return every if rows is None else every[rows] if isinstance(rows, slice) else rows

    def rows_at_once(self, positions: Where = None) -> int:
        """How many sequences' logits at these positions are small enough to be there at once."""
        there = torch.zeros_like(self.batch.tokens, dtype=torch.bool)
        picked = self._picked(positions, torch.arange(len(there)))
        there[picked] = True
        d_vocab = self.model.unembed.W_U.shape[-1]
        fitting = logits_at_once(d_vocab) // (max(1, int(there.sum(1).max())) * d_vocab)
        return max(1, min(fitting, TOKENS_AT_ONCE // there.shape[1]))

    @property
    def weights(self) -> int:
        """How many weights each token meets on its way."""
        behind = [*self.model.blocks[self.layer :], self.model.unembed]
        return sum(p.numel() for module in behind for p in module.parameters())

    def _stream(
        self, rows: Int[Tensor, " row"], z: Float[Tensor, "row pos head_index d_head"]
    ) -> Float[Tensor, "row pos d_model"]:
        """The same, of as many rows as fit."""
        edit: Edits = {f"blocks.{self.layer}.attn.hook_z": lambda old: z.to(old)}
        with nothing_read(self.model.blocks[self.layer].attn), intervened(self.model, edit):
            found: Tensor = self.model(
                self.resid_pre[rows],
                start_at_layer=self.layer,
                stop_at_layer=self.model.cfg.n_layers,
                shortformer_pos_embed=None if self._beside is None else self._beside[rows],
                attention_mask=None if self._mask is None else self._mask[rows],
            )
        return found

    def _unembedded(
        self, stream: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_vocab"]:
        """The final norm, the unembedding and its soft cap: the model without any layer."""
        found: Tensor = self.model(stream, start_at_layer=self.model.cfg.n_layers)
        return found

    def _picked(self, positions: Where, rows: Int[Tensor, " row"]) -> tuple[slice | Tensor, ...]:
        """``positions`` as an index of ``[row pos]``."""
        everywhere = slice(None)
        if positions is None or isinstance(positions, slice):
            return everywhere, positions or everywhere
        mask = position_mask("positions", positions, self.batch.tokens)
        return (everywhere, mask[0]) if positions.ndim == 1 else (mask[rows],)
