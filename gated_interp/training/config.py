"""Everything that decides how a training goes, apart from the model and the data source."""

import dataclasses
from typing import Any, Literal

from gated_interp.core.config import Config, positive
from gated_interp.core.seeds import MAX_SEED, derive
from gated_interp.core.streams import Stream


def block_seed(seed: int) -> int:
    """The seed of a block's initial weights, of the seed that a run is named by."""
    return derive(seed, Stream.BLOCK)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model or a gated block is trained, with Adam.

    The defaults train the block of a toy as :func:`~gated_interp.experiments.recipes.recipe_named`
    ``("reliable", …)`` trains one: heads that part under an overlap penalty, an FVU that is held.
    What that recipe has besides no config of one block can say: four heads for each of the toy's,
    gates of width 2, ``output_scale`` the length of the longest output, the better of two attempts
    by their loss, a ``fixed`` set of 10,000 sequences, and above five trigrams an ``fvu_target`` of
    0.0285, an ``alpha`` of 0.3 and gates of width 4;
    :func:`~gated_interp.experiments.seeds.train_seeds` does all of it. Other presets are
    classmethods: :meth:`toy`, :meth:`language`, :meth:`fit`, :meth:`reference` and :meth:`plain`,
    which is what ``TrainConfig()`` was before 0.2.

    Attributes:
        steps: updates of the weights.
        batch_size: sequences in each, or in each of its ``accumulate`` parts.
        accumulate: parts whose mean gradient makes one update: what one batch as large as all of
            them would give, in the memory of one part.
        clip_norm: gradients longer than this (all weights together) are scaled down to it.
        precision: ``bfloat16`` makes matrix products in that type (autocast); weights, losses and
            Adam stay in float32.
        lr: learning rate.
        lr_decay: the last fraction of the steps, over which the learning rate falls to 0.
        decay_shape: how it falls: in a line, or as a ``cosine``.
        warmup: the first fraction of the steps, over which the learning rate rises from 0.
        weight_decay: each step takes this times the learning rate off every weight (``W_…``), as
            AdamW does.
        alpha: weight of the gate penalty (a toy has none).
        alpha_unit: ``absolute``, as in the post, or ``variance``: alpha times the variance (per
            dimension) of the original's output, so that one alpha suits models of any size.
        overlap: weight of the overlap penalty: heads that write at the same position.
        overlap_power: above 1, much overlap at few positions costs more than little at many.
        downstream: from 0 to 1, the share of the error that is counted in predictions: the KL
            divergence between the original's and those of the model with the block, as a share of
            what the layer's silence (zero ablation) costs. The rest is counted in what the layer
            writes, as a share of its variance; 0 leaves predictions out. With both, training is
            what Braun et al. (2024, arXiv 2405.12241) call end-to-end + downstream.
        penalty_off: the first fraction of the steps, without penalties.
        penalty_ramp: the fraction after that, over which their weight rises from 0 to full.
        fvu_target: hold the FVU here (with ``downstream``, the mean of both shares): after
            ``penalty_off`` both penalties are multiplied by a factor that falls while it is above
            the target and rises while it is below; ``None`` leaves them alone.
        fvu_rate: the most that factor's logarithm moves in a step.
        fvu_from: the first fraction of the steps, in which the factor stays 1: heads part company
            under full penalties, then are let back to the target.
        factor_floor: the least that factor can be. An original that only heads which share their
            work can write to the target is then written less exactly instead.
        data: ``fresh`` sequences in every step, or a ``fixed`` set read in order, over and over.
        n_sequences: sequences in the fixed set, a multiple of ``batch_size * accumulate``.
        seed: of the data and of the gate noise (the model's own config holds that of its weights).
        log_every: steps between rows of the history; the last step always has one.
        evaluate_every: steps between measurements on held-out sequences, a multiple of
            ``log_every``; 0 makes none.
        n_held_out: held-out sequences, the same throughout.
        checkpoint_every: steps between saved states; 0 saves only at the end or on Ctrl-C.
        device: ``auto`` is the GPU where there is one.

    Examples:
        >>> config = TrainConfig(steps=1000, fvu_target=0.03)
        >>> TrainConfig.from_dict(config.to_dict()) == config
        True
    """

    steps: int = 3000
    batch_size: int = 100
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    lr: float = 0.02
    lr_decay: float = 0.5
    decay_shape: Literal["linear", "cosine"] = "linear"
    warmup: float = 0.0
    weight_decay: float = 0.0
    alpha: float = 0.1
    alpha_unit: Literal["absolute", "variance"] = "variance"
    overlap: float = 3.0
    overlap_power: float = 1.5
    downstream: float = 0.0
    penalty_off: float = 0.0
    penalty_ramp: float = 0.8
    fvu_target: float | None = 0.0195
    fvu_rate: float = 0.02
    fvu_from: float = 0.0
    factor_floor: float = 0.015
    data: Literal["fresh", "fixed"] = "fresh"
    n_sequences: int = 100_000
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    n_held_out: int = 200
    checkpoint_every: int = 0
    device: Literal["cpu", "cuda", "auto"] = "auto"

    def problems(self) -> list[str]:
        found = positive(self, "steps", "batch_size", "accumulate", "lr", "n_sequences")
        found += positive(self, "log_every", "n_held_out")
        if self.clip_norm is not None:
            found += positive(self, "clip_norm")
        for name in ("lr_decay", "warmup", "penalty_off", "penalty_ramp", "fvu_from"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name} is {getattr(self, name)}; it must be from 0 to 1.")
        if self.penalty_off + self.penalty_ramp > 1 + 1e-9:
            found.append(
                f"penalty_off and penalty_ramp sum to {self.penalty_off + self.penalty_ramp}; "
                "they are fractions of one training and must not exceed 1."
            )
        if self.warmup + self.lr_decay > 1 + 1e-9:
            found.append(
                f"warmup and lr_decay sum to {self.warmup + self.lr_decay}; they are fractions of "
                "one training and must not exceed 1."
            )
        if not self.overlap_power >= 1:
            found.append(f"overlap_power is {self.overlap_power}; it must be at least 1.")
        if not 0 <= self.downstream <= 1:
            found.append(f"downstream is {self.downstream}; it must be from 0 to 1.")
        if self.fvu_target is not None:
            found += positive(self, "fvu_target", "fvu_rate", "factor_floor")
        for name in ("alpha", "overlap", "weight_decay", "checkpoint_every", "evaluate_every"):
            if getattr(self, name) < 0:
                found.append(f"{name} is {getattr(self, name)}; it must not be negative.")
        if not 0 <= self.seed <= MAX_SEED:
            found.append(f"seed is {self.seed}; it must be from 0 to 2**63 - 1.")
        if not found and self.evaluate_every % self.log_every:
            found.append(
                f"evaluate_every is {self.evaluate_every}; it must be a multiple of log_every "
                f"({self.log_every}), so that every measurement has its row."
            )
        if not found and self.data == "fixed" and self.n_sequences % self.update_size:
            times = " * accumulate" if self.accumulate > 1 else ""
            found.append(
                f"n_sequences is {self.n_sequences}; it must be a multiple of batch_size{times} "
                f"({self.update_size}), so that every batch is whole."
            )
        return found

    @property
    def update_size(self) -> int:
        """Sequences behind one update."""
        return self.batch_size * self.accumulate

    @classmethod
    def plain(cls, **changes: Any) -> "TrainConfig":
        """Gate penalty alone, at a fixed weight: no overlap penalty, and no FVU that is held.

        What ``TrainConfig()`` was before 0.2, and what the other presets start from.
        """
        preset = {
            "alpha": 0.2,
            "alpha_unit": "absolute",
            "overlap": 0.0,
            "overlap_power": 1.0,
            "penalty_off": 0.2,
            "penalty_ramp": 0.2,
            "fvu_target": None,
            "fvu_from": 0.2,
            "factor_floor": 1e-3,
        }
        return cls.from_dict({**preset, **changes})

    @classmethod
    def toy(cls, **changes: Any) -> "TrainConfig":
        """For a toy model: all trigrams are learnt in most seeds, in seconds."""
        return cls.plain(**{"lr": 0.03, "alpha": 0.0, **changes})

    @classmethod
    def language(cls, **changes: Any) -> "TrainConfig":
        """For a small language model: AdamW, warm-up, cosine decay and clipped gradients."""
        preset = {
            "steps": 3000,
            "batch_size": 64,
            "lr": 4e-3,
            "warmup": 0.05,
            "lr_decay": 0.95,
            "decay_shape": "cosine",
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "alpha": 0.0,
            "log_every": 10,
            "evaluate_every": 100,
        }
        return cls.plain(**{**preset, **changes})

    @classmethod
    def fit(cls, **changes: Any) -> "TrainConfig":
        """For a block that starts from copies of the heads of any model, toy or language model."""
        preset = {
            "lr": 3e-3,
            "alpha": 0.03,
            "alpha_unit": "variance",
            "overlap": 0.1,
            "downstream": 0.67,
            "penalty_off": 0.0,
            "penalty_ramp": 0.3,
            "fvu_from": 0.0,
        }
        return cls.plain(**{**preset, **changes})

    @classmethod
    def reference(cls, lr: float = 1e-3, alpha: float = 0.0, **changes: Any) -> "TrainConfig":
        """As the post trained: 1,000 epochs of the same 100 batches of 1,000, constant lr.

        Its toys took lr 1e-3; its gated blocks 5e-4 and alpha 0.5 (2H3ST), 5e-4 and 0.1 (3H4ST),
        1e-3 and 0.3 (4H5ST).
        """
        preset = {
            "steps": 100_000,
            "batch_size": 1000,
            "lr": lr,
            "lr_decay": 0.0,
            "alpha": alpha,
            "penalty_off": 0.0,
            "penalty_ramp": 0.0,
            "data": "fixed",
            "n_sequences": 100_000,
            "log_every": 100,
        }
        return cls.plain(**{**preset, **changes})
