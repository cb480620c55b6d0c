"""What is true of a model, by TransformerLens' hooks in float64: what the matrix holds others to.

Nothing here comes from ``gated_interp.analysis``. A float32 or float64 model is copied into
float64. A half-precision model is run as it is, because rounding moves its activations; these are
then read in float64.
"""

import copy
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

Edit = Callable[[Tensor], Tensor]
HALF = (torch.bfloat16, torch.float16)


def doubled(model: HookedTransformer) -> HookedTransformer:
    """A copy in float64."""
    model = copy.deepcopy(model)
    model.double().requires_grad_(False)
    # Norms cast to the config's dtype.
    model.cfg.dtype = torch.float64
    return model


class Truth:
    """A model's activations, what it writes and what it would do, computed by hooks.

    Heads are query heads everywhere: grouped queries are ungrouped here, so that every head has
    keys and values of its own.
    """

    def __init__(self, model: HookedTransformer):
        self.exact = doubled(model)
        self.run_on = copy.deepcopy(model) if model.cfg.dtype in HALF else self.exact
        for each in (self.exact, self.run_on):
            each.cfg.ungroup_grouped_query_attention = True
        self.cfg, self.layers = model.cfg, range(model.cfg.n_layers)
        self.norm = None if model.cfg.normalization_type is None else self.exact.ln_final

    @torch.no_grad()
    def run(
        self,
        tokens: Tensor,
        edits: Mapping[str, Edit] | None = None,
        names: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Activations at hook points after ``edits``, all of them unless some are named.

        ``logits`` are the model's, capped if it caps.
        """
        points, seen, handles = self.run_on.hook_dict, {}, []

        def keep(name: str) -> Callable[..., None]:
            return lambda _module, _inputs, output: seen.update({name: output})

        def put(edit: Edit) -> Callable[..., Tensor]:
            return lambda _module, _inputs, output: edit(output)

        try:
            # In the order in which they are registered: what is kept has been edited.
            for name, edit in (edits or {}).items():
                handles.append(points[name].register_forward_hook(put(edit)))
            for name in points if names is None else names:
                handles.append(points[name].register_forward_hook(keep(name)))
            logits = self.run_on(tokens)
        finally:
            for handle in handles:
                handle.remove()
        found = {n: a.double() if a.is_floating_point() else a for n, a in seen.items()}
        return {**found, "logits": logits.double()}

    def returned(self, tokens: Tensor) -> Tensor:
        """What the first layer's attention returns, before a norm behind it."""
        return self._of_attention(tokens)[1]

    def received(self, tokens: Tensor) -> Tensor:
        """What the first layer's attention takes its values from, behind a norm before it."""
        return self._of_attention(tokens)[0]

    def _of_attention(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        attn = self.run_on.blocks[0].attn
        handle = attn.register_forward_hook(
            lambda _module, _args, given, output: seen.extend((given["value_input"], output)),
            with_kwargs=True,
        )
        try:
            self.run(tokens, {}, ())
        finally:
            handle.remove()
        return seen[0].detach().double(), seen[1].detach().double()

    def logits(self, tokens: Tensor, edits: Mapping[str, Edit]) -> Tensor:
        """The model's logits after ``edits``."""
        return self.run(tokens, edits, ())["logits"]

    @functools.cache  # noqa: B019  (a Truth lives as long as one cell)
    def _seen(self, tokens: tuple[tuple[int, ...], ...]) -> dict[str, Tensor]:
        return self.run(torch.tensor(tokens))

    def seen(self, tokens: Tensor) -> dict[str, Tensor]:
        """:meth:`run` without edits, remembered."""
        return self._seen(tuple(map(tuple, tokens.tolist())))

    def attn(self, layer: int) -> Any:
        """A layer's attention, or what stands in its place."""
        return self.exact.blocks[layer].attn

    def heads(self, layer: int) -> int:
        """How many heads a layer has."""
        return len(self.attn(layer).W_O)

    def pattern_name(self, layer: int) -> str:
        """The hook point of what values are weighted with; empty where there is no attention."""
        for name in ("hook_gated_pattern", "hook_pattern"):
            if hasattr(self.attn(layer), name):
                return f"blocks.{layer}.attn.{name}"
        return ""

    @torch.no_grad()
    def into_stream(self, layer: int, x: Tensor, seen: Mapping[str, Tensor] | None) -> Tensor:
        """What reaches the stream of ``x`` ``[batch pos ... d_model]`` that attention writes.

        A norm behind the attention divides by what it divides by in ``seen``; by one where that
        is ``None``.
        """
        block = self.exact.blocks[layer]
        if self.cfg.use_normalization_before_and_after:
            norm, name = block.ln1_post, "ln1_post"
        elif self.cfg.original_architecture == "Olmo2ForCausalLM":
            norm, name = block.ln1, "ln1"
        else:
            return x
        scale = None if seen is None else seen[f"blocks.{layer}.{name}.hook_scale"]
        return frozen(norm, x, scale)

    @torch.no_grad()
    def readout(self, x: Tensor, seen: Mapping[str, Tensor] | None) -> Tensor:
        """Logits, before a cap, that ``x`` ``[batch pos ... d_model]`` in the stream makes.

        Linear: the final norm divides by what it divides by in ``seen``, or by one; b_U and the
        norm's bias are left out.
        """
        if self.norm is not None:
            x = frozen(self.norm, x, None if seen is None else seen["ln_final.hook_scale"])
        return x @ self.exact.unembed.W_U

    @torch.no_grad()
    def bias(self) -> Tensor:
        """Logits of a stream of zeros: b_U and the final norm's bias."""
        b_U: Tensor = self.exact.unembed.b_U
        if self.norm is not None and hasattr(self.norm, "b"):
            b_U = b_U + self.norm.b @ self.exact.unembed.W_U
        return b_U.detach()

    @torch.no_grad()
    def writes(self, layer: int, z: Tensor, seen: Mapping[str, Tensor] | None) -> Tensor:
        """What each head writes to the stream, ``[batch pos head d_model]``."""
        return self.into_stream(
            layer, torch.einsum("bphd,hdm->bphm", z, self.attn(layer).W_O), seen
        )

    def logit_writes(self, layer: int, tokens: Tensor) -> Tensor:
        """What each head writes to the logits, ``[batch pos head d_vocab]``."""
        seen = self.seen(tokens)
        z = seen[f"blocks.{layer}.attn.hook_z"]
        return self.readout(self.writes(layer, z, seen), seen)

    def from_key(
        self, layer: int, tokens: Tensor, key: int, *, full: bool, picked: bool = True
    ) -> Tensor:
        """``z`` of every head where it reads one key alone, ``[batch pos head d_head]``.

        With the attention that it pays to it, or (``full``) all of it. A head that was not picked
        reads nothing, unless ``picked`` is false.
        """
        name, seen = self.pattern_name(layer), self.seen(tokens)
        if not hasattr(self.attn(layer), "W_Q"):
            raise ValueError("what stands there has no attention")
        if hasattr(self.attn(layer), "kept"):  # which heads are picked must not hang on the key
            v = seen[f"blocks.{layer}.attn.hook_v"][:, None, key]
            z = seen[f"blocks.{layer}.attn.hook_z"]
            weight = seen[name][..., key].transpose(1, 2)[..., None]
            if full:
                return v.expand_as(z)
            return weight * v * (z != 0).any(-1, keepdim=True) if picked else weight * v

        def only(pattern: Tensor) -> Tensor:
            one = torch.zeros_like(pattern)
            one[..., key] = 1 if full else pattern[..., key]
            return one

        z = f"blocks.{layer}.attn.hook_z"
        return self.run(tokens, {name: only}, [z])[z]


@torch.no_grad()
def frozen(norm: Any, x: Tensor, scale: Tensor | None) -> Tensor:
    """What is linear in ``x`` ``[batch pos ... d_model]`` of a norm that divides by ``scale``."""
    flat = x.flatten(1, -2)
    divided = torch.ones(*flat.shape[:2], 1).double()
    if scale is not None:
        each = flat.shape[1] // x.shape[1]
        divided = scale.repeat_interleave(each, 1)
    handle = norm.hook_scale.register_forward_hook(lambda *_: divided)
    try:
        return (norm(flat) - norm(torch.zeros_like(flat))).view(x.shape)
    finally:
        handle.remove()


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Next-token cross-entropy, ``[batch pos-1]``."""
    return -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


def kl(before: Tensor, after: Tensor) -> Tensor:
    """``KL(before || after)`` of logits, ``[batch pos]``."""
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
