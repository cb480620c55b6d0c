"""Who holds what: by ablation where answers are known, else by the tokens that a layer raises."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from gated_interp.analysis.heads import head_name
from gated_interp.analysis.holders import Holders
from gated_interp.core import written
from gated_interp.plots.text import head_effects
from gated_interp.subject import REPLICATES, Side, Subject
from gated_interp.views.shown import Shown, View, between, together


def show(subject: Subject) -> Iterator[Shown]:
    """A table per layer; on text a figure too."""
    for layer, sides in subject.at.items():
        yield from _known(subject, layer, sides) if subject.known else _text(subject, layer, sides)


def _known(subject: Subject, layer: int, sides: Mapping[str, Side]) -> Iterator[Shown]:
    word, cases = subject.task.case_word, subject.task.cases
    face: dict[str, list[str]] = {word: [str(case) for case in cases.values()]}
    for name, side in sides.items():
        of = f" ({name})" if len(sides) > 1 else ""
        reasons = side.holders.why_not()
        held = {f"held by{of}": side.holders.holders}
        if subject.model.cfg.n_layers > 1:
            held[f"given other layers{of}"] = side.given.holders
        if side.linear:
            held[f"sole owner (the post's){of}"] = side.verdict.owners
        face |= {
            column: [", ".join(side.heads[h] for h in found[b]) or "-" for b in cases]
            for column, found in held.items()
        }
        first = next(iter(held))
        face[first] = [
            f"none: {reasons[b]}" if b in reasons else heads
            for b, heads in zip(cases, face[first], strict=True)
        ]
        face[f"answered{of}"] = [written.share(a, 1) for a in side.holders.accuracy.tolist()]
    said = "; ".join(
        subject.said(
            name,
            f"{sum(len(heads) == 1 for heads in side.holders.holders.values())} of {len(cases)} "
            f"{word}s held by one head alone ({'clean' if side.holders.clean else 'not clean'})",
        )
        for name, side in sides.items()
    )
    yield Shown(
        f"holders-L{layer}",
        f"{said}{subject.which(layer)[1]}",
        f"A head holds a {word} when ablation shows it sufficient (with every other head switched "
        "off, the model still answers in more than 99% of cases), necessary (without it alone, in "
        f"less than half) and specific (without it, every other {word} stays above 99%). A model "
        f"is clean when each {word} is held by exactly one head, and these heads differ. The file "
        "has what is answered with each head alone and without it.",
        together({name: _numbers(side.holders, cases) for name, side in sides.items()}),
        face=pd.DataFrame(face),
        headline=True,
    )


def _numbers(found: Holders, cases: Mapping[int, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "case": str(case),
            "head": head_name((found.layer, h)),
            "holds": h in found.holders[b],
            "answered": float(found.accuracy[b - 1]),
            "alone": float(found.alone[b - 1, h]),
            "without": float(found.without[b - 1, h]),
        }
        for b, case in cases.items()
        for h in range(found.alone.shape[1])
    )


def _text(subject: Subject, layer: int, sides: Mapping[str, Side]) -> Iterator[Shown]:
    which = subject.which(layer)[1]
    found = {name: side.text_holders for name, side in sides.items()}
    by_head = {name: held.by_head() for name, held in found.items()}
    shares = "; ".join(
        written.share(held.share, 1) + f" ({name})" * (len(found) > 1)
        for name, held in found.items()
    )
    yield Shown(
        f"held-L{layer}",
        f"Positions that one head alone holds{which}: {shares}",
        "No task says which token a position should get, so the layer says it: we take the token "
        "that its heads raise most. A head is the sole holder of a position if that token stays "
        "on top whichever other heads are removed, and if this is true of no other head. Each bar "
        "is the share of positions that a head holds.",
        together(by_head),
        lambda: head_effects(
            {side: table.rename(columns={"share": "held"}) for side, table in by_head.items()},
            measure="held",
            layer=layer,
            title=f"{subject.name}{which}: what each head alone holds",
        ),
        headline=True,
    )
    weights = subject.bootstrap / len(subject.batch)
    numbers: list[dict[str, Any]] = []
    for name, held in found.items():
        drawn = pd.Series((weights @ held.held.mean(1).cpu()).numpy())
        low, high = drawn.quantile([0.025, 0.975])
        row = {"held_share": held.share, "low": low, "high": high}
        row |= {"held_weighted": held.weighted_share}
        row |= {"heads_holding": int((by_head[name]["positions"] > 0).sum()), "heads": held.heads}
        numbers.append({"model": name, **row})
    yield Shown(
        f"held-share-L{layer}",
        f"What the heads hold alone{which}",
        f"The interval is over {REPLICATES} bootstrap samples of the sequences. “Weighted” counts "
        "each position by how much the layer raises its token.",
        pd.DataFrame(numbers),
        face=pd.DataFrame(
            {
                "model": row["model"],
                "held by one head": written.share(row["held_share"], 1),
                "95% interval": between(row["low"], row["high"], lambda x: written.share(x, 1)),
                "weighted": written.share(row["held_weighted"], 1),
                "heads that hold any": row["heads_holding"],
                "heads": row["heads"],
            }
            for row in numbers
        ),
    )


VIEW = View("holders", show, order=10)
