"""How heads share what a layer does, by geometry and by intervention, where the layer matters."""

from collections.abc import Iterator

import pandas as pd
from jaxtyping import Bool
from torch import Tensor

from gated_interp.analysis.head_effects import SEQUENCES, HeadEffects, head_effects
from gated_interp.analysis.induction import repeated_random_tokens, repeats
from gated_interp.analysis.overview import DEEP
from gated_interp.analysis.sharing import head_sharing
from gated_interp.anatomy.batch import Batch
from gated_interp.core import written
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer
from gated_interp.plots.text import head_effects as drawn
from gated_interp.subject import Subject, usual_sequences
from gated_interp.views.shown import Shown, View, change, together

GEOMETRY = {
    "participation": ("heads that write (participation, median)", "median"),
    "top_share": ("largest head's share of the write (median)", "median"),
    "cancellation": ("cancellation (median)", "median"),
    "alone": ("positions where one head writes alone", "mean"),
}
WORDS = (
    "The first rows say how many heads write, whether or not that matters. The last ones say how "
    "many heads the predictions need: heads that carry 90% of the layer's effect, and over how "
    "many the effect is spread (Shapley values, mean ablation). Few heads may write at most "
    "positions while many share the work at the others, so trust the interventions."
)
NOTHING = (
    "This layer hardly matters on these tokens: without all of its heads the loss changes by no "
    "more than noise. So there are no shares. Measure where it matters, on prompts of your own."
)


def show(subject: Subject) -> Iterator[Shown]:
    """For each layer a table of measures, and one of heads with a figure."""
    if subject.prompts:
        batch, positions, said = subject.batch, None, "your prompts"
    else:
        n = min(SEQUENCES, usual_sequences(subject.model))
        tokens = repeated_random_tokens(subject.model, n, seed=subject.seed)
        batch, said = Batch.of(subject.model, tokens), "repeated random tokens"
        positions = repeats(batch)
    for done, layer in enumerate(subject.layers):
        subject.tell(done, len(subject.layers))
        effects = {
            name: head_effects(
                model, layer, batch, positions=positions, permutations=2, seed=subject.seed
            )
            for name, model in subject.sides.items()
        }
        shared = {
            name: _geometry(model, layer, batch, positions) for name, model in subject.sides.items()
        }
        read = f" Measured on {len(batch):,} sequences."
        yield _measures(subject, layer, effects, shared, said, read)
        yield _heads(subject, layer, effects, said, read)


def _geometry(
    model: HookedTransformer, layer: int, batch: Batch, positions: Bool[Tensor, "batch pos"] | None
) -> pd.Series:
    """By measure its median, or of a rate its mean; missing where the layer writes nothing."""
    try:
        table = head_sharing(model, layer, batch).table(positions).set_index("measure")
    except GatedInterpError as error:
        if error.code != "nothing-written":
            raise
        return pd.Series(float("nan"), index=[*GEOMETRY])
    return pd.Series({key: table[column].loc[key] for key, (_, column) in GEOMETRY.items()})


def _measures(
    subject: Subject,
    layer: int,
    effects: dict[str, HeadEffects],
    shared: dict[str, pd.Series],
    said: str,
    read: str,
) -> Shown:
    rows, numbers = [], []
    for key, (words, _) in GEOMETRY.items():
        values = {name: float(found[key]) for name, found in shared.items()}
        cells = {name: written.number(value) for name, value in values.items()}
        rows.append({"measure": words, **cells})
        numbers.append({"measure": key, **values})
    found = {name: each.summary() for name, each in effects.items()}
    for key, words in (
        ("effect", "loss without all heads (nats more)"),
        ("carriers", "heads that carry 90% of it"),
        ("spread", "heads it is spread over (Shapley)"),
        ("top_share", "largest head's share of it (Shapley)"),
    ):
        values = {name: each.get(key, float("nan")) for name, each in found.items()}
        cells = {name: written.number(value) for name, value in values.items()}
        if key == "effect":
            ends = ("effect", "effect_low", "effect_high")
            cells = {name: change(*(each[e] for e in ends)) for name, each in found.items()}
        rows.append({"measure": words, **cells})
        numbers.append({"measure": key, **values})
    for key in ("effect_low", "effect_high"):
        numbers.append({"measure": key, **{name: each[key] for name, each in found.items()}})
    matters = any(each.matters for each in effects.values())
    return Shown(
        f"sharing-L{layer}",
        f"How many heads share the work of layer {layer}, on {said}",
        (WORDS if matters else NOTHING) + read,
        pd.DataFrame(numbers),
        face=pd.DataFrame(rows),
    )


def _heads(
    subject: Subject, layer: int, effects: dict[str, HeadEffects], said: str, read: str
) -> Shown:
    tables = {name: each.table() for name, each in effects.items()}
    columns = {"off": "off", "alone": "on alone", "shapley": "Shapley value"}
    face = together(
        {
            name: pd.DataFrame(
                {
                    "head": table["head"],
                    **{
                        words: [
                            change(*row)
                            for row in table[[key, f"{key}_low", f"{key}_high"]].to_numpy()
                        ]
                        for key, words in columns.items()
                    },
                    "share": [written.number(s) for s in table["share"]],
                }
            )
            for name, table in tables.items()
        }
    )
    ends = {"shapley": "effect", "shapley_low": "effect_low", "shapley_high": "effect_high"}
    bars = {
        name: table.iloc[:-1][[*ends]].rename(columns=ends).rename_axis("head").reset_index()
        for name, table in tables.items()
    }
    title = f"What each head of layer {layer} is worth on {said}"
    return Shown(
        f"head-effects-L{layer}",
        title,
        "By how much the loss rises where a head is off (nats), how much of the layer's effect it "
        "brings back where it alone is on, and its Shapley value, the average over which others "
        f"are on. In brackets: 95% intervals over sequences.{read}",
        together(tables),
        lambda: drawn(bars, layer=layer, title=title),
        face if len(effects) > 1 else face.drop(columns="model"),
        folded=True,
    )


def applies(subject: Subject) -> bool:
    """Whether it is a model of text whose layers are few enough, or one of them is asked for."""
    if subject.known or not subject.batch.next_token or subject.model.cfg.n_ctx < 5:
        return False
    said = subject.prompts or getattr(subject.task, "bos", None) is not None
    return said and len(subject.layers) <= DEEP


VIEW = View("ablations", show, applies, 5)
