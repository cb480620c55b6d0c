"""One training at a time: ``train-toy``, ``train-gated``, ``train-lm`` and ``plant``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from gated_interp.cli.console import progress, say, show, show_facts
from gated_interp.cli.heads import show_topic
from gated_interp.cli.options import Flag, Natural, Positive, RecipeName
from gated_interp.cli.settings import Options, settings_from

if TYPE_CHECKING:
    from gated_interp.core.config import Config
    from gated_interp.experiments.single import Trained
    from gated_interp.training.trackers import Tracker

Out = Annotated[
    Path | None, Parameter(help="Write the model to this file. Default: a file in runs/.")
]
Resume = Annotated[Flag, Parameter(help="Resume the training of this file that was interrupted.")]
Seed = Annotated[Natural, Parameter(help="Draw the initial weights and the data from this seed.")]
TrackerName = Annotated[
    Literal["tensorboard", "wandb"] | None,
    Parameter(help="Report the training to this tracker as well. Default: none."),
]
# How options are called where the config says it otherwise.
NAMES = {
    "n_heads": "heads",
    "n_trigrams": "trigrams",
    "n_positions": "positions",
    "n_sequences": "sequences",
    "normalize_weights": "normalize",
    "gate_bias_init": "gate-bias",
    "n_layers": "layers",
    "n_ctx": "context",
    "normalization": "norm",
}


def _training(omit: tuple[str, ...] = ()) -> Options:
    from gated_interp.training.config import TrainConfig

    return Options("Training", [TrainConfig], NAMES, ("seed", *omit))


def _of_a_toy() -> list[Options]:
    from gated_interp.models.toy_config import ToyConfig
    from gated_interp.training.config import PENALTIES

    return [Options("Model", [ToyConfig], NAMES, ["seed"]), _training(PENALTIES)]


@settings_from(_of_a_toy)
def train_toy(
    *,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    tracker: TrackerName = None,
    **settings: Any,
) -> None:
    """Train one toy model on skip trigrams.

    Writes the model and its history, and says which head holds what. Options that are absent are
    those of the reliable recipe, with 2 heads and 3 skip trigrams.
    """
    from gated_interp.experiments.single import run_toy, toy_settings

    shape = settings.pop("n_heads", 2), settings.pop("n_trigrams", 3)
    run = toy_settings(*shape, seed, **settings)
    path = Path(f"runs/{run.model.name}-toy.safetensors") if out is None else out
    with tracked(tracker, path, run.config) as told:
        trained = run_toy(run, path, resume=resume, tracker=told)
    _report(trained)


def _of_a_block() -> list[Options]:
    from gated_interp.experiments.recipes import BlockRecipe
    from gated_interp.replacements.gated_attention import GatedConfig

    # A toy has no rotary embeddings.
    omit = ["seed", "kind", "from_original", "config", "d_model", "attn_scale", "gate_rotary"]
    return [Options("Block", [BlockRecipe, GatedConfig], NAMES, omit), _training()]


@settings_from(_of_a_block)
def train_gated(
    toy: str,
    /,
    *,
    recipe: RecipeName = "reliable",
    init: Literal["random", "duplicate"] = "random",
    noise: float = 0.01,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    tracker: TrackerName = None,
    **settings: Any,
) -> None:
    """Train one gated block on a toy.

    The block learns to write what the toy's attention writes. The file holds the toy with the block
    in place of its attention; the history lies beside it. Options that are absent are the recipe's.

    Args:
        toy: Replace the attention of this toy, a checkpoint or a shipped model.
        init: Start from random weights, or from copies of the toy's heads.
        noise: Add this much noise to copies of heads.
    """
    from gated_interp.experiments.single import gated_settings, load_toy, run_gated

    model = load_toy(toy)
    copies: dict[str, Any] = {"duplicate": init == "duplicate", "noise": noise}
    run = gated_settings(model, model.task, seed, recipe=recipe, **copies, **settings)
    name = model.model_name.removesuffix("-toy")
    path = Path(f"runs/{name}-gated.safetensors") if out is None else out
    with tracked(tracker, path, run.config) as told:
        trained = run_gated(run, path, resume=resume, tracker=told)
    _report(trained)


def _report(trained: "Trained") -> None:
    from gated_interp.subject import Subject

    show_topic(Subject.of(trained.model, alone=True, name=trained.path.stem), "holders")
    show_facts("on held-out sequences", list(trained.measures.items()))
    say(f"The model is in {trained.path}.")


def _of_a_language_model() -> list[Options]:
    from gated_interp.models.language_model import LanguageModelConfig
    from gated_interp.training.config import PENALTIES

    unused = ("data", "n_sequences", "lr_decay", *PENALTIES)
    shape = Options("Model", [LanguageModelConfig], NAMES, ["seed", "d_vocab"])
    return [shape, _training(unused)]


@settings_from(_of_a_language_model)
def train_lm(
    *text: str,
    vocab: Positive | None = None,
    tokenizer: Path | None = None,
    repeat: float = 0.0,
    cache: Path | None = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    tracker: TrackerName = None,
    **settings: Any,
) -> None:
    """Train an attention-only language model on text.

    Writes the model with its tokenizer and its history, and says its loss on held-out text beside
    that of unigram and bigram models.

    Args:
        text: Train on these files or folders, datasets:NAME, or a text that comes with the package.
            Default: austen.
        vocab: Train a tokenizer of this many tokens. Default: 2048.
        tokenizer: Use this tokenizer.json instead of training one.
        repeat: Make this share of sequences repeat one stretch of text over and over.
        cache: Keep token ids in this folder. Default: the user's cache.
    """
    from gated_interp.analysis.heads import head_name
    from gated_interp.experiments.language import language_settings, run_language

    if "warmup" in settings:
        settings["lr_decay"] = 1 - settings["warmup"]
    run = language_settings(
        list(text) or "austen",
        seed=seed,
        n_ctx=settings.pop("n_ctx", 64),
        repeat=repeat,
        vocab=vocab,
        tokenizer=tokenizer,
        folder=cache,
        **settings,
    )
    path = Path(f"runs/{run.model.name}.safetensors") if out is None else out
    with tracked(tracker, path, run.config) as told:
        trained = run_language(run, path, resume=resume, tracker=told)
    show_facts("on the test part of the text (nats per token)", list(trained.measures.items()))
    columns = ["previous_token", "prefix_matching", "per_copy"]
    show(
        "where heads attend on repeated random tokens",
        ["head", *(column.replace("_", " ") for column in columns)],
        [
            (head_name((r["layer"], r["head"])), *(f"{r[column]:.4f}" for column in columns))
            for r in trained.heads.to_dict("records")
        ],
    )
    say(f"The model is in {trained.path}.")


def _of_a_program() -> list[Options]:
    from gated_interp.models.program_model import ProgramConfig
    from gated_interp.training.config import PENALTIES

    shape = Options("Model", [ProgramConfig], NAMES, ["seed", "program"])
    return [shape, _training(("data", "n_sequences", "accumulate", *PENALTIES))]


@settings_from(_of_a_program)
def plant(
    program: str,
    /,
    *,
    node: Sequence[str] = (),
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    tracker: TrackerName = None,
    **settings: Any,
) -> None:
    """Plant a program in chosen heads of a small transformer, so that its circuit is known.

    Trains a model by strict interchange: the chosen nodes must compute the variables of the
    program, and all others must not matter. Writes the model, its history and its circuit.

    Args:
        program: Plant this program: induction, marker or either.
        node: Put a variable into this node, for example previous=L0H2. Repeat the option for
            several. Default: the usual places.
    """
    from gated_interp.experiments.plant import plant_settings, run_plant

    pairs = [each.partition("=") for each in node]
    places = {name.strip(): where.strip() for name, _, where in pairs}
    run = plant_settings(program, seed, variables=places, **settings)
    path = Path(f"runs/planted-{program}-{seed}.safetensors") if out is None else out
    with tracked(tracker, path, run.config) as told:
        circuit = run_plant(run, path, resume=resume, tracker=told)
    show("the circuit", ["node", "effect"], [
        (name, f"{effect:.4f}") for name, effect in circuit.record.node_effects.items()
    ])  # fmt: skip
    show_facts("on held-out prompts", list(circuit.record.measured.items()))
    say(f"The model is in {path}, its circuit in {path.with_suffix('.json')}.")


@contextmanager
def tracked(name: str | None, path: Path, config: "Config") -> Iterator["Tracker"]:
    """What a training reports to: the progress that is shown, and a tracker by name."""
    from gated_interp.training.trackers import tracker_named

    steps = config.to_dict()["steps"]
    own = None if name is None else tracker_named(name, path, config)
    with progress("training", "steps") as update:

        def told(step: int, numbers: Any) -> None:
            update(step + 1, steps)
            if own is not None:
                own(step, numbers)

        yield told
