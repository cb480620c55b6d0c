"""What single heads do: ``ablate`` and ``circuits``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gated_interp.cli.console import progress, say, show, tell
from gated_interp.cli.imports import quick_imports
from gated_interp.cli.options import File, Formats, Layer, formats_of
from gated_interp.core.errors import GatedInterpError

if TYPE_CHECKING:
    from gated_interp.models.language_model import LanguageTransformer
    from gated_interp.models.toy import TaskTransformer

Out = Annotated[
    Path | None, typer.Option(help="Folder for figures, each with its CSV; none if absent.")
]
Trigram = Annotated[
    int | None,
    typer.Option(min=1, help="Drawn where a figure is of one; a distributed one if absent."),
]
STRONGEST = 5


def ablate(
    file: File,
    method: Annotated[
        Literal["zero", "mean", "resample", "optimal"],
        typer.Option(help="For the table of trigrams; the others show all four."),
    ] = "zero",
    out: Out = None,
    formats: Formats = "svg,png,html",
    trigram: Trigram = None,
    layer: Layer = None,
) -> None:
    """Say what is lost without each head.

    By four methods of ablation, and by Shapley values and interactions over all subsets of heads;
    in a model of several layers, of the heads of one layer (its last, unless another is named); of
    a language model (or one of its layers) by three methods of ablation, on held-out text.
    """
    kinds = formats_of(formats)
    with quick_imports():
        from gated_interp.analysis.heads import chosen_layer
        from gated_interp.analysis.subsets import pair_interactions
        from gated_interp.checkpoints.checkpoint import load
        from gated_interp.experiments import inspect_figures, inspect_tables
        from gated_interp.models.language_model import LanguageTransformer

    model = load(file)
    if isinstance(model, LanguageTransformer):
        _refuse_trigram(model, trigram)
        _ablate_text(model, out, layer)
        return
    task, name, word = model.task, model.model_name, model.task.case_word
    if trigram is not None:
        inspect_tables.require_trigram(task, trigram)
    layer = chosen_layer(model, model.cfg.n_layers - 1 if layer is None else layer)
    effects = inspect_tables.ablations(model, task)
    labels = task.cases
    answer = inspect_tables.answer_word(task)
    where = "trigram's B" if word == "trigram" else word

    loss = effects[effects["metric"] == "loss"].pivot(index="heads", columns="method")["change"]
    order = effects["heads"].unique()
    loss = loss.loc[order, list(inspect_tables.METHODS)]
    show(
        f"{name}: change in cross-entropy (nats) without each head, by method",
        ["ablated", *loss.columns],
        [[head, *map(_signed, row)] for head, row in zip(order, loss.to_numpy(), strict=True)],
    )
    for metric, words in (
        ("logit", f"change in the logit of {answer}"),
        ("accuracy", "change in accuracy"),
    ):
        mine = effects[(effects["metric"] == metric) & (effects["method"] == method)]
        table = mine.pivot(index="heads", columns="trigram", values="change").loc[order]
        show(
            f"{words} at each {where} ({method} ablation)",
            ["ablated", *labels.values()],
            [[head, *map(_signed, row)] for head, row in zip(order, table.to_numpy(), strict=True)],
        )

    shapley = inspect_tables.shapley_table(model, task, layer)
    leads = shapley[shapley["metric"] == "lead"]
    table = leads.pivot(index="head", columns="trigram", values="value")
    heads = leads["head"].unique()
    show(
        f"Shapley value of each head for the lead of {answer} over the next token (logits)",
        ["head", *labels.values()],
        [
            [h, *map(_signed, row)]
            for h, row in zip(heads, table.loc[heads].to_numpy(), strict=True)
        ],
    )
    pairs = pair_interactions(model, task, layer=layer)["lead"]
    rows = [
        (labels[b], f"{a} with {c}", float(pairs[b - 1, i, j]))
        for b in task.cases
        for i, a in enumerate(heads)
        for j, c in enumerate(heads)
        if i < j
    ]
    rows = sorted((r for r in rows if abs(r[2]) >= 0.01), key=lambda r: -abs(r[2]))[:STRONGEST]
    if rows:
        show(
            f"strongest interactions of two heads (lead of {answer}, logits)",
            [word, "heads", "together beyond each alone"],
            [(label, both, _signed(value)) for label, both, value in rows],
        )
    else:
        say("No two heads interact: what each adds does not depend on any other.")
    if out is not None:
        with progress("drawing"):
            drawn = inspect_figures.ablation_figures(
                model, task, name, effects=effects, shapley=shapley, trigram=trigram, layer=layer
            )
            _save(drawn, name, out, kinds)


def circuits(
    file: File,
    out: Out = None,
    formats: Formats = "svg,png,html",
    trigram: Trigram = None,
    layer: Layer = None,
) -> None:
    """Say what each head's circuits do.

    OV, QK and gate; and how far the model's representations are in superposition, or in a model of
    several layers how its heads compose.
    """
    kinds = formats_of(formats)
    with quick_imports():
        from gated_interp.checkpoints.checkpoint import load
        from gated_interp.experiments import inspect_figures, inspect_tables
        from gated_interp.models.language_model import LanguageTransformer

    model = load(file)
    if isinstance(model, LanguageTransformer):
        _refuse_trigram(model, trigram)
        _circuits_of_text(model, out, layer)
        return
    task, name = model.task, model.model_name
    if trigram is not None:
        inspect_tables.require_trigram(task, trigram)
    summary = inspect_tables.circuit_summary(model, task, layer)
    show(
        f"{name}: what each head's circuits do most",
        summary.columns.tolist(),
        summary.astype(object).where(summary.notna(), "-").to_numpy().tolist(),
    )
    if model.cfg.n_layers > 1:
        _show_composition(model)
        _show_induction(model)
    else:
        _show_superposition(model)
    if out is not None:
        last = model.cfg.n_layers - 1 if layer is None else layer
        with progress("drawing"):
            drawn = inspect_figures.circuit_figures(model, task, name, trigram=trigram, layer=last)
            _save(drawn, name, out, kinds)


def _show_composition(model: "TaskTransformer") -> None:
    """What heads read of the heads of earlier layers."""
    from gated_interp.analysis.circuits import composition_scores
    from gated_interp.analysis.heads import head_name

    found = composition_scores(model).sort_values("score", ascending=False, kind="stable")
    rows = [
        (
            head_name((r["sender_layer"], r["sender_head"])),
            head_name((r["receiver_layer"], r["receiver_head"])),
            r["kind"],
            r["score"],
        )
        for r in found.head(STRONGEST).to_dict("records")
    ]
    show("what heads read of earlier heads most", ["writes", "reads", "by", "score"], rows)


def _show_superposition(model: "TaskTransformer") -> None:
    """How far the representations of a one-layer model are in superposition."""
    from gated_interp.analysis.superposition import superposition_report

    report = superposition_report(model, model.task)
    each = report[report["scope"] == "representation"]
    table = each.pivot(index="trigram", columns="measure", values="value")
    table = table[list(each["measure"].unique())]
    yes_no = [c for c in table if c in ("learnt", "distributed", "composed", "superposed")]
    for column in yes_no:
        table[column] = table[column].map({1.0: "yes", 0.0: "no"})
    # One column per trigram: there are more measures than trigrams.
    show(
        "each representation",
        ["measure", *model.task.cases.values()],
        [[str(measure).replace("_", " "), *table[measure]] for measure in table],
    )
    whole = report[report["scope"] == "model"]
    show(
        "the model",
        ["measure", "value", "95% interval"],
        [
            (r["measure"].replace("_", " "), r["value"], _interval(r["low"], r["high"]))
            for r in whole.to_dict("records")
        ],
    )


def _show_induction(model: "TaskTransformer") -> None:
    """Previous-token and induction heads, where the task repeats tokens."""
    from gated_interp.analysis.heads import head_name
    from gated_interp.analysis.induction import induction_scores
    from gated_interp.analysis.verdict import EXAMPLES, SEED
    from gated_interp.tasks.repeated_tokens import RepeatedTokensTask

    if not isinstance(model.task, RepeatedTokensTask):
        return
    scores = induction_scores(model, model.task.sample(EXAMPLES, SEED).tokens)
    rows = [
        (head_name((r["layer"], r["head"])), r["previous_token"], r["prefix_matching"])
        for r in scores.to_dict("records")
    ]
    show("where heads attend", ["head", "previous token", "prefix matching"], rows)


def _refuse_trigram(model: "LanguageTransformer", trigram: int | None) -> None:
    if trigram is not None:
        raise GatedInterpError(
            f"{model.model_name} is a language model and has no trigrams; leave --trigram away."
        )


def _ablate_text(model: "LanguageTransformer", out: Path | None, layer: int | None) -> None:
    from gated_interp.experiments.text_tables import METHODS, text_ablations

    with progress("ablating"):
        effects = text_ablations(model, layer=layer)
    order = effects["heads"].unique()
    for metric, words in (("loss", "change in cross-entropy"), ("kl", "KL from the intact model")):
        mine = effects[effects["metric"] == metric].set_index(["heads", "method"])
        rows = [
            [head, *(_with_interval(mine.loc[(head, method)]) for method in METHODS)]
            for head in order
        ]
        show(
            f"{model.model_name}: {words} (nats per token, 95% interval) without each head",
            ["ablated", *METHODS],
            rows,
        )
    _write_table(effects, model.model_name + "-ablation", out)


def _circuits_of_text(model: "LanguageTransformer", out: Path | None, layer: int | None) -> None:
    from gated_interp.experiments.text_tables import text_circuits

    with progress("multiplying"):
        table = text_circuits(model, layer=layer)
    title = f"{model.model_name}: scores of each head, and the largest entries of its circuits"
    show(title, table.columns.tolist(), table.to_numpy().tolist())
    _write_table(table, model.model_name + "-circuits", out)


def _write_table(table: Any, name: str, out: Path | None) -> None:
    if out is None:
        return
    from gated_interp.core.files import write_table

    path = write_table(table, out / f"{name}.csv", float_format=None)
    say(f"The table is in {path}.")


def _with_interval(row: Any) -> str:
    return f"{_signed(row['change'])} ({_interval(row['low'], row['high'])})"


def _save(drawn: dict[str, Any], name: str, out: Path, kinds: list[str]) -> None:
    from gated_interp.experiments.inspect_figures import save_under

    files = save_under({f"{name}-{stem}": f for stem, f in drawn.items()}, out, kinds, say=tell)
    say(f"{len(files)} files are in {out}.")


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) >= 5e-4 else "0"


def _interval(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if low == low else "-"


COMMANDS = {"ablate": ablate, "circuits": circuits}
