"""The parts of a report on a model whose right answers are known: a toy, or another task's."""

from collections.abc import Mapping

import pandas as pd

from gated_interp.analysis.circuits import composition_scores
from gated_interp.analysis.heads import head_name, heads_of
from gated_interp.analysis.holders import Holders, holders
from gated_interp.experiments import inspect_figures
from gated_interp.experiments.figures import before_after_of, roles_of
from gated_interp.experiments.inspect_figures import Figure
from gated_interp.experiments.inspect_tables import (
    METHODS,
    ablations,
    circuit_summary,
    circuit_table,
    example_of,
    shapley_table,
)
from gated_interp.experiments.report_subject import Subject, change, is_toy, listed, together
from gated_interp.plots.report_page import Picture, Section, Table
from gated_interp.replacements.splice import gated_block

STRONGEST = 12


def found_holders(subject: Subject) -> dict[int, dict[str, Holders]]:
    """By layer and side, who holds what."""
    return {
        layer: {
            side: holders(model, subject.task, layer=layer) for side, model in subject.sides.items()
        }
        for layer in subject.layers
    }


def held_by_head(subject: Subject, found: Mapping[str, Holders]) -> dict[str, dict[int, str]]:
    """By side and head, the names of what it holds."""
    held: dict[str, dict[int, str]] = {}
    for side, holding in found.items():
        held[side] = {}
        for b, heads in holding.holders.items():
            for h in heads:
                before = held[side].get(h)
                name = str(subject.task.cases[b])
                held[side][h] = name if before is None else f"{before}, {name}"
    return held


def holders_section(subject: Subject, found: Mapping[int, dict[str, Holders]]) -> Section:
    """Who holds what, before and after."""
    word = subject.task.case_word
    parts: list[Picture | Table] = [
        _holders_table(subject, layer, sides) for layer, sides in found.items()
    ]
    said = verdict_of(subject, next(iter(found.values())))
    if is_toy(subject) and subject.original is not None:
        figure = before_after_of(subject.model, subject.task, subject.name, subject.original)
        caption = (
            f"A row per {word}, a column per head. Filled: the head holds it, "
            "by ablation. Hatched: heads share it, none alone does. The number is the head's "
            "share (%) of what is added to the logit of the right answer."
        )
        parts.insert(0, picture("before-after", figure, said, caption))
        if gated_block(subject.model) is not None:
            parts.append(_roles(subject))
    if is_toy(subject):
        loadings = inspect_figures.loadings_figure(
            subject.model, subject.task, subject.name, subject.original
        )
        caption = f"How many logits each head adds to the right answer of each {word}, in the mean."
        alt = f"Heat maps of what {_heads(subject)} add to the answer of each {word}."
        parts.append(picture("loadings", loadings, alt, caption))
    words = [
        said,
        f"A head holds a {word} when ablation shows it sufficient (every other head switched off, "
        "the model still answers in more than 99% of cases), necessary (without it alone, in less "
        f"than half) and specific (without it, every other {word} stays above 99%). A model is "
        f"clean when each {word} is held by exactly one head, and these heads differ.",
    ]
    title = "Who holds what" if subject.original is None else "Before and after: who holds what"
    return Section("holders", title, words, parts)


def verdict_of(subject: Subject, sides: dict[str, Holders]) -> str:
    """The holders of each side in a sentence."""
    said = []
    for side, found in sides.items():
        alone = sum(len(heads) == 1 for heads in found.holders.values())
        what = "clean" if found.clean else "not clean"
        word = subject.task.case_word
        said.append(
            f"the {side}: {alone} of {len(found.holders)} {word}s held by one head alone ({what})"
        )
    sentence = "; ".join(said)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _holders_table(subject: Subject, layer: int, sides: dict[str, Holders]) -> Table:
    rows = []
    for b, case in subject.task.cases.items():
        row = [str(case)]
        for found in sides.values():
            reason = found.why_not().get(b)
            row += [
                listed(found.holders[b], layer) if reason is None else f"none: {reason}",
                f"{found.accuracy[b - 1]:.1%}",
            ]
        rows.append(row)
    many = len(sides) > 1
    columns = [
        f"{name} ({side})" if many else name for side in sides for name in ("held by", "answered")
    ]
    which = f", layer {layer}" if len(subject.layers) > 1 else ""
    caption = f"Which head holds which {subject.task.case_word}{which}"
    numbers = together({side: holder_numbers(subject, found) for side, found in sides.items()})
    note = "The file has, per head, what is answered with it alone and without it."
    stem = f"holders-L{layer}"
    return Table(stem, caption, [subject.task.case_word, *columns], rows, numbers, note)


def holder_numbers(subject: Subject, found: Holders) -> pd.DataFrame:
    """Of each case and head: whether it holds it, and what is answered alone and without it."""
    return pd.DataFrame(
        [
            {
                "case": str(case),
                "head": head_name((found.layer, h)),
                "holds": h in found.holders[b],
                "answered": float(found.accuracy[b - 1]),
                "alone": float(found.alone[b - 1, h]),
                "without": float(found.without[b - 1, h]),
            }
            for b, case in subject.task.cases.items()
            for h in range(found.alone.shape[1])
        ]
    )


def _roles(subject: Subject) -> Picture:
    figure = roles_of(subject.model, subject.task, subject.name)
    caption = (
        "Left: at which tokens each head writes, as a share of all that heads write on ordinary "
        "sequences. Right: what is left with all heads, without those that hold something, and "
        "with nothing else."
    )
    alt = "Where each head writes, and what is left of the model without the holders, or with them."
    return picture("roles", figure, alt, caption)


def circuits_of_toy(subject: Subject) -> Section:
    """Circuits, gates, and one example."""
    model, task, name = subject.model, subject.task, subject.name
    parts: list[Picture | Table] = []
    if is_toy(subject):
        heads = _heads(subject)
        caption = (
            "OV: what a head adds to the logit of each output token (right) when it attends to a "
            "source token. QK: how strongly each query token looks at each key token. Gate: how "
            "far it opens for each pair; 0 is shut."
        )
        drawn = inspect_figures.circuits_figure(model, task, name)
        parts.append(picture("circuits", drawn, f"Circuits of {heads} as heat maps.", caption))
        parts += _examples(subject)
    summary = circuit_summary(model, task)
    mine = {head_name(h) for layer in subject.layers for h in heads_of(model, layer)}
    summary = summary[summary["head"].isin(mine)]
    rows = [[_cell(value) for value in row] for row in summary.to_numpy().tolist()]
    columns = [str(c).replace("_", " ") for c in summary.columns]
    note = (
        "Copying score: from -1 (suppresses the token it attends to) to 1 (copies it). The largest "
        "entry of each circuit: source → output, query → key."
    )
    caption = "What each head's circuits do most"
    parts.append(Table("circuit-summary", caption, columns, rows, summary, note))
    if not is_toy(subject) and model.cfg.n_layers == 1:
        entries = circuit_table(model, task)
        parts[-1] = Table("circuits", caption, columns, rows, entries, note)
    if model.cfg.n_layers > 1:
        parts.append(composition_of(subject))
    words = [
        "Circuits are read off the weights: what a head would do for every pair of tokens, "
        "whatever it meets."
    ]
    return Section("circuits", "Circuits", words, parts)


def composition_of(subject: Subject) -> Table:
    """What later heads read most of earlier ones."""
    found = composition_scores(subject.model).sort_values("score", ascending=False, kind="stable")
    rows = [
        [
            head_name((r["sender_layer"], r["sender_head"])),
            head_name((r["receiver_layer"], r["receiver_head"])),
            r["kind"],
            f"{r['score']:.3f}",
            f"{r['expected']:.3f}",
        ]
        for r in found.head(STRONGEST).to_dict("records")
    ]
    columns = ["writes", "reads", "by", "score", "random heads"]
    note = f"The {len(rows)} largest of {len(found)}; the file has all."
    caption = "What heads read of earlier heads most"
    return Table("composition", caption, columns, rows, found, note)


def _examples(subject: Subject) -> list[Picture]:
    """One sequence, seen through the heads: the original's and the block's."""
    before = subject.original or subject.model
    example = example_of(before, subject.task)
    label = subject.task.cases[example.trigram]
    parts = []
    for side, model in subject.sides.items():
        shown = example_of(model, subject.task, example.trigram)
        name = subject.name if subject.original is None else f"{subject.name}, {side}"
        figure = inspect_figures.wiring_figure(model, subject.task, name, shown)
        caption = (
            "One sequence: what the heads read at the last token shown, and what each writes to "
            "the logits. The thicker a ribbon, the more."
        )
        alt = f"What each head of the {side} reads and writes in one example of {label}."
        parts.append(picture(f"wiring-{side}", figure, alt, caption))
    after = example_of(subject.model, subject.task, example.trigram)
    figure = inspect_figures.attention_figure(subject.model, subject.task, subject.name, after)
    caption = "The same sequence: attention of every head, and what of it the gates let through."
    alt = f"Attention patterns of {_heads(subject)} in one example of {label}."
    parts.append(picture("attention", figure, alt, caption))
    return parts


def ablations_of_toy(subject: Subject) -> Section:
    """What is lost without each head, by four methods, and what each adds over all subsets."""
    parts: list[Picture | Table] = []
    effects = {side: ablations(model, subject.task) for side, model in subject.sides.items()}
    for side, model in subject.sides.items():
        parts.append(loss_table(side, effects[side], METHODS))
        if not is_toy(subject):
            continue
        name = subject.name if subject.original is None else f"{subject.name}, {side}"
        figure = inspect_figures.ablation_figure(model, subject.task, name, effects[side])
        caption = (
            "Change in the logit of each right answer, with 95% intervals. Zero, mean and "
            "resample put zeros, a mean or another sequence's output in the head's place; optimal "
            "the constant that loses least."
        )
        alt = f"Bars: the change in each answer's logit without each head of the {side}."
        parts.append(picture(f"ablation-{side}", figure, alt, caption))
    if is_toy(subject):
        parts += _shapley(subject)
    words = [
        "What a head is worth depends on what takes its place, so four ablations stand side by "
        "side. Where heads share work, what is lost without one of them says little about what it "
        "is worth: the last row ablates all.",
    ]
    return Section("ablations", "What is lost without each head", words, parts)


def _shapley(subject: Subject) -> list[Picture]:
    trigram = example_of(subject.original or subject.model, subject.task).trigram
    parts = []
    for side, model in subject.sides.items():
        name = subject.name if subject.original is None else f"{subject.name}, {side}"
        table = shapley_table(model, subject.task)
        figure = inspect_figures.shapley_figure(model, subject.task, name, trigram, table)
        caption = (
            "Over every subset of heads: what each adds to the lead of the right answer (Shapley "
            "value), and what each pair adds beyond its two heads."
        )
        alt = f"Shapley values and interactions of the heads of the {side}."
        parts.append(picture(f"shapley-{side}", figure, alt, caption))
    return parts


def loss_table(side: str, effects: pd.DataFrame, methods: tuple[str, ...]) -> Table:
    """The change in cross-entropy by head and method, with intervals."""
    mine = effects[effects["metric"] == "loss"].set_index(["heads", "method"])
    rows = []
    for heads in effects["heads"].unique():
        each = [mine.loc[(heads, method)] for method in methods]
        rows.append([heads, *(change(r["change"], r["low"], r["high"]) for r in each)])
    caption = f"The {side}: change in cross-entropy (nats) without each head, with 95% intervals"
    note = "The file has every measure, method and case."
    return Table(f"ablations-{side}", caption, ["ablated", *methods], rows, effects, note)


def picture(stem: str, figure: Figure, alt: str, caption: str) -> Picture:
    """A drawn figure as a part of the page."""
    fig, data = figure
    tables = {"": data} if isinstance(data, pd.DataFrame) else dict(data)
    return Picture(stem, fig, alt, caption, tables)


def _heads(subject: Subject) -> str:
    return f"{subject.heads(subject.model)} heads"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value == value else "—"
    return str(value)
