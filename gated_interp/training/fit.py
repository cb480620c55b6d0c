"""One call that trains a stand-in for any model's attention, with settings that suit any model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gated_interp.anatomy.batch import Mask
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.renamed import layer_first, warn_old
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.models.pretrained import PretrainedTransformer
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.replacement import Replacement, kind_named
from gated_interp.replacements.splice import chosen_layer
from gated_interp.training.activations import ActivationStore
from gated_interp.training.config import TrainConfig, block_seed
from gated_interp.training.data import DataSource, data_for, draw
from gated_interp.training.loop import TrainResult, train_gated
from gated_interp.training.methods import method_named
from gated_interp.training.trackers import Tracker

# Positions in a step, whatever the length of a sequence.
POSITIONS = 1024
FVU = 0.04


@layer_first
def fit_gated(
    model: HookedTransformer,
    layer: int | None = None,
    data: DataSource | None = None,
    *,
    method: str = "gated",
    heads: int | None = None,
    fvu: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    attention_mask: Mask | None = None,
    held_out: DataSource | None = None,
    checkpoint: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
    tracker: Tracker | None = None,
    finetune: int = 0,
    **settings: Any,
) -> TrainResult[Replacement]:
    """Train a gated block to replace the attention of any model at ``layer``.

    The heads start as copies of the layer's own, two of each, which write what it writes; from
    there on the gate and overlap penalties part them, as far as the ``fvu`` allows. Copies have
    room for twice the dimensions, but for a pretrained model or a store of activations, where they
    have the heads' own and training is that of
    :meth:`~gated_interp.training.config.TrainConfig.pretrained`.
    :func:`~gated_interp.replacements.splice.splice` puts the result in.

    Args:
        layer: may be left out where the model has one.
        data: a task, a text, tokens, a function of (n, generator), or activations that
            :func:`~gated_interp.training.activations.capture` has stored; the model's own unless
            given.
        method: of :data:`~gated_interp.training.methods.METHODS`, one that trains a gated block;
            :func:`fit_replacement` takes the others.
        heads: of the block; the method's multiple of the layer's unless given.
        fvu: the error that may stay, above 0 (0.04 unless given, 0.1 for a pretrained model); the
            penalties rise until it is reached. The error is the mean of two shares, the second with
            twice the weight of the first (``downstream`` of :class:`TrainConfig`): the fraction of
            the variance of what the layer writes that is unexplained, and what predictions lose, of
            what they lose without the layer. Of a pretrained model it is the first alone.
        steps: of some 1,000 positions each; 3,000 unless given, 800 for a pretrained model.
        seed: of weights and data.
        finetune: see :func:`fit_replacement`.
        **settings: ``expansion`` or ``width`` of
            :class:`~gated_interp.training.methods.Method`, fields of the block's config
            or of :class:`TrainConfig`, or arguments of the kind's ``from_attention``, instead of
            the method's.

    The other arguments are as for :func:`~gated_interp.training.loop.train_gated`.

    Raises:
        GatedInterpError: no such layer or method, a setting that does not exist or cannot be, or as
            ``train_gated``.
        TrainingInterrupted: on Ctrl-C; says how to resume.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> fit_gated(toy, steps=5, heads=6, progress=False).model
        GatedAttention(6 heads, d_head=2, d_gate=8, gate=clamp, L0=6.00)
    """
    if method_named(method).kind != GatedAttention.kind:
        warn_old(f"fit_gated(method={method!r})", f"fit_replacement(method={method!r})")
    return fit_replacement(
        model,
        layer,
        data,
        method=method,
        heads=heads,
        fvu=fvu,
        steps=steps,
        seed=seed,
        attention_mask=attention_mask,
        held_out=held_out,
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
        tracker=tracker,
        finetune=finetune,
        **settings,
    )


@layer_first
def fit_replacement(
    model: HookedTransformer,
    layer: int | None = None,
    data: DataSource | None = None,
    *,
    method: str = "gated",
    attention_mask: Mask | None = None,
    held_out: DataSource | None = None,
    checkpoint: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = True,
    tracker: Tracker | None = None,
    finetune: int = 0,
    finetune_with: Mapping[str, Any] | None = None,
    **settings: Any,
) -> TrainResult[Replacement]:
    """Train a replacement of any kind as :func:`fit_gated` trains a gated block.

    Args:
        method: of :data:`~gated_interp.training.methods.METHODS`, such as ``"topk"``.
        finetune: so many further steps of half the sequences on the model's own predictions with
            the block in place (``downstream`` 0.9), the penalties held where they were. Each of
            these runs the model. The idea is that of end-to-end training (Braun et al., 2024) and
            of Karvonen (2025, arXiv 2503.17272), who fine-tunes briefly at the end. Its state is
            kept beside ``checkpoint`` as ``CHECKPOINT.finetune``.
        finetune_with: fields of :class:`TrainConfig` for these steps, instead of theirs.
            ``anneal_from`` and ``anneal_to`` let more heads of a TopK block write again when they
            begin.
        **settings: as for ``fit_gated``, its ``heads``, ``fvu``, ``steps`` and ``seed`` among them.

    Examples:
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> fit_replacement(toy, method="topk", heads=16, steps=5, progress=False).model
        TopKAttention(16 heads, k=8, 2 circuits)
    """
    layer = chosen_layer(model, layer, spliced=False, first=True)
    data = data_for(model, data, attention_mask)
    if finetune < 0:
        raise GatedInterpError("is-negative", name="finetune", value=finetune)
    if finetune_with and not finetune:
        raise GatedInterpError("finetune-with-nothing")
    block, config = fit_settings(model, layer, data, method=method, **settings)
    how: dict[str, Any] = {"layer": layer, "data": data, "held_out": held_out}
    how |= {"progress": progress, "tracker": tracker}
    result = train_gated(model, block, config, checkpoint=checkpoint, resume=resume, **how)
    if not finetune:
        return result
    last = result.history.iloc[-1]
    further = config.finetuned(finetune, float(last["factor"])).replace(**finetune_with or {})
    state = None if checkpoint is None else Path(f"{checkpoint}.finetune")
    begun = state if state is not None and state.is_file() else None
    second = train_gated(model, result.model, further, checkpoint=state, resume=begun, **how)
    later = second.history.assign(step=second.history["step"] + config.steps)
    return dataclasses.replace(
        second,
        history=pd.concat([result.history, later], ignore_index=True),
        seconds=result.seconds + second.seconds,
        missed=result.missed,
    )


def fit_settings(
    model: HookedTransformer,
    layer: int | None = None,
    data: DataSource | None = None,
    *,
    method: str = "gated",
    heads: int | None = None,
    fvu: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> tuple[Replacement, TrainConfig]:
    """The block that :func:`fit_replacement` trains, before its training, and how."""
    layer = chosen_layer(model, layer, spliced=False, first=True)
    shape = {n: settings.pop(n) for n in ("expansion", "width") if n in settings}
    chosen = dataclasses.replace(method_named(method), **shape)
    attn = model.blocks[layer].attn
    if isinstance(attn, Replacement):
        raise GatedInterpError("already-replaced", layer=layer)
    kind, data = kind_named(chosen.kind), data_for(model, data)
    config_fields = kind.settings()
    train_fields = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = [name for name in settings if name not in config_fields | train_fields]
    if unknown:
        raise GatedInterpError(
            "unknown-setting-of-fit",
            name=unknown[0],
            config=kind.config_type.__name__,
            kind=kind.__name__,
        )
    own, _, d_head = attn.W_Q.shape
    expansion: int | float = chosen.expansion if heads is None else heads / own
    deep = isinstance(model, PretrainedTransformer) or isinstance(data, ActivationStore)
    if deep and "width" not in shape and chosen.width == 2:
        chosen = dataclasses.replace(chosen, width=1)
    if type(chosen.width) is not int or chosen.width < 1:
        raise GatedInterpError("not-a-whole-number", name="width", value=chosen.width, least=1)
    wide = {"d_head": chosen.width * d_head} if chosen.width > 1 else {}
    if wide.keys() - config_fields:
        raise GatedInterpError("no-heads-to-widen", width=chosen.width, method=chosen.name)
    pos = draw(data, 1, derive(seed, Stream.VARIANCE), model).tokens.shape[1]
    base: dict[str, Any] = {"seed": seed, "batch_size": max(1, POSITIONS // pos)}
    base["steps"], base["fvu_target"] = steps_and_fvu(deep, steps, fvu)
    given = {n: v for n, v in settings.items() if n in train_fields and n != "seed"}
    preset = TrainConfig.pretrained if deep else TrainConfig.fit
    config = preset(**base | dict(chosen.train) | given)
    fields = (
        wide
        | {**chosen.fit, **chosen.block}
        | {n: v for n, v in settings.items() if n in config_fields}
    )
    return kind.from_attention(attn, expansion, seed=block_seed(seed), **fields), config


def steps_and_fvu(deep: bool, steps: int | None, fvu: float | None) -> tuple[int, float]:
    """Both as they are given, or what suits a layer of a ``deep`` model or of a small one."""
    usual = TrainConfig.pretrained() if deep else TrainConfig.fit(fvu_target=FVU)
    target = usual.fvu_target if fvu is None else fvu
    assert target is not None
    return usual.steps if steps is None else steps, target
