"""Everything that decides how a training goes, apart from the model and the data source."""

import dataclasses
from typing import Any, Literal

from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import MAX_SEED, derive
from gated_interp.core.streams import Stream

PENALTIES = ("alpha", "alpha_unit", "overlap", "overlap_power", "downstream", "penalty_off",
             "penalty_ramp", "fvu_target", "fvu_rate", "fvu_from", "factor_floor", "factor_start",
             "overlap_unit", "sink_weight", "focus_weight", "unit_scales", "anneal_from",
             "anneal_to", "opened_share", "opened_weight", "opened_steps")  # fmt: skip
"""Fields of :class:`TrainConfig` that say nothing to a model that predicts tokens."""


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

    The first sentence of each field below is also the help of its command-line option.

    Attributes:
        steps: Update the weights this many times.
        batch_size: Train on this many sequences in each step, or in each of its ``accumulate``
            parts.
        accumulate: Add up the gradients of this many batches for each update. The result is that
            of one large batch, in the memory of a small one.
        clip_norm: Scale gradients down to this length (all weights together) if they are longer.
        precision: Multiply matrices in this type. With ``bfloat16`` (autocast), weights, losses
            and Adam stay in float32.
        lr: Train with this learning rate.
        lr_decay: Let the learning rate fall to 0 over this last fraction of the steps.
        decay_shape: Let the learning rate fall in a line or as a cosine.
        warmup: Let the learning rate rise from 0 over this first fraction of the steps.
        weight_decay: Take this times the learning rate off every weight in each step. Biases are
            left alone, as AdamW does it.
        alpha: Weight the gate penalty by this. A toy has none.
        alpha_unit: Measure alpha as in the post or relative to the original's variance.
            ``absolute`` is the post's. ``variance`` multiplies alpha by the variance (per
            dimension) of the original's output, so that one alpha suits models of any size.
        overlap: Weight the penalty on heads that write at the same position by this.
        overlap_power: Raise the overlap at a position to this power. Above 1, much overlap at few
            positions costs more than little at many.
        overlap_unit: Measure overlap relative to the original's variance or to what it writes at
            the position. ``write`` divides by the squared length of the original's write there (at
            least a tenth of its mean), so that positions at which the layer writes little count as
            much as others. It needs ``overlap_power=1``.
        sink_weight: Weigh the error at each sequence's first position by this, relative to what is
            written there. Many models attend to the first token when there is nothing to look for,
            and write more there than anywhere else. The FVU and both penalties' units then leave
            these positions out. ``None`` counts them like all others.
        focus_weight: Weigh the error this much more at the positions that the data marks, which
            are those of repeated text that say something again. The error that is held at
            ``fvu_target`` is weighed alike; the ``fvu`` of the history is not.
        unit_scales: Divide inputs and outputs by their size (the nearest power of two) for the
            training. Learning rates then suit layers of any scale. The block that is returned has
            the layer's own scales; a block with normalised weights stays as it is.
        downstream: Count this share of the error in predictions, and the rest in what the layer
            writes. The first is the KL divergence between the original's predictions and those of
            the model with the block, relative to zero-ablating the layer; the second is the
            fraction of the layer's variance that is not explained. With both, training is what
            Braun et al. (2024, arXiv 2405.12241) call end-to-end + downstream.
        penalty_off: Train without penalties for this first fraction of the steps.
        penalty_ramp: Let the penalties rise to full weight over this fraction after that.
        fvu_target: Hold the FVU at this value. After ``penalty_off``, both penalties are multiplied
            by a factor that falls while the FVU (with ``downstream``, the mean of both shares) is
            above the target and rises while it is below. ``None`` leaves the penalties alone.
        fvu_rate: Move the logarithm of the penalties' factor by at most this much in a step.
        fvu_from: Keep the penalties' factor at 1 for this first fraction of the steps. Heads
            separate under full penalties, then are let back to the target.
        factor_floor: Keep the penalties' factor above this value. An original that only heads
            which share their work can write to the target is then written less exactly instead.
        factor_start: Start the penalties' factor at this value, below 1 for a block that starts as
            a copy. The mean of the error then counts from the first step. ``None`` starts at 1,
            with a mean that comes down from 1.
        anneal_from: Start where a block's annealing is at this fraction of a training. At 1 it is
            over, as in further steps of a training: a TopK block then keeps to its k.
        anneal_to: End where a block's annealing is at this fraction of a training.
        opened_share: Open closed gates in this share of the steps, so that nothing depends on their
            staying closed. The block must then write the same with them open: the error with open
            gates is added to the loss. Only gated blocks have gates to open.
        opened_weight: Weigh the error with opened gates by this, relative to the error without.
        opened_steps: Choose the gates to open by this many steps of an adversary, or open each with
            probability one half if 0.
        data: Train on fresh sequences in every step or on a fixed set, read over and over.
        n_sequences: Use this many sequences in the fixed set. It must be a multiple of
            ``batch_size * accumulate``.
        seed: Draw the data and the gate noise from this seed. The model's own config holds the
            seed of its weights.
        log_every: Write a row of the history after this many steps. The last step always has one.
        evaluate_every: Measure on held-out sequences after this many steps, and never if 0. It
            must be a multiple of ``log_every``.
        n_held_out: Measure on this many held-out sequences.
        checkpoint_every: Save the state after this many steps, and only at the end or on Ctrl-C if
            0.
        device: Train on this device, where auto is the GPU if there is one.

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
    overlap_unit: Literal["variance", "write"] = "variance"
    sink_weight: float | None = None
    focus_weight: float = 1.0
    unit_scales: bool = False
    downstream: float = 0.0
    penalty_off: float = 0.0
    penalty_ramp: float = 0.8
    fvu_target: float | None = 0.0195
    fvu_rate: float = 0.02
    fvu_from: float = 0.0
    factor_floor: float = 0.015
    factor_start: float | None = None
    anneal_from: float = 0.0
    anneal_to: float = 1.0
    opened_share: float = 0.0
    opened_weight: float = 1.0
    opened_steps: int = 0
    data: Literal["fresh", "fixed"] = "fresh"
    n_sequences: int = 100_000
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    n_held_out: int = 200
    checkpoint_every: int = 0
    device: Literal["cpu", "cuda", "auto"] = "auto"

    def to_dict(self) -> dict[str, Any]:
        # Left out where they say nothing, so that files and states are what they were.
        new = ("overlap_unit", "sink_weight", "focus_weight", "unit_scales", "factor_start",
               "anneal_from", "anneal_to", "opened_share", "opened_weight",
               "opened_steps")  # fmt: skip
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        return {n: v for n, v in super().to_dict().items() if n not in new or v != usual[n]}

    def problems(self) -> list[GatedInterpError]:
        found = positive(self, "steps", "batch_size", "accumulate", "lr", "n_sequences")
        found += positive(self, "log_every", "n_held_out")
        if self.clip_norm is not None:
            found += positive(self, "clip_norm")
        for name in ("lr_decay", "warmup", "penalty_off", "penalty_ramp", "fvu_from", "anneal_from",
                     "anneal_to", "opened_share"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                found.append(
                    self.problem("config-not-a-share", field=name, value=getattr(self, name))
                )
        if self.penalty_off + self.penalty_ramp > 1 + 1e-9:
            found.append(
                self.problem("config-penalty-too-long", value=self.penalty_off + self.penalty_ramp)
            )
        if self.anneal_to < self.anneal_from:
            found.append(
                self.problem(
                    "config-too-small",
                    field="anneal_to",
                    value=self.anneal_to,
                    least=self.anneal_from,
                )
            )
        if self.warmup + self.lr_decay > 1 + 1e-9:
            found.append(self.problem("config-warmup-too-long", value=self.warmup + self.lr_decay))
        if not self.overlap_power >= 1:
            found.append(
                self.problem(
                    "config-too-small", field="overlap_power", value=self.overlap_power, least=1
                )
            )
        if not 0 <= self.downstream <= 1:
            found.append(
                self.problem("config-not-a-share", field="downstream", value=self.downstream)
            )
        if self.fvu_target is not None:
            found += positive(self, "fvu_target", "fvu_rate", "factor_floor")
        if self.factor_start is not None:
            found += positive(self, "factor_start")
        if self.overlap_unit == "write" and self.overlap_power != 1:
            found.append(self.problem("config-relative-overlap-power", value=self.overlap_power))
        for name in (
            *("alpha", "overlap", "weight_decay", "checkpoint_every", "evaluate_every"),
            *(() if self.sink_weight is None else ("sink_weight",)),
            *("focus_weight", "opened_weight", "opened_steps"),
        ):
            if getattr(self, name) < 0:
                found.append(self.problem("config-negative", field=name, value=getattr(self, name)))
        if not 0 <= self.seed <= MAX_SEED:
            found.append(self.problem("config-bad-seed", value=self.seed))
        if not found and self.evaluate_every % self.log_every:
            found.append(
                self.problem(
                    "config-measures-off-the-log",
                    value=self.evaluate_every,
                    log_every=self.log_every,
                )
            )
        if not found and self.data == "fixed" and self.n_sequences % self.update_size:
            batch = "batch_size * accumulate" if self.accumulate > 1 else "batch_size"
            found.append(
                self.problem(
                    "config-batches-not-whole",
                    value=self.n_sequences,
                    batch=batch,
                    size=self.update_size,
                )
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
    def planted(cls, **changes: Any) -> "TrainConfig":
        """For a model that is to compute a program in chosen nodes, by interchange training."""
        preset = {
            "steps": 800,
            "batch_size": 128,
            "lr": 4e-3,
            "warmup": 0.05,
            "clip_norm": 1.0,
            "alpha": 0.0,
            "device": "cpu",
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
    def pretrained(cls, **changes: Any) -> "TrainConfig":
        """For a block that starts from copies of the heads of one layer of a deep model.

        The predictions of a deep model hardly feel one layer, so the block is trained on what the
        layer writes; its heads part under an overlap penalty that is relative to that.
        """
        preset = {
            "steps": 800,
            "batch_size": 8,
            "precision": "bfloat16",
            "lr": 1e-3,
            "lr_decay": 0.3,
            "alpha": 0.01,
            "alpha_unit": "variance",
            "overlap": 0.1,
            "overlap_unit": "write",
            "sink_weight": 0.1,
            "unit_scales": True,
            "penalty_off": 0.0,
            "penalty_ramp": 0.0,
            "fvu_target": 0.1,
            "fvu_rate": 0.01,
            "fvu_from": 0.0,
            "factor_start": 0.1,
        }
        return cls.plain(**{**preset, **changes})

    def finetuned(self, steps: int, factor: float) -> "TrainConfig":
        """For further steps on predictions, with penalties ``factor`` times what they were."""
        return self.replace(
            steps=steps,
            batch_size=max(1, self.batch_size // 2),
            lr=0.3 * self.lr,
            lr_decay=1.0,
            warmup=0.0,
            downstream=0.9,
            alpha=factor * self.alpha,
            overlap=factor * self.overlap,
            penalty_off=0.0,
            penalty_ramp=0.0,
            fvu_target=None,
            factor_start=None,
            anneal_from=1.0,
        )

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
