"""What a report says first: what heads share, what a block changed, and how sure that is.

Every number is one of a table that the report shows, or of the analysis behind it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from gated_interp.analysis.measures import shares
from gated_interp.core.written import change, count, interval, number, share, short
from gated_interp.experiments.recipes import recipe_named
from gated_interp.replacements.splice import gated_block
from gated_interp.subject import Side, Subject
from gated_interp.training.config import TrainConfig
from gated_interp.training.objectives import MISSED
from gated_interp.views.shown import Shown

# Of what several heads have a part in, those with at least this share are named, and so many cases.
LEAST, MOST_CASES = 0.05, 8


@dataclasses.dataclass(frozen=True)
class Point:
    """One line of the conclusion.

    Attributes:
        label: what it is about, where it begins with that.
        words: a sentence or several.
        link: the anchor of its numbers.
        see: what the link says.
    """

    label: str
    words: str
    link: str = ""
    see: str = "See the numbers"


Tables = Mapping[str, Any]
"""What a report shows, by name."""


def conclusion(
    subject: Subject, sections: Mapping[str, Sequence[Shown]]
) -> tuple[list[Point], list[str]]:
    """What a report begins with, and warnings.

    Args:
        sections: by topic what the report shows, whose numbers these are.
    """
    tables = {s.name: s.table for section in sections.values() for s in section}
    points = []
    if "overview" in tables:
        (overview,) = (s for s in sections["overview"] if s.name == "overview")
        points.append(Point("Where to look.", f"{overview.title}.", "shown-overview"))
    for layer in subject.layers:
        points += (_known if subject.known else _text)(subject, layer, tables)
    if strongest := [s for s in sections.get("heads", ()) if s.name.startswith("strongest")]:
        words = " ".join(f"{s.title}." for s in strongest)
        points.append(
            Point("Which head matters.", words, f"shown-{strongest[-1].name}", "See its attention")
        )
    reached = targets(subject, tables)
    return [*points, _sure(subject, reached)], warned(reached)


# ---- tasks with known answers


def _known(subject: Subject, layer: int, tables: Tables) -> Iterator[Point]:
    sides = subject.at[layer]
    word, link = subject.task.case_word, f"shown-holders-L{layer}"
    for name, side in sides.items():
        where = f"Layer {layer}: " if len(subject.layers) > 1 else ""
        words = f"{where}{_held(side, word, subject.task.cases)}"
        if name == "block":
            yield Point(f"What the block changed{_at(subject, layer)}.", words, link)
            yield Point("", _exact(subject, layer, tables), f"shown-faithfulness-L{layer}")
        else:
            own = " in the original" if len(sides) > 1 else ""
            yield Point(f"What heads share{own}.", words, link)


def _held(side: Side, word: str, cases: Mapping[int, str]) -> str:
    """Who holds what, and who has a part in what no head holds."""
    found, n = side.holders, len(cases)
    alone = {b: heads[0] for b, heads in found.holders.items() if len(heads) == 1}
    if len(alone) in (0, n):
        said = [f"{'Each' if alone else 'No'} {word} is held by one head alone."]
    else:
        said = [f"{count(len(alone), n)} {word}s are held by one head alone."]
    if alone:
        said.append(f"{_listed([f'{side.heads[h]} holds {cases[b]}' for b, h in alone.items()])}.")
    if found.clean and n > 1:
        said.append("No head holds two: the model is clean.")
    others = {b: why for b, why in found.why_not().items() if b in found.learnt}
    if others and side.linear:
        parts = shares(side.loadings).tolist()
        names = [f"of {cases[b]}, {_parts(parts[b - 1], side.heads)}" for b in others]
        said.append(f"What heads add to the right answer: {_listed(names)}.")
    elif others:
        said.append(f"Why not: {_listed([f'{cases[b]}, {why}' for b, why in others.items()])}.")
    if lost := [str(cases[b]) for b in cases if b not in found.learnt]:
        said.append(f"Not learnt: {_listed(lost)}.")
    return " ".join(said)


def _parts(part: Sequence[float], heads: Sequence[str]) -> str:
    most = sorted(zip(part, heads, strict=True), reverse=True)
    return " and ".join(f"{share(p)} by {head}" for p, head in most if p >= LEAST)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_CASES
    return "; ".join(names[:MOST_CASES]) + (f"; and {more} more" if more > 0 else "")


# ---- text


def _text(subject: Subject, layer: int, tables: Tables) -> Iterator[Point]:
    many = len(subject.layers) > 1 or subject.layer_shown is not None
    label = f"What heads share in layer {layer}" if many else "What heads share"
    held = tables[f"held-share-L{layer}"].set_index("model").to_dict("index")
    for name, side in subject.at[layer].items():
        own = held[name]
        alone = (
            f"One head alone decides what the layer writes at {share(own['held_share'], 1)} of "
            f"positions of the text (95% interval {_ends(own['low'], own['high'])})"
        )
        link = f"shown-sharing-L{layer}"
        words = f"{_work(side, tables)} {alone}."
        if link.removeprefix("shown-") not in tables:
            link = f"shown-held-share-L{layer}"
        if name == "block":
            yield Point(f"What the block changed{_at(subject, layer)}.", words, link)
            yield Point("", _exact(subject, layer, tables), f"shown-faithfulness-L{layer}")
        else:
            yield Point(f"{label}{' (original)' if len(held) > 1 else ''}.", words, link)


def _work(side: Side, tables: Tables) -> str:
    """How many heads carry what the layer does on repeated tokens, else what one is worth."""
    layer = side.layer
    if f"sharing-L{layer}" not in tables:
        row = _of(side, tables[f"effects-L{layer}"]).nlargest(1, "effect").iloc[0]
        name = side.heads[int(row["head"])]
        return (
            f"The loss on the text rises most without {name}: {change(row['effect'])} nats "
            f"(95% interval {interval(row['effect_low'], row['effect_high'], change)})."
        )
    where = "on your prompts" if side.subject.prompts else "on repeated random tokens"
    found = tables[f"sharing-L{layer}"].set_index("measure")[side.name]
    effect = f"{change(found['effect'])} nats"
    if pd.isna(found["carriers"]):
        return f"Without its heads the loss {where} changes by no more than noise ({effect})."
    each = _of(side, tables[f"head-effects-L{layer}"])
    top = each[each["head"] != "all"].nlargest(1, "share").iloc[0]
    heads = int(found["carriers"])
    return (
        f"Without its heads the loss {where} changes by {effect}. {heads} of {len(side.heads)} "
        f"heads together carry 90% of that. {top['head']} has the largest share, "
        f"{share(top['share'])} (95% interval {_ends(top['share_low'], top['share_high'], 0)})."
    )


def _of(side: Side, table: pd.DataFrame) -> pd.DataFrame:
    return table[table["model"] == side.name]


# ---- the block, and how sure


def _at(subject: Subject, layer: int) -> str:
    return f" in layer {layer}" if len(subject.layers) > 1 else ""


def _ends(low: float, high: float, digits: int = 1) -> str:
    return interval(low, high, lambda value: share(value, digits))


def _exact(subject: Subject, layer: int, tables: Tables) -> str:
    """How close the block is to the original, and how sparse."""
    rows = _rows(tables, layer)
    fvu, active, gates = (rows[m] for m in ("fvu", "active_per_position", "gates_per_pair"))
    said = (
        f"The block leaves {short(fvu['block'])} of the variance of what the layer writes "
        f"unexplained (95% interval {interval(fvu['low'], fvu['high'], short)}). "
        f"{active['block']:.2f} heads write at a position, {active['original']:.2f} in the "
        "original."
    )
    if gated_block(subject.model, layer) is not None:
        said += f" {gates['block']:.2f} gates are open for each pair of positions."
    if not subject.known and "ce_recovered_zero" in rows:
        recovered = rows["ce_recovered_zero"]
        said += (
            f" It recovers {share(recovered['block'], 1)} of the loss that is lost without the "
            f"layer (95% interval {_ends(recovered['low'], recovered['high'])})."
        )
    return said


def _rows(tables: Tables, layer: int) -> Mapping[str, Mapping[str, float]]:
    """By measure what the page says of a block: ``original``, ``block``, ``low``, ``high``."""
    rows: dict[str, Any] = tables[f"faithfulness-L{layer}"].set_index("measure").to_dict("index")
    return rows


def _sure(subject: Subject, reached: "Mapping[int, Reached]") -> Point:
    said = [f"Measured on {subject.size}."]
    if subject.known:
        said.append("A head holds something only if ablation finds it sufficient, necessary and "
                    "specific.")  # fmt: skip
    if subject.original is not None or not subject.known:
        said.append("Intervals are 95% and over these sequences.")
    if subject.original is not None:
        said.append("They say nothing of other seeds: this page is about one trained block.")
        for layer, trained in reached.items():
            if not trained.missed:
                how = "met" if trained.error <= trained.target else "came close to"
                said.append(f"Its training{_at(subject, layer)} {how} its target: {trained.said}.")
    return Point("How sure we are.", " ".join(said))


@dataclasses.dataclass(frozen=True)
class Reached:
    """The error that a training aimed for, and the one that is measured here."""

    target: float
    error: float
    downstream: float

    @property
    def missed(self) -> bool:
        """Whether the error is far above the target, by the training's own rule."""
        return self.error > MISSED * self.target

    @property
    def said(self) -> str:
        """Both, in words."""
        what = "the FVU"
        if self.downstream:
            what = "FVU and KL, weighted as in training,"
        return f"{what} came to {short(self.error)}, and {number(self.target)} was aimed for"


def targets(subject: Subject, tables: Tables) -> dict[int, Reached]:
    """By layer what its training aimed for and has reached; without those that do not say."""
    found = {}
    for layer in subject.layers if subject.original is not None else []:
        config, rows = _trained(subject, layer), _rows(tables, layer)
        # A weighted error is none of what the page measures.
        if config is None or config.fvu_target is None or config.focus_weight != 1:
            continue
        d, error = config.downstream, rows["fvu"]["block"]
        if d:
            if "kl_recovered_zero" not in rows:
                continue
            error = (1 - d) * error + d * (1 - rows["kl_recovered_zero"]["block"])
        found[layer] = Reached(config.fvu_target, error, d)
    return found


def warned(reached: Mapping[int, Reached]) -> list[str]:
    """A sentence on each block whose training missed its target."""
    return [
        f"The training of the block in layer {layer} missed its target: {trained.said}. So the "
        "block is not faithful yet, and what it separates may not be what the model does."
        for layer, trained in reached.items()
        if trained.missed
    ]


def _trained(subject: Subject, layer: int) -> TrainConfig | None:
    """How the block was trained, where the file that it comes from says so."""
    model: Any = subject.model
    info: Any = getattr(model, "info", None)
    block = model.blocks[layer].attn
    if info is None or layer not in info.replacements:
        return None
    if info.replacements[layer].config != block.config:  # another was spliced in since
        return None
    notes = info.notes.get(str(layer), info.notes)
    if not isinstance(notes, Mapping) or notes.get("layer", layer) != layer:
        return None
    try:
        if "training" in notes:
            return TrainConfig.from_dict(notes["training"])
        toy = getattr(model, "toy_config", None)
        if toy is not None and "recipe" in notes:
            return recipe_named(notes["recipe"], toy.n_heads, toy.n_trigrams).training
    except (ValueError, TypeError):  # settings of another version
        pass
    return None
