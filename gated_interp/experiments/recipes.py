"""Recipes: everything that turns (toy, seed) into a training run.

``reliable`` is what this package recommends. ``reference`` is the post's, with contexts sampled
instead of whole batches. The others change one thing each, for the ablation table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.models.toy import HookedTransformer, ToyConfig
from gated_interp.replacements.replacement import Replacement, kind_named
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.task import ProbedTask, Task
from gated_interp.training.config import TrainConfig, block_seed
from gated_interp.training.stacked.runs import GatedRun, ToyRun, disturb

# A recipe's toys and blocks both train on sets of this many sequences, in batches of this many.
SHARED = {"batch_size": 100, "n_sequences": 10_000}
# Short names of fields that are not named after the room they are in, as flat recipes had them.
SHORT: dict[str, list[str]] = {
    "toy_steps": ["original.steps"],
    "toy_lr": ["original.lr"],
    "toy_lr_decay": ["original.lr_decay"],
    **{name: [f"original.{name}", f"training.{name}"] for name in SHARED},
}


def settings_of(kind: str) -> set[str]:
    """What a recipe may set of a block of this kind."""
    return kind_named(kind).settings() - {"d_model", "n_heads", "seed"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockRecipe(Config):
    """What replaces the attention of an original, relative to the original's size.

    Attributes:
        kind: Use this kind of replacement (:mod:`gated_interp.replacements.replacement`).
        expansion: Give the block this many heads for each of the original's.
        n_heads: Give the block this many heads, instead of ``expansion`` times the original's.
        from_original: Start from the original's weights, as the kind does it.
        scale_output: Set ``output_scale`` to the length of the longest output that the original
            writes in a sample. Otherwise it is 1.
        config: Set these fields of the kind's config (of :class:`GatedConfig`, say) or keyword
            arguments of its ``from_attention``. What is absent keeps its default there.
    """

    kind: str = "gated"
    expansion: int = 4
    n_heads: int | None = None
    from_original: bool = False
    scale_output: bool = True
    config: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def problems(self) -> list[GatedInterpError]:
        unknown = [name for name in self.config if name not in settings_of(self.kind)]
        if unknown:
            return [self.problem("config-no-such-block-setting", kind=self.kind, name=unknown[0])]
        return positive(self, "expansion", *(["n_heads"] if self.n_heads is not None else []))

    def heads(self, of_original: int) -> int:
        """Heads of a block that replaces so many."""
        return self.n_heads or self.expansion * of_original

    def __call__(
        self, original: HookedTransformer, task: Task, seed: int, layer: int = 0
    ) -> Replacement:
        """The block that replaces the attention of ``original`` at ``layer``, not trained yet."""
        kind, attn = kind_named(self.kind), original.blocks[layer].attn
        own, d_model, d_head = attn.W_Q.shape
        fields: dict[str, Any] = {"seed": block_seed(seed), "output_scale": 1.0}
        if "d_head" in settings_of(self.kind):
            fields["d_head"] = int(d_head)
        if self.scale_output and "output_scale" not in self.config:
            fields["output_scale"] = longest_output(original, task, seed, layer)
        fields |= self.config
        heads = self.heads(own)
        if self.from_original:
            return kind.from_attention(attn, heads / own, **fields)
        return kind.from_config(
            kind.config_type.from_dict({"d_model": d_model, "n_heads": heads, **fields}), attn
        )


GATES = {"gate": "clamp", "d_gate": 2, "value_bias": False, "penalty_pairs": "causal",
         "gate_bias_init": 0.0}  # fmt: skip
TOY = TrainConfig.toy(steps=6000, data="fixed", **SHARED)
BLOCK = BlockRecipe(config=GATES)
TRAINING = TrainConfig.from_dict({"data": "fixed", **SHARED})


@dataclasses.dataclass(frozen=True, kw_only=True, init=False)
class Recipe(Config):
    """How toys are trained, and the blocks that replace their attention.

    A field may be named by its path, such as ``training.lr``, or by its last word alone, when a
    recipe is made, changed or read: ``alpha`` is ``training.alpha``, ``d_gate`` is
    ``block.config.d_gate``. A word alone never means ``original``; ``toy_steps``, ``toy_lr`` and
    ``toy_lr_decay`` do. ``batch_size`` and ``n_sequences`` alone are those of both trainings.

    Attributes:
        original: how toys are trained.
        block: what replaces their attention.
        training: how that is trained. Each run sets the ``seed`` of both trainings itself, and
            ``log_every`` so that a history has a hundred rows.
        attempts: blocks that are trained for a seed. The one with the lowest loss is kept; the
            loss (penalties at full weight) knows nothing of trigrams, verdicts or owners.
        jitter: noise on all initial weights, see
            :func:`~gated_interp.training.stacked.runs.disturb`.
        jitter_seed: seed of that noise.

    Examples:
        >>> recipe = Recipe(overlap=0.1).replace(toy_steps=500)
        >>> recipe.training.overlap, recipe.original.steps, recipe.overlap
        (0.1, 500, 0.1)
        >>> Recipe(**{"training.lr": 0.5}).lr
        0.5
    """

    original: TrainConfig = TOY
    block: BlockRecipe = BLOCK
    training: TrainConfig = TRAINING
    attempts: int = 2
    jitter: float = 0.0
    jitter_seed: int = 0

    def __init__(self, **given: Any) -> None:
        own = {field.name: field for field in dataclasses.fields(self)}
        tree = {n: _plain(given.pop(n, field.default)) for n, field in own.items()}
        given |= given.pop("options", {})  # a flat recipe's
        block = tree["block"]
        kind = given.get("kind", given.get("block.kind", block["kind"]))
        if kind != block["kind"]:
            known = settings_of(kind)
            block["config"] = {n: v for n, v in block["config"].items() if n in known}
        for name, value in given.items():
            for path in _paths(name, kind):
                at: Any = tree
                *rooms, last = path.split(".")
                for room in rooms:
                    at = at.get(room)
                    if not isinstance(at, dict):
                        raise GatedInterpError("no-such-recipe-field", path=path)
                at[last] = value
        for name, field in own.items():
            default, value = field.default, tree[name]
            if isinstance(default, Config) and isinstance(value, dict):
                value = type(default).from_dict(value)
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in Recipe.__dataclass_fields__:
            raise AttributeError(name)  # a recipe that is only being made
        try:
            path = _paths(name, self.block.kind)[-1]
        except GatedInterpError as error:
            raise AttributeError(str(error)) from None
        value: Any = self
        for part in path.split("."):
            defaults = kind_named(self.block.kind).config_type
            if isinstance(value, dict):
                value = value.get(part, getattr(defaults, part, None))
            else:
                value = getattr(value, part)
        return value

    def problems(self) -> list[GatedInterpError]:
        return positive(self, "attempts")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe with these fields, nested or, as before 0.3, flat.

        Raises:
            GatedInterpError: an unknown field, or a bad value.
        """
        if "original" not in values:  # flat ones said a gated block's fields of any kind
            foreign = GATES.keys() - settings_of(values.get("kind", "gated"))
            values = {n: v for n, v in values.items() if n not in foreign}
        return cls(**values)

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with some fields changed, by path or by name."""
        return Recipe(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | changes)

    def toy_run(self, n_heads: int, task: SkipTrigramTask, seed: int) -> ToyRun:
        """The toy of ``seed``: its initial weights and its data both come from it."""
        model = ToyConfig(
            n_trigrams=task.n_trigrams, n_positions=task.n_positions, n_heads=n_heads, seed=seed
        )
        noise = derive(seed, Stream.JITTER, self.jitter_seed)
        return ToyRun(model, _of_seed(self.original, seed), self.jitter, noise)

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
        return GatedRun(original, block, _of_seed(self.training, seed), task, layer)


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Config) else value


def _paths(name: str, kind: str) -> list[str]:
    """The fields of a recipe that ``name`` means, where its block is of this kind."""
    if "." in name:
        return [name]
    if name in SHORT:
        return SHORT[name]
    own = ((BlockRecipe, "block"), (TrainConfig, "training"))
    found = [f"{room}.{name}" for config, room in own if name in config.__dataclass_fields__]
    if name in settings_of(kind):
        found.append(f"block.config.{name}")
    if not found:
        raise GatedInterpError("no-such-recipe-setting", name=name, kind=kind)
    if len(found) > 1:
        raise GatedInterpError("several-recipe-settings", name=name, kind=kind, paths=found)
    return found


def _of_seed(training: TrainConfig, seed: int) -> TrainConfig:
    return training.replace(seed=seed, log_every=max(1, training.steps // 100))


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
    raise GatedInterpError(
        "not-one-of", name="recipe", value=name, choices=["reliable", "reference"]
    )
