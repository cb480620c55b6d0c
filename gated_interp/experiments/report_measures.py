"""The parts of a report that every model has: how exact, how sparse, its heads, what made it."""

import dataclasses
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gated_interp import __version__
from gated_interp.analysis.block_measures import block_measures
from gated_interp.analysis.faithfulness import faithfulness, loss_recovered
from gated_interp.analysis.sparsity import sparsity
from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.report_subject import REPLICATES, Subject, between, is_known
from gated_interp.plots.frontier import frontier_point
from gated_interp.plots.report_page import Cards, Picture, Section, Table
from gated_interp.training.state import fingerprint

# Where answers are known, holding is another thing: sufficient, necessary and specific.
TEXT_ALONE = "positions that one head alone holds"
# Rows of the table: of the block, of the original, of the bootstrap, how they are written.
MEASURES: dict[str, tuple[str, str | None, str | None, str]] = {
    "loss (nats per token)": ("ce", "ce_original", "cross_entropy", ".3f"),
    "KL from the original's prediction (nats per position)": ("kl", None, "kl", ".3g"),
    "loss recovered (against zero)": ("ce_recovered_zero", None, "ce_recovered_zero", ".1%"),
    "loss recovered (against mean)": ("ce_recovered_mean", None, "ce_recovered_mean", ".1%"),
    "FVU (fraction of variance unexplained)": ("fvu", None, "fvu", ".3g"),
    "heads active per position": ("active_per_position", "active_original", None, ".2f"),
    "open gates per (query, key) pair": ("gates_per_pair", None, "l0", ".2f"),
    "heads that write anywhere": ("heads_alive", None, None, ".0f"),
    TEXT_ALONE: ("held_share", "held_share_original", None, ".1%"),
}
PLACE = ["fvu", "active_per_position", "gates_per_pair"]
FRONTIER = ["task", "method", "fvu", "active_per_position", "l0"]
RUNS = ["layer", *PLACE]


def frontier_section(subject: Subject, beside: pd.DataFrame | None) -> Section:
    """How exact the block is, and how sparse; of a model without one how sparse it is.

    Args:
        beside: of :func:`read_beside`, to be drawn beside the block.
    """
    if subject.original is None:
        return _without_block(subject)
    parts: list[Picture | Table] = []
    points = []
    for layer in subject.layers:
        numbers = measured(subject, layer)
        parts.append(_facts(numbers, subject, layer))
        points += points_of(numbers, f"layer {layer}: " if len(subject.layers) > 1 else "")
    place = pd.DataFrame(points)
    block = place.iloc[1]
    said = (
        f"The block leaves {block['fvu']:.3g} of the variance unexplained while "
        f"{block['active_per_position']:.2f} heads write at a position (the original: "
        f"{place.iloc[0]['active_per_position']:.2f}) and {block['gates_per_pair']:.2f} gates are "
        "open per pair."
    )
    tables = {"": place} if beside is None else {"": place, "beside": beside}
    note = "" if beside is None else f" The lines are {beside.attrs['said']}."
    fig = frontier_point(place, beside, title=f"{subject.name}: exact and sparse")
    caption = (
        "Lower is closer to the original, further left is sparser. The original explains itself "
        f"(FVU 0), all its heads being open everywhere, as heads without gates "
        f"are. Bars are 95% intervals.{note}"
    )
    parts.insert(0, Picture("frontier-point", fig, f"{said}{note}", caption, tables))
    if len(subject.layers) > 1:
        parts.append(_all_at_once(subject))
    words = [
        said,
        "Loss recovered is 100% where the model predicts as well as with its own attention, and 0% "
        "where it does no better than with that attention's output set to zero (or to its mean).",
    ]
    return Section("frontier", "How exact and how sparse: its place on the frontier", words, parts)


def measures_of(subject: Subject) -> dict[str, tuple[str, str | None, str | None, str]]:
    """The rows of the table that mean something for this model's task."""
    known = is_known(subject.task)
    return {name: row for name, row in MEASURES.items() if not (known and name == TEXT_ALONE)}


def measured(subject: Subject, layer: int) -> pd.DataFrame:
    """``measure``, ``original``, ``block``, ``low`` and ``high`` (95%, bootstrap of sequences)."""
    found: dict[str, float] = block_measures(subject.model, layer, subject.batch)
    parts = faithfulness(subject.model, layer, subject.batch)
    drawn = parts.measures(subject.bootstrap)
    assert subject.original is not None
    alive = sparsity(subject.original, layer, subject.batch)["heads_alive"]
    own = {
        "kl": 0.0,
        "fvu": 0.0,
        "heads_alive": alive,
        "gates_per_pair": float(subject.original.blocks[layer].attn.W_O.shape[0]),
        "ce_recovered_zero": 1.0,
        "ce_recovered_mean": 1.0,
    }
    rows = []
    for block, original, sampled, _ in measures_of(subject).values():
        ends = [float("nan")] * 2
        if sampled in drawn:
            ends = torch.quantile(drawn[sampled], torch.tensor([0.025, 0.975]).double()).tolist()
        before = own[block] if original is None else found[original]
        rows.append([block, before, found[block], *ends])
    return pd.DataFrame(rows, columns=["measure", "original", "block", "low", "high"])


def points_of(numbers: pd.DataFrame, prefix: str = "") -> list[dict[str, Any]]:
    """The original's and the block's place, as :func:`frontier_point` takes them."""
    table = _by_measure(numbers)
    places = {
        side: {measure: table[measure][side] for measure in PLACE} for side in ("original", "block")
    }
    ends = {end: table["fvu"][end] for end in ("low", "high")}
    none = {"low": float("nan"), "high": float("nan")}
    return [
        {"name": f"{prefix}{side}", **place, **(ends if side == "block" else none)}
        for side, place in places.items()
    ]


def _by_measure(numbers: pd.DataFrame) -> dict[str, dict[str, float]]:
    ends = ("original", "block", "low", "high")
    return {row["measure"]: {e: row[e] for e in ends} for row in numbers.to_dict("records")}


def _facts(numbers: pd.DataFrame, subject: Subject, layer: int) -> Table:
    rows = []
    for words, (measure, _, _, form) in measures_of(subject).items():
        row = _by_measure(numbers)[measure]
        cells = [f"{row[side]:{form}}" for side in ("original", "block")]
        rows.append([words, *cells, between(row["low"], row["high"], form)])
    which = f"Layer {layer}: faithfulness" if len(subject.layers) > 1 else "Faithfulness"
    return Table(
        f"faithfulness-L{layer}",
        f"{which} and sparsity",
        ["measure", "original", "block", "95% interval"],
        rows,
        numbers,
        f"Measured on {_size(subject)}. Intervals are of the block, by {REPLICATES} bootstrap "
        "samples of the sequences; a dash where none is given.",
    )


def _all_at_once(subject: Subject) -> Table:
    found = loss_recovered(subject.model, subject.layers, subject.batch)
    numbers = pd.DataFrame(
        {"measure": list(found), "value": [float(value) for value in found.values()]}
    )
    words = {m: w for w, (m, *_) in MEASURES.items()}
    rows = [[words.get(m, m.replace("_", " ")), f"{value:.4g}"] for m, value in found.items()]
    caption = "All layers spliced at once"
    return Table("faithfulness-all", caption, ["measure", "value"], rows, numbers)


def _without_block(subject: Subject) -> Section:
    loss = float(faithfulness(subject.model, tokens=subject.batch).cross_entropy.mean())
    rows, numbers = [["loss (nats per token)", f"{loss:.4g}"]], [["ce", None, loss]]
    for layer in subject.layers:
        which = f", layer {layer}" if len(subject.layers) > 1 else ""
        found = sparsity(subject.model, layer, subject.batch)
        each = [("heads active per position", "active_per_position", found["active_per_position"]),
                ("heads that write anywhere", "heads_alive", found["heads_alive"])]  # fmt: skip
        for said, measure, value in each:
            rows.append([said + which, f"{value:.4g}"])
            numbers.append([measure, layer, value])
    table = Table(
        "sparsity",
        "The model's heads",
        ["measure", "value"],
        rows,
        pd.DataFrame(numbers, columns=["measure", "layer", "value"]),
        f"Measured on {_size(subject)}.",
    )
    words = [
        "No block was spliced into this model, so there is nothing that could be more or less "
        "faithful to it: these are its own numbers, which a block would be set beside."
    ]
    return Section("frontier", "How sparse: what a block would be set beside", words, [table])


def read_beside(path: Path, subject: Subject) -> pd.DataFrame:
    """What else reached which place, from a frontier's table or a decomposition's.

    Raises:
        GatedInterpError: a model without a block, another table, or one without a fitting row.
    """
    if subject.original is None:
        raise GatedInterpError(f"{subject.name} has no block that {path} could be drawn beside.")
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise GatedInterpError(
            f"{path} cannot be read as a table; name the frontier.csv of `gated-interp frontier` "
            "or the runs.csv of `gated-interp decompose`."
        ) from error
    if set(FRONTIER) <= set(table):
        name = setting_of(subject)
        table = table[table["task"].astype(str) == name].rename(columns={"l0": "gates_per_pair"})
        said = f"for {name}"
    elif set(RUNS) <= set(table):
        table = table[table["layer"].isin(subject.layers)].assign(method="runs of decompose")
        said = f"for layer {', '.join(map(str, subject.layers))}"
    else:
        missing = [name for name in FRONTIER if name not in table]
        raise GatedInterpError(
            f"{path} has no column {missing[0]}; name the frontier.csv of `gated-interp frontier` "
            "or the runs.csv of `gated-interp decompose`."
        )
    if table.empty:
        raise GatedInterpError(f"{path} has no row {said}, so nothing to draw beside this block.")
    found = table[["method", *PLACE]].reset_index(drop=True)
    n = found["method"].nunique()
    many = "s" if n > 1 else ""
    found.attrs["said"] = f"what {n} method{many} reached {said} ({path.name})"
    return found


def setting_of(subject: Subject) -> str:
    """What a frontier calls the toy: its shape, such as ``3H4ST``, or else its model's name."""
    toy = getattr(subject.model, "toy_config", None)
    return subject.name if toy is None else str(toy.name)


def heads_section(
    subject: Subject, holds: Mapping[int, Mapping[str, Mapping[int, str]]] | None = None
) -> Section:
    """Cards of every head, the original's before the block's.

    Args:
        holds: by layer, side and head what it holds, where that is known.

    Raises:
        GatedInterpError: what stands at a layer has no attention to read.
    """
    many = len(subject.layers) > 1
    sides, held = {}, {}
    for layer, by_side in subject.readings.items():
        for side, read in by_side.items():
            name = f"layer {layer}, {side}" if many else side
            sides[name] = read
            if holds is not None:
                held[name] = holds[layer][side]
    words = [
        f"Read on {_size(subject)}. “Reads” are the tokens a head takes most from (attention times "
        "gate times the length of the value), “writes at” those it writes at, “says” those it "
        "raises most; all three by how much more often than the other heads do. Below each head, "
        "the places where it writes most.",
    ]
    return Section(
        "heads", "What each head does", words, [Cards(sides, subject.names, held or None)]
    )


def provenance_section(subject: Subject, command: str) -> Section:
    """Versions, configs, seeds, and the command that made the page."""
    model = subject.model
    info: Any = getattr(model, "info", None)
    facts: dict[str, Any] = {
        "made by": command,
        "gated-interp": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformer-lens": version("transformer-lens"),
        "model": subject.name,
        "hash of the weights": fingerprint(model, trained=True),
        "task": "none named" if subject.task is None else str(subject.task),
        "measured on": _size(subject),
        "seed of these, and of the bootstrap": subject.seed,
    }
    own: dict[str, Any] = {}
    if info is not None:
        facts["checkpoint"] = f"{info.kind}, format {info.format}"
        parts = {"model": info.model} | {f"layer {i}": p for i, p in info.replacements.items()}
        for name, part in parts.items():
            if part is not None:
                own |= {f"{name}: {key}": v for key, v in part.config.to_dict().items()}
    own |= {f"note: {key}": value for key, value in _flat(getattr(model, "notes", None) or {})}
    words = [
        "Everything on this page was computed from the model's weights through activation hooks. "
        "The same command on the same machine gives the same numbers.",
    ]
    parts_shown = [_named("provenance", "What made this page", facts)]
    if own:
        caption = "Configs and seeds of the model and its blocks, and what their makers noted"
        parts_shown.append(dataclasses.replace(_named("configs", caption, own), folded=True))
    return Section("provenance", "Provenance", words, parts_shown)


def _named(stem: str, caption: str, facts: Mapping[str, Any]) -> Table:
    rows = [[name, _written(value)] for name, value in facts.items()]
    numbers = pd.DataFrame(rows, columns=["name", "value"])
    return Table(stem, caption, ["name", "value"], rows, numbers)


def _flat(notes: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in notes.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{key}: ")
        else:
            found.append((f"{before}{key}", value))
    return found


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _size(subject: Subject) -> str:
    n, length = subject.batch.tokens.shape
    upto = "up to " if subject.batch.real is not None else ""
    return f"{n:,} sequences of {upto}{length} positions"
