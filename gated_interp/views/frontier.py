"""How exact a block is and how sparse; of a model without one, how sparse it is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gated_interp.analysis.block_measures import layer_measures
from gated_interp.analysis.faithfulness import ABLATIONS, faithfulness, loss_recovered
from gated_interp.analysis.sparsity import sparsity
from gated_interp.core.errors import GatedInterpError
from gated_interp.plots.frontier import frontier_point
from gated_interp.subject import REPLICATES, Subject
from gated_interp.views.shown import Shown, View, between

# Where answers are known, holding is another thing: sufficient, necessary and specific.
TEXT_ALONE = "positions that one head alone holds"
MEASURES: dict[str, tuple[str, str | None, str | None, Callable[[float], str]]] = {
    "loss (nats per token)": ("ce", "ce_original", "cross_entropy", "{:.3f}".format),
    "KL from the original's prediction (nats per position)": ("kl", None, "kl", "{:.3g}".format),
    **{
        f"{words} recovered (against {how})": (
            key := f"{of}_recovered_{how}",
            None,
            key,
            "{:.1%}".format,
        )
        for words, of in (("loss", "ce"), ("KL", "kl"))
        for how in ABLATIONS
    },
    "FVU (fraction of variance unexplained)": ("fvu", None, "fvu", "{:.3g}".format),
    "heads active per position": ("active_per_position", "active_original", None, "{:.2f}".format),
    "open gates per (query, key) pair": ("gates_per_pair", None, "l0", "{:.2f}".format),
    "heads that write anywhere": ("heads_alive", None, None, "{:.0f}".format),
    TEXT_ALONE: ("held_share", "held_share_original", None, "{:.1%}".format),
}
"""Rows of the table: what they are called of the block, of the original and of the bootstrap, and
how they are written."""
PLACE = ["fvu", "active_per_position", "gates_per_pair"]
FRONTIER = ["task", "method", "fvu", "active_per_position", "l0"]
RUNS = ["layer", *PLACE]


def show(subject: Subject) -> Iterator[Shown]:
    """The block's place, and a table of each layer."""
    if subject.original is None:
        yield _without_block(subject)
        return
    found = {layer: measured(subject, layer) for layer in subject.layers}
    place = pd.DataFrame(
        [
            {
                "name": f"layer {layer}: {side}" if len(found) > 1 else side,
                **numbers.loc[PLACE, side],
                **(numbers.loc["fvu", ["low", "high"]] if side == "block" else {}),
            }
            for layer, numbers in found.items()
            for side in ("original", "block")
        ],
        columns=["name", *PLACE, "low", "high"],
    )
    own, block = place.to_dict("records")[:2]
    beside = subject.beside
    note = "" if beside is None else f" The lines are {beside.attrs['said']}."
    yield Shown(
        "frontier-point",
        f"The block leaves {block['fvu']:.3g} of the variance unexplained while "
        f"{block['active_per_position']:.2f} heads write at a position (the original: "
        f"{own['active_per_position']:.2f}) and {block['gates_per_pair']:.2f} gates are open per "
        "pair",
        "Lower is closer to the original, further left is sparser. The original explains itself "
        "(FVU 0). Its heads have no gates, so all of them count as open everywhere. Bars are 95% "
        f"intervals.{note}",
        {"": place} if beside is None else {"": place, "beside": beside},
        lambda: frontier_point(place, beside, title=f"{subject.name}: exact and sparse"),
        headline=True,
    )
    for layer, numbers in found.items():
        rows = numbers.T.to_dict("list")
        yield Shown(
            f"faithfulness-L{layer}",
            f"Faithfulness and sparsity{subject.which(layer)[1]}",
            f"Measured on {subject.size}. Intervals are of the block, by {REPLICATES} bootstrap "
            "samples of the sequences. Loss recovered is 100% where the model predicts as well as "
            "with its own attention, and 0% where it does no better than with that attention's "
            "output set to zero (or to its mean).",
            numbers.reset_index(),
            face=pd.DataFrame(
                [
                    [words, form(own), form(block), between(low, high, form)]
                    for words, (key, *_, form) in MEASURES.items()
                    if key in rows
                    for own, block, low, high in [rows[key]]
                ],
                columns=["measure", "original", "block", "95% interval"],
            ),
        )
    if len(subject.layers) > 1:
        whole = loss_recovered(subject.model, subject.layers, subject.batch)
        named = {row[0]: words for words, row in MEASURES.items()}
        table = pd.DataFrame({"measure": list(whole), "value": map(float, whole.values())})
        yield Shown(
            "faithfulness-all",
            "All layers spliced at once",
            f"Measured on {subject.size}.",
            table,
            face=table.assign(measure=[named.get(m, m.replace("_", " ")) for m in whole]),
        )


def measured(subject: Subject, layer: int) -> pd.DataFrame:
    """By ``measure``: ``original``, ``block``, ``low``, ``high`` (95%, bootstrap of sequences)."""
    whole = faithfulness(subject.model, layer, subject.batch)
    drawn = whole.measures(subject.bootstrap)
    found = layer_measures(subject.model, layer, subject.batch)
    if subject.known:
        found = loss_recovered(subject.model, [layer], subject.batch) | found
    else:
        said = {name: value.item() for name, value in whole.measures().items()}
        losses = {"ce": said["cross_entropy"], "ce_original": said["original_cross_entropy"]}
        found = said | losses | found
        for side, which in (("block", ""), ("original", "_original")):
            found[f"held_share{which}"] = subject.at[layer][side].text_holders.share
    assert subject.original is not None
    own = {
        "kl": 0.0,
        "fvu": 0.0,
        "heads_alive": sparsity(subject.original, layer, subject.batch)["heads_alive"],
        "gates_per_pair": float(subject.original.blocks[layer].attn.W_O.shape[0]),
    } | {f"{of}_recovered_{how}": 1.0 for of in ("ce", "kl") for how in ABLATIONS}
    rows: dict[str, list[float]] = {}
    for name, (block, original, sampled, _) in MEASURES.items():
        if (subject.known and name == TEXT_ALONE) or block not in found:
            continue
        ends = [float("nan")] * 2
        if sampled in drawn:
            ends = torch.quantile(drawn[sampled], torch.tensor([0.025, 0.975]).double()).tolist()
        rows[block] = [own[block] if original is None else found[original], found[block], *ends]
    columns = ["original", "block", "low", "high"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("measure")


def _without_block(subject: Subject) -> Shown:
    loss = float(faithfulness(subject.model, tokens=subject.batch).cross_entropy.mean())
    rows: list[list[Any]] = [["ce", None, loss]]
    face = [["loss (nats per token)", f"{loss:.4g}"]]
    for layer in subject.layers:
        found = sparsity(subject.model, layer, subject.batch)
        for words in ("heads active per position", "heads that write anywhere"):
            value = found[MEASURES[words][0]]
            rows.append([MEASURES[words][0], layer, value])
            face.append([words + subject.which(layer)[1], f"{value:.4g}"])
    return Shown(
        "sparsity",
        "No block was spliced into this model, so nothing could be more or less faithful to it",
        f"These are the model's own numbers, to compare a block with. Measured on {subject.size}.",
        pd.DataFrame(rows, columns=["measure", "layer", "value"]),
        face=pd.DataFrame(face, columns=["measure", "value"]),
        headline=True,
    )


def read_beside(path: Path, subject: Subject) -> pd.DataFrame:
    """What else reached which place, from a frontier's table or a decomposition's."""
    if subject.original is None:
        raise GatedInterpError("no-block-to-compare", model=subject.name, path=path)
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise GatedInterpError("bad-comparison-file", path=path) from error
    if set(FRONTIER) <= set(table):
        # A frontier calls a toy by its shape, such as 3H4ST, and any other model by its name.
        toy = getattr(subject.model, "toy_config", None)
        name = subject.name if toy is None else str(toy.name)
        table = table[table["task"].astype(str) == name].rename(columns={"l0": "gates_per_pair"})
        said = f"for {name}"
    elif set(RUNS) <= set(table):
        table = table[table["layer"].isin(subject.layers)].assign(method="runs of decompose")
        said = f"for layer {', '.join(map(str, subject.layers))}"
    else:
        missing = [name for name in FRONTIER if name not in table]
        raise GatedInterpError("comparison-lacks-a-column", path=path, column=missing[0])
    if table.empty:
        raise GatedInterpError("comparison-without-rows", path=path, wanted=said)
    found = table[["method", *PLACE]].reset_index(drop=True)
    n = found["method"].nunique()
    found.attrs["said"] = f"what {n} method{'s' if n > 1 else ''} reached {said} ({path.name})"
    return found


VIEW = View("frontier", show, gallery="no")
