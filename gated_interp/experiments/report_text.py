"""The parts of a report on text, or on anything whose right answers are not known."""

from collections.abc import Sequence

import pandas as pd

from gated_interp.analysis.heads import Head, head_name, heads_of
from gated_interp.analysis.text_holders import TextHolders, text_holders
from gated_interp.experiments.report_subject import REPLICATES, Subject, together
from gated_interp.experiments.report_toys import composition_of, loss_table, picture
from gated_interp.experiments.text_tables import METHODS, text_ablations, text_circuits
from gated_interp.plots.report_page import Picture, Section, Table
from gated_interp.plots.text import head_effects
from gated_interp.tasks.text import TextTask


def held_section(subject: Subject) -> Section:
    """At how many positions one head alone holds what a layer says, before and after."""
    parts: list[Picture | Table] = []
    said = []
    for layer in subject.layers:
        which = f", layer {layer}" if len(subject.layers) > 1 else ""
        found = {
            side: text_holders(model, layer, subject.batch) for side, model in subject.sides.items()
        }
        by_head = {side: held.by_head() for side, held in found.items()}
        shares = "; ".join(f"the {side} {held.share:.1%}" for side, held in found.items())
        said.append(f"Positions that one head alone holds{which}: {shares}.")
        fig = head_effects(
            {side: table.rename(columns={"share": "held"}) for side, table in by_head.items()},
            measure="held",
            title=f"{subject.name}{which}: what each head alone holds",
        )
        caption = (
            "A bar per head, on one scale: the share of positions of which it is the sole holder."
        )
        figure = fig, together(by_head)
        parts.append(picture(f"held-L{layer}", figure, f"Bars by head. {said[-1]}", caption))
        parts.append(_held_table(subject, layer, found))
    words = [
        " ".join(said),
        "No task says which token a position should get, so the layer says it: the token that what "
        "its heads write raises most. A head is the position's sole holder when that token stays "
        "on top whatever other heads are removed, and no other head could say the same.",
    ]
    title = "Who holds what" if subject.original is None else "Before and after: who holds what"
    return Section("holders", title, words, parts)


def _held_table(subject: Subject, layer: int, found: dict[str, TextHolders]) -> Table:
    numbers = []
    rows: list[list[str]] = [
        ["positions held by one head alone"],
        ["95% interval"],
        ["the same, each position counting by the layer's effect"],
        ["heads that hold any"],
        ["heads"],
    ]
    weights = subject.bootstrap / len(subject.batch)
    for side, held in found.items():
        drawn = (weights @ held.held.mean(1).cpu()).numpy()
        low, high = pd.Series(drawn).quantile([0.025, 0.975])
        holding = int((held.by_head()["positions"] > 0).sum())
        for row, cell in zip(
            rows,
            [f"{held.share:.2%}", f"{low:.2%} to {high:.2%}", f"{held.weighted_share:.2%}",
             str(holding), str(held.heads)],
            strict=True,
        ):  # fmt: skip
            row.append(cell)
        numbers.append(
            {
                "model": side,
                "held_share": held.share,
                "low": low,
                "high": high,
                "held_weighted": held.weighted_share,
                "heads_holding": holding,
                "heads": held.heads,
            }
        )
    which = f" of layer {layer}" if len(subject.layers) > 1 else ""
    return Table(
        f"held-share-L{layer}",
        f"What the heads{which} hold alone",
        ["measure", *found],
        rows,
        pd.DataFrame(numbers),
        f"Intervals by {REPLICATES} bootstrap samples of the sequences.",
    )


def circuits_of_text(subject: Subject) -> Section:
    """Scores of each head, and the largest entries of its circuits.

    Raises:
        GatedInterpError: a layer without attention.
    """
    parts = []
    # A model without a text names no token to begin with: its sequences do.
    first = None if isinstance(subject.task, TextTask) else int(subject.batch.tokens[0, 0])
    for side, model in subject.sides.items():
        tables = [
            text_circuits(model, layer=i, names=subject.names, bos=first) for i in subject.layers
        ]
        table = pd.concat(tables, ignore_index=True)
        rows = [
            [row["head"], f"{row['copying_score']:.2f}", f"{row['prefix_matching']:.2f}",
             row["writes"], row["looks"]]
            for row in table.to_dict("records")
        ]  # fmt: skip
        columns = ["head", "copying score", "prefix matching", "OV: source → output",
                   "QK: query → key"]  # fmt: skip
        caption = f"The {side}: largest entries of each head's circuits"
        parts.append(Table(f"circuits-{side}", caption, columns, rows, table))
    if subject.model.cfg.n_layers > 1:
        parts.append(composition_of(subject))
    words = [
        "Circuits are read off the weights: what a head would do for every pair of tokens, "
        "whatever it meets. Copying score: from -1 (suppresses the token it attends to) to 1 "
        "(copies it); "
        "prefix matching: how far it attends as an induction head does, 0 to 1, on repeated "
        "random tokens.",
    ]
    return Section("circuits", "Circuits", words, parts)


def ablations_of_text(subject: Subject) -> Section:
    """What is lost without each head, by three methods."""
    effects = {}
    for side, model in subject.sides.items():
        each = [text_ablations(model, layer=i, tokens=subject.batch) for i in subject.layers]
        if len(each) > 1:
            for i, table in zip(subject.layers, each, strict=True):
                table.loc[table["kind"] == "all", "heads"] = f"all heads of layer {i}"
        effects[side] = pd.concat(each, ignore_index=True)
    parts: list[Picture | Table] = []
    for layer in subject.layers:
        which = f", layer {layer}" if len(subject.layers) > 1 else ""
        sides = {
            side: _by_head(effects[side], heads_of(model, layer))
            for side, model in subject.sides.items()
        }
        fig = head_effects(sides, title=f"{subject.name}{which}: what each head is worth")
        most = {side: table.sort_values("effect").iloc[-1] for side, table in sides.items()}
        alt = "; ".join(
            f"the {side} loses most without L{layer}H{int(row['head'])}: {row['effect']:+.4f} nats"
            for side, row in most.items()
        )
        caption = (
            "By how much the loss rises without each head (zero ablation), those that matter most "
            "first; bars are 95% intervals from sequence to sequence."
        )
        parts.append(picture(f"effects-L{layer}", (fig, together(sides)), f"Bars: {alt}.", caption))
    for side in effects:
        parts.append(loss_table(side, effects[side], METHODS))
    words = [
        "What a head is worth depends on what takes its place: zeros, its mean, or what it writes "
        "in another sequence. Where heads share work, what is lost without one of them says little "
        "about what it is worth: the last row ablates all.",
    ]
    return Section("ablations", "What is lost without each head", words, parts)


def _by_head(effects: pd.DataFrame, heads: Sequence[Head]) -> pd.DataFrame:
    names = [head_name(h) for h in heads]
    mine = effects[(effects["method"] == "zero") & (effects["metric"] == "loss")]
    mine = mine.set_index("heads").loc[names]
    ends = {"effect": "change", "effect_low": "low", "effect_high": "high"}
    return pd.DataFrame(
        {"head": range(len(names)), **{new: mine[old].to_numpy() for new, old in ends.items()}}
    )
