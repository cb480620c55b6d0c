"""What stands in for an attention layer, and the kinds there are, by name.

A replacement is spliced in where the attention was (:mod:`gated_interp.replacements.splice`),
trained to write what it wrote, saved under its kind and read by every analysis. A new kind is one
file: a class with :func:`register` above it.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from gated_interp.core.config import Config, Shapes
from gated_interp.core.errors import GatedInterpError
from gated_interp.metrics.overlap import overlap, overlap_cost
from gated_interp.metrics.predictions import row_means
from gated_interp.metrics.reconstruction import writes_at
from gated_interp.replacements.layer_sketch import Sketch

Activations = Mapping[str, Tensor]
"""Activations of one forward pass by the name of their hook point, such as ``hook_z``."""


Block = TypeVar("Block", bound="Replacement")


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a training asks of a replacement on one batch.

    Attributes:
        output: what it writes.
        z: what each head writes it with, at ``hook_z``.
        penalty: what makes it sparse, before its weight ``alpha``.
        measures: what a history says of the batch beside its losses, by name.
    """

    output: Float[Tensor, "batch pos d_model"]
    z: Float[Tensor, "batch pos head_index d_head"]
    penalty: Float[Tensor, ""]
    measures: Callable[[], dict[str, float]]


class Replacement(nn.Module):
    """An attention layer's stand-in, made of heads whose writes add up.

    What a head writes at a position is ``z[h] W_O[h]``, whatever made ``z``. A kind gives its
    ``forward``, and where it has them a penalty that makes it sparse and a schedule.

    Attributes:
        kind: names it in checkpoints, recipes and on the command line.
        config_type: of :attr:`config`, a :class:`Config` with ``d_model``, ``n_heads``, ``d_head``.
        watched: the hook points whose activations :meth:`penalty` and :meth:`measures` ask for,
            beside ``hook_z``.
        opened_from: those that :meth:`opened` asks for.
        needs_original: whether it reads what the layer's own attention writes.
        n_trigrams, l0: what is known of it, for its repr: splicing it into a toy tells the
            trigrams, training and loading the open gates per causal pair.
        stands_for: the sketch of the layer that it was made from or trained on, where that is
            known; files keep it, and ``splice`` refuses another layer.

    Examples:
        >>> from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
        >>> isinstance(GatedAttention(GatedConfig(d_model=8, n_heads=4)), Replacement)
        True
    """

    kind: ClassVar[str]
    config_type: ClassVar[type[Config]]
    watched: ClassVar[tuple[str, ...]] = ()
    opened_from: ClassVar[tuple[str, ...]] = ()
    needs_original: ClassVar[bool] = False

    config: Any
    b_O: Float[Tensor, " d_model"]
    hook_z: HookPoint  # [batch pos head_index d_head]
    n_trigrams: int | None = None
    l0: float | None = None
    stands_for: Sketch | None = None

    @property
    def extras(self) -> dict[str, Any]:
        """What its attention does beside plain causal attention, by TransformerLens' names."""
        return {}

    @property
    def W_O(self) -> Float[Tensor, "head_index d_head d_model"]:
        """The output weights as they act."""
        raise NotImplementedError

    def forward(
        self,
        query_input: Float[Tensor, "batch pos d_model"],
        key_input: Float[Tensor, "batch pos d_model"] | None = None,
        value_input: Float[Tensor, "batch pos d_model"] | None = None,
        **unsupported: Any,
    ) -> Float[Tensor, "batch pos d_model"]:
        """What it writes; called with one input, or as TransformerLens calls attention."""
        raise NotImplementedError

    def require_inputs(
        self, query_input: Float[Tensor, "batch pos *head d_model"], unsupported: Mapping[str, Any]
    ) -> None:
        """Refuse what TransformerLens may pass to attention and no replacement takes.

        Raises:
            GatedInterpError: an input of each head's own, a key-value cache, or whatever else is
                not named among the arguments of its ``forward``.
        """
        if query_input.ndim != 3:
            raise GatedInterpError("split-input-in-replacement")
        for name, value in unsupported.items():
            if value is not None:
                if name == "past_kv_cache_entry":
                    raise GatedInterpError("replacement-takes-no-cache")
                raise GatedInterpError("replacement-takes-no-argument", name=name)

    @classmethod
    def settings(cls) -> set[str]:
        """The names of what a block is made with: its config's fields, and how it starts."""
        starts = inspect.signature(cls.from_attention).parameters.values()
        named = {p.name for p in starts if p.kind is p.KEYWORD_ONLY}
        return named | {field.name for field in dataclasses.fields(cls.config_type)}

    @classmethod
    def stored_shapes(cls, config: Any) -> Shapes:
        """The shape of every parameter that a checkpoint holds, from the config alone.

        Raises:
            GatedInterpError: a kind that does not say.
        """
        raise GatedInterpError("nothing-to-store", kind=cls.kind)

    @classmethod
    def from_config(cls: type[Block], config: Any, original: nn.Module) -> Block:
        """A replacement of ``original`` with this config, its weights drawn from its seed."""
        return cls(config)

    @classmethod
    def from_attention(
        cls: type[Block], attn: Any, expansion: int | float = 2, *, seed: int = 0, **config: Any
    ) -> Block:
        """A replacement with ``expansion`` times the heads of ``attn``, started from its weights.

        Raises:
            GatedInterpError: a layer that cannot be stood in for, or a bad expansion.
        """
        raise GatedInterpError("no-start-from-weights", kind=cls.kind)

    @classmethod
    def from_pretrained(
        cls: type[Block],
        name_or_path: str | os.PathLike[str],
        layer: int | None = None,
        *,
        original: nn.Module | None = None,
        revision: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Block:
        """The replacement in a file, without the model around it, on the CPU.

        Args:
            name_or_path: a file that :meth:`save_pretrained` wrote or a checkpoint of a model, a
                folder with either as ``model.safetensors``, the name of a shipped model, such as
                ``2H3ST-gated``, or ``user/name``, a repository on the hub (unless there is a file
                of that name), which needs the extra ``hub`` and the network, or its local cache.
            layer: of a checkpoint with several.
            original: the attention that it stood in for, of a kind that reads what that writes
                (an autoencoder); others need none.
            revision, token, endpoint, cache_dir: of the hub, see
                :func:`gated_interp.checkpoints.hub.from_hub`.

        Raises:
            CheckpointError: no such file or name, a file that is not sound, none of this kind in
                it, or several and no layer named.
            GatedInterpError: the hub cannot be reached, or the kind needs the original and there is
                none.

        Examples:
            >>> from gated_interp.replacements.gated_attention import GatedAttention
            >>> GatedAttention.from_pretrained("2H3ST-gated")  # it comes with the package
            GatedAttention(8 heads, gate=clamp, L0=2.57)
        """
        from gated_interp.replacements.stored import read_block  # it reads any kind's

        hub = {"token": token, "endpoint": endpoint, "cache_dir": cache_dir}
        return read_block(cls, name_or_path, layer, original, revision=revision, **hub)

    def save_pretrained(self, path: str | os.PathLike[str]) -> Path:
        """Write it, without any model, to one safetensors file, whole or not at all.

        Args:
            path: a ``.safetensors`` file, else a folder, which gets ``model.safetensors``. What
                :meth:`from_pretrained` reads; the same block gives the same bytes.

        Returns:
            The file.

        Raises:
            GatedInterpError: a kind that does not say what is stored, weights that are not what
                the config says, or a place that cannot be written.
            CheckpointError: NaN or infinite weights, or a block beyond the format's limits.

        Examples:
            >>> import tempfile
            >>> from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
            >>> block = GatedAttention(GatedConfig(d_model=8, n_heads=4))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     block.save_pretrained(folder).name, GatedAttention.from_pretrained(folder)
            ('model.safetensors', GatedAttention(4 heads, gate=clamp))
        """
        from gated_interp.replacements.stored import save_block

        return save_block(self, path)

    def terms(
        self,
        *inputs: Float[Tensor, "batch pos d_model"],
        real: Bool[Tensor, "batch pos"] | None = None,
    ) -> Terms:
        """One forward pass, and what of it a training asks for.

        Read at ``hook_z`` and :attr:`watched`; a kind whose activations are large may have a way
        of its own that keeps fewer of them.

        Args:
            inputs: query, key and value input.
            real: where there is a token; ``None`` where nothing is padding.
        """
        dtype = self.b_O.dtype
        with ExitStack() as stack:
            outputs = {
                name: stack.enter_context(outputs_of(self.get_submodule(name)))
                for name in ("hook_z", *self.watched)
            }
            output = self(*inputs, attention_mask=real).to(dtype)
        seen = {name: each[-1].to(dtype) for name, each in outputs.items()}
        seen |= {} if real is None else {"attention_mask": real}
        kept = {name: each.detach() for name, each in seen.items()}
        return Terms(output, seen["hook_z"], self.penalty(seen), lambda: self.measures(kept))

    def penalty(self, seen: Activations) -> Float[Tensor, ""]:
        """What makes it sparse, before its weight ``alpha``; nothing unless a kind has one.

        Args:
            seen: activations at ``hook_z`` and :attr:`watched`; where rows are padded also
                ``attention_mask``, true at tokens.
        """
        return seen["hook_z"].new_zeros(())

    def overlap_penalty(
        self,
        z: Float[Tensor, "batch pos head_index d_head"],
        variance: float | Float[Tensor, ""] = 1.0,
        power: float = 1.0,
        real: Bool[Tensor, "batch pos"] | None = None,
        written: Float[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, ""]:
        """How much heads write at the same position, whether they add or cancel.

        Mean over batch and pos of ``v * (o / (v * d_model))^power``, where ``v`` is ``variance``,
        ``o = (sum_h n_h)^2 - sum_h n_h^2`` and ``n_h`` is the length of what head ``h`` writes.
        Zero where each position is written by one head, however much it writes: unlike the gate
        penalty it shrinks no head that is alone. (The cross terms of the exclusive lasso, Zhou,
        Jin & Hoi, 2010; not in the post.) Where there is padding, each row's mean is
        over its tokens, those that are ``real``.

        Args:
            written: the squared length of the original's write at each position, to measure the
                overlap relative to: then ``o / written`` takes the place of ``o / (v * d_model)``.
                The denominator is at least a tenth of its mean, and fixed: a block that wrote more
                to make the share smaller would gain nothing.
        """
        shared, unit = (
            overlap(writes_at(z, self.W_O)),
            torch.as_tensor(variance * self.config.d_model),
        )
        if written is None:
            cost = overlap_cost(shared, unit, power)
        else:
            least = 0.1 * (written if real is None else written[real]).mean()
            cost = unit * shared / written.clamp(min=least)
        mean = cost.mean() if real is None else row_means(cost, real).mean()
        return mean / self.config.d_model

    def measures(self, seen: Activations) -> dict[str, float]:
        """What a training's history says of a batch beside its losses, by name."""
        return {}

    def opened(self, seen: Activations) -> Float[Tensor, "batch pos head_index d_head"]:
        """What ``z`` would be if nothing kept a head from writing; ``z`` itself by default.

        Args:
            seen: activations at ``hook_z`` and :attr:`opened_from`.
        """
        return seen["hook_z"]

    def prepare(self, fraction: float, seed: int) -> None:
        """Make ready for a training step, ``fraction`` (0 to 1) of the training being done.

        Args:
            seed: of what this step draws, if it draws anything.
        """

    def settle(self) -> None:
        """Training is over: from now on nothing is drawn."""


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """A list that grows by the keyword arguments of each call of ``module``."""
    seen: list[dict[str, Any]] = []

    def note(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs)

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
    if not seen:
        raise GatedInterpError(
            "hook-not-reached", hook=type(module).__name__, what="nothing was read there"
        )


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list that grows by each output of ``module`` (a hook point) while the context is open."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen.append(output)

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
    if not seen:
        hook = getattr(module, "name", "") or type(module).__name__
        raise GatedInterpError("hook-not-reached", hook=hook, what="nothing was read there")


@torch.no_grad()
def active(
    z: Float[Tensor, "batch pos head_index d_head"],
    W_O: Float[Tensor, "head_index d_head d_model"],
    threshold: float = 1e-3,
    counted: Bool[Tensor, "batch pos"] | None = None,
) -> Bool[Tensor, "batch pos head_index"]:
    """Where each head writes: more than ``threshold`` of a typical write's length.

    Typical is the root mean square, over batch and pos, of the length of the whole layer's write.
    The same for every kind of replacement and for plain attention.

    Args:
        counted: the positions that the mean is over; all unless given.
    """
    whole = torch.einsum("bphd,hdm->bpm", z, W_O).square().sum(-1)
    typical = (whole if counted is None else whole[counted]).mean().sqrt()
    return writes_at(z, W_O).clamp(min=0).sqrt() > threshold * typical


KINDS: dict[str, type[Replacement]] = {}
"""Every registered kind, by name."""

Kind = TypeVar("Kind", bound=type[Replacement])


def register(kind: Kind) -> Kind:
    """Make a class of replacement known by its ``kind``; used as a decorator.

    Raises:
        GatedInterpError: another class has that name.

    Examples:
        >>> @register
        ... class Mine(Replacement):
        ...     kind = "gated"
        Traceback (most recent call last):
        gated_interp.core.errors.GatedInterpError: There is already a replacement of kind 'gated'...
    """
    there = KINDS.get(kind.kind)
    if there is not None and there.__qualname__ != kind.__qualname__:
        raise GatedInterpError("kind-taken", kind=kind.kind)
    KINDS[kind.kind] = kind
    return kind


def kind_named(name: str) -> type[Replacement]:
    """The class of the replacements called ``name``."""
    if name not in KINDS:
        raise GatedInterpError("no-such-kind", kind=name, known=sorted(KINDS))
    return KINDS[name]
