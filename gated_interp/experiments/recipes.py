"""Recipes: everything that turns (toy, seed) into a training run.

``reliable`` is what this package recommends. ``reference`` is the post's, with contexts sampled
instead of whole batches. The others change one thing each, for the ablation table.
"""

import dataclasses
from typing import Any, Literal

import torch

from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.models.toy import HookedTransformer, ToyConfig
from gated_interp.replacements.gates import GateActivation
from gated_interp.replacements.replacement import Replacement, kind_named
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import ProbedTask, Task
from gated_interp.training.config import TrainConfig, block_seed
from gated_interp.training.stacked.runs import GatedRun, ToyRun, disturb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """How gated blocks (and the toys under them) are made and trained.

    ``kind`` says what stands in for the attention (:mod:`gated_interp.replacements.replacement`).
    The fields are those of its config (of :class:`GatedConfig`, here; ``options`` are further ones,
    by name, or others instead) and of :class:`TrainConfig` that recipes vary; ``expansion`` is
    heads per toy head, ``scale_output`` sets the block's ``output_scale`` to the longest output the
    original writes in a sample (else it is 1), ``from_original`` starts the weights from the
    original's as the kind does it, and ``toy_steps``, ``toy_lr`` and ``toy_lr_decay`` train the
    toys. Of ``attempts`` blocks that are trained for a seed, the one with the lowest loss is kept:
    the loss, penalties at full weight, knows nothing of trigrams, verdicts or owners. ``jitter``
    disturbs all initial weights, see :func:`~gated_interp.training.stacked.runs.disturb`.

    Examples:
        >>> Recipe().replace(overlap=0.1).overlap
        0.1
    """

    kind: str = "gated"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    from_original: bool = False
    expansion: int = 4
    gate: GateActivation = "clamp"
    d_gate: int = 2
    value_bias: bool = False
    scale_output: bool = True
    penalty_pairs: Literal["causal", "all"] = "causal"
    gate_bias_init: float = 0.0
    alpha: float = 0.1
    alpha_unit: Literal["absolute", "variance"] = "variance"
    overlap: float = 3.0
    overlap_power: float = 1.5
    fvu_target: float | None = 0.0195
    fvu_from: float = 0.0
    factor_floor: float = 0.015
    penalty_off: float = 0.0
    penalty_ramp: float = 0.8
    steps: int = 3000
    batch_size: int = 100
    n_sequences: int = 10_000
    lr: float = 0.02
    lr_decay: float = 0.5
    toy_steps: int = 6000
    toy_lr: float = 0.03
    toy_lr_decay: float = 0.5
    attempts: int = 2
    jitter: float = 0.0
    jitter_seed: int = 0

    def problems(self) -> list[str]:
        kind_named(self.kind)
        return positive(self, "expansion", "d_gate", "steps", "toy_steps", "attempts")

    def toy_run(self, n_heads: int, task: SkipTrigramTask, seed: int) -> ToyRun:
        """The toy of ``seed``: its initial weights and its data both come from it."""
        model = ToyConfig(
            n_trigrams=task.n_trigrams, n_positions=task.n_positions, n_heads=n_heads, seed=seed
        )
        config = TrainConfig.toy(
            steps=self.toy_steps,
            lr=self.toy_lr,
            lr_decay=self.toy_lr_decay,
            batch_size=self.batch_size,
            data="fixed",
            n_sequences=self.n_sequences,
            seed=seed,
            log_every=max(1, self.toy_steps // 100),
        )
        return ToyRun(model, config, self.jitter, derive(seed, Stream.JITTER, self.jitter_seed))

    def gated_run(
        self, original: HookedTransformer, task: ProbedTask, seed: int, layer: int = 0
    ) -> GatedRun:
        """The gated run of ``seed`` for a trained toy: initial weights and data both follow it.

        Raises:
            GatedInterpError: the original is not a toy of this task.
        """
        task.require_vocabulary(original.cfg.d_vocab)
        block = self.block(original, task, seed, layer)
        disturb(block, self.jitter, derive(seed, Stream.JITTER, self.jitter_seed))
        config = TrainConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            lr_decay=self.lr_decay,
            alpha=self.alpha,
            alpha_unit=self.alpha_unit,
            overlap=self.overlap,
            overlap_power=self.overlap_power,
            penalty_off=self.penalty_off,
            penalty_ramp=self.penalty_ramp,
            fvu_target=self.fvu_target,
            fvu_from=self.fvu_from,
            factor_floor=self.factor_floor,
            data="fixed",
            n_sequences=self.n_sequences,
            seed=seed,
            log_every=max(1, self.steps // 100),
        )
        return GatedRun(original, block, config, task, layer)

    def block(
        self, original: HookedTransformer, task: Task, seed: int, layer: int = 0
    ) -> Replacement:
        """What stands in for the attention of ``original`` at ``layer``, before its training.

        Raises:
            GatedInterpError: a layer that the kind cannot stand in for.
        """
        kind, attn = kind_named(self.kind), original.blocks[layer].attn
        known = {field.name for field in dataclasses.fields(kind.config_type)}
        fields = {n: v for n, v in self.to_dict().items() if n in known}
        if "d_head" in known:
            fields["d_head"] = int(attn.W_Q.shape[-1])
        fields |= self.options
        fields["output_scale"] = 1.0
        if self.scale_output:
            fields["output_scale"] = longest_output(original, task, seed, layer)
        fields["seed"] = block_seed(seed)
        if self.from_original:
            return kind.from_attention(attn, self.expansion, **fields)
        n, d_model, _ = attn.W_Q.shape
        config = kind.config_type.from_dict(
            {"d_model": d_model, "n_heads": self.expansion * n, **fields}
        )
        return kind.from_config(config, attn)


@torch.no_grad()
def longest_output(model: HookedTransformer, task: Task, seed: int, layer: int = 0) -> float:
    """The length of the longest vector that ``layer`` writes on 200 sequences."""
    tokens = task.sample(200, derive(seed, Stream.OUTPUT_SCALE)).tokens.to(model.embed.W_E.device)
    name = f"blocks.{layer}.hook_attn_out"
    _, cache = model.run_with_cache(tokens, names_filter=name)
    return float(cache[name].norm(dim=-1).max())


# Penalties that rise from the first step part the heads while little is settled; where two still
# settle on one trigram, the loss of another attempt is lower. What keeps heads apart is the overlap
# penalty: below its floor an original is written less exactly rather than by heads that share.
RELIABLE = Recipe()
# More trigrams leave more to explain, and wider gates tell more of them apart.
RELIABLE_LARGE = RELIABLE.replace(fvu_target=0.0285, d_gate=4, alpha=0.3)

# alpha and lr of the post's three published experiments, by the toy's (heads, trigrams).
REFERENCE_SETTINGS = {(2, 3): (0.5, 5e-4), (3, 4): (0.1, 5e-4), (4, 5): (0.3, 1e-3)}


def reference_recipe(n_heads: int, n_trigrams: int) -> Recipe:
    """The post's recipe for a shape it published; for others, the nearest published one's.

    As published but for one thing: a step sees some 1,000 positions instead of 11,000.
    """
    nearest = min(REFERENCE_SETTINGS, key=lambda s: abs(s[0] - n_heads) + abs(s[1] - n_trigrams))
    alpha, lr = REFERENCE_SETTINGS[nearest]
    return Recipe(
        expansion=2,
        d_gate=1,
        attempts=1,
        value_bias=True,
        scale_output=False,
        penalty_pairs="all",
        gate_bias_init=0.0,
        alpha=alpha,
        alpha_unit="absolute",
        overlap=0.0,
        overlap_power=1.0,
        fvu_target=None,
        penalty_off=0.0,
        penalty_ramp=0.0,
        steps=100_000,
        n_sequences=100_000,
        lr=lr,
        lr_decay=0.0,
    )


def recipe_named(name: str, n_heads: int, n_trigrams: int) -> Recipe:
    """The recipe called ``name`` for a toy of this shape.

    Raises:
        GatedInterpError: no such recipe.

    Examples:
        >>> recipe_named("reference", n_heads=2, n_trigrams=3).expansion
        2
    """
    if name == "reference":
        return reference_recipe(n_heads, n_trigrams)
    if name == "reliable":
        return RELIABLE if n_trigrams <= 5 else RELIABLE_LARGE
    raise GatedInterpError(f"recipe is {name!r}; it must be 'reliable' or 'reference'.")
