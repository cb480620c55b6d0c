"""Who holds a skip trigram, and what a head must also say because it says two of them."""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor

from gated_interp.analysis.attribution import read_pairs
from gated_interp.analysis.heads import chosen_layer, head_name
from gated_interp.analysis.text_pairs import Continuations, held_out_text, last_before, names_for
from gated_interp.analysis.trigram_effects import SkipTrigramEffects
from gated_interp.anatomy.batch import Batch, Tokens
from gated_interp.anatomy.stream import HeadReadout
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import originals, unsplice

AT_ONCE = 64
SAID = ["head", "source_id", "destination_id", "out_id"]


@torch.no_grad()
def skip_trigram_holders(
    model: HookedTransformer,
    trigrams: pd.DataFrame,
    tokens: Tokens | None = None,
    layer: int | None = None,
    *,
    names: Any = None,
    most: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Which heads of a layer hold each (source, out); of a spliced layer, the original's too.

    Measured is the direct effect: what each head writes to the logit of ``out``, above the mean
    logit, from every key that holds the source, the final norm's scale as it is. Places are queries
    that hold one of the destinations that ``trigrams`` gives this source and output, one of each
    sequence. A head's share is its mean effect over the sum of all heads' sizes: from -1 to 1.

    Args:
        trigrams: columns ``source_id``, ``destination_id``, ``out_id``; heads do not matter.
        tokens: held-out text; see
            :func:`~gated_interp.analysis.text_pairs.held_out_text`.
        layer: may be left out where it is the only one.
        names: of tokens; the task's unless given.
        most: places of each (source, out).
        seed: of the places.

    Returns:
        One row per (source, out) that occurs: ``source``, ``out`` and their numbers; ``n`` places;
        ``held_by``, the head that raises it most; its ``share``; ``heads``, the effective number of
        heads (1 over the sum of squared shares; 0, and no share, where every gate is shut);
        ``effect``, logits that all heads raise it by; and of a spliced layer the same of the
        original as ``held_by_original`` and so on.

    Raises:
        GatedInterpError: no such columns, layer or text, or a layer without attention.

    Examples:
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> text = truth.task.sample_single(200, seed=0).tokens
        >>> asked = pd.DataFrame({"source_id": 0, "destination_id": [1, 3], "out_id": [4, 6]})
        >>> found = skip_trigram_holders(truth.model, asked, text)
        >>> found[["source", "out", "held_by", "heads"]].round(1).values.tolist()
        [['A', 'C1', 'L0H0', 1.0], ['A', 'C3', 'L0H0', 2.0]]
    """
    layer = chosen_layer(model, layer)
    missing = [c for c in SAID[1:] if c not in trigrams.columns]
    if missing:
        raise GatedInterpError(
            f"the table has no column {missing[0]!r}; give {', '.join(SAID[1:])}."
        )
    tokens, names = held_out_text(model, tokens), names_for(model, names)
    models = {"": model}
    if layer in originals(model):
        models["_original"] = unsplice(model, layer)
    rows = []
    for _, mine in trigrams.groupby(["source_id", "out_id"], sort=False):
        source, out = (int(mine[c].iloc[0]) for c in ("source_id", "out_id"))
        at = _places(tokens, source, mine["destination_id"].unique(), most, seed)
        if not len(at):
            continue
        row: dict[str, Any] = {"source": names[source], "out": names[out], "n": len(at)}
        for which, each in models.items():
            effects = _direct(each, layer, tokens, at, source, out).double()
            row |= {f"{name}{which}": v for name, v in _held(effects, layer).items()}
        rows.append({**row, "source_id": source, "out_id": out})
    return pd.DataFrame(rows)


def _places(
    tokens: Int[Tensor, "batch pos"], source: int, destinations: Any, most: int, seed: int
) -> Int[Tensor, "place two"]:
    """Row and query of at most ``most`` places, each in another sequence."""
    asked = torch.tensor([int(d) for d in destinations], device=tokens.device)
    here = torch.isin(tokens, asked) & (last_before(tokens, source) >= 0)
    draw = generator(derive(seed, Stream.EDGE_PLACES, source))
    chance = torch.rand(here.shape, generator=draw).to(tokens.device).masked_fill(~here, -1.0)
    best, query = chance.max(1)
    rows = best.topk(min(most, int((best >= 0).sum()))).indices
    return torch.stack([rows, query[rows]], 1)


def _direct(
    model: HookedTransformer,
    layer: int,
    tokens: Int[Tensor, "batch pos"],
    places: Int[Tensor, "place two"],
    source: int,
    out: int,
) -> Float[Tensor, "place head_index"]:
    """What each head writes from its sources to the logit of ``out``, above the mean logit."""
    prefix = f"blocks.{layer}.attn."
    names = [prefix + n for n in ("hook_gated_pattern", "hook_pattern", "hook_v", "hook_z")]
    readout = HeadReadout.of(model, layer)
    column = readout.matrix[:, :, out] - readout.matrix.mean(-1)
    parts = []
    for at in torch.split(places, AT_ONCE):
        read, query = tokens[at[:, 0]], at[:, 1]
        rows = torch.arange(len(at), device=tokens.device)
        _, cache = Batch(read).cache(model, [*names, *readout.scales])
        pattern, v = read_pairs(cache, layer, model.blocks[layer].attn)
        pattern = pattern[rows, :, query]
        pattern = pattern * (read == source)[:, None]
        pattern = (
            pattern * (torch.arange(read.shape[1], device=read.device) < query[:, None])[:, None]
        )
        z = torch.einsum("ehk,ekhd->ehd", pattern, v)
        # A head that was not picked wrote nothing, wherever it looked.
        wrote = (cache[names[3]][rows, query] != 0).any(-1)
        effect = torch.einsum("ehd,hd->eh", z, column) * wrote
        scale = readout.scale(cache)
        parts.append(effect / scale[rows, query, 0] if isinstance(scale, Tensor) else effect)
    return torch.cat(parts)


def _held(effects: Float[Tensor, "place head_index"], layer: int) -> dict[str, Any]:
    mean = effects.mean(0)
    size = float(mean.abs().sum())
    if size == 0:  # every gate is shut there
        return {"held_by": "", "share": math.nan, "heads": 0.0, "effect": 0.0}
    share = mean / size
    best = int(mean.argmax())
    return {
        "held_by": head_name((layer, best)),
        "share": float(share[best]),
        "heads": float(1 / share.square().sum()),
        "effect": float(mean.sum()),
    }


def skip_trigram_bugs(
    effects: SkipTrigramEffects,
    tokens: Int[Tensor, "batch pos"] | None = None,
    *,
    least: float = 0.05,
) -> pd.DataFrame:
    """How often a head must also say what no one wants (Elhage et al., 2021, "skip-trigram bugs").

    A head that says ``keep … in -> mind`` and ``keep … at -> bay`` reads the same source for both,
    so it also says ``keep … in -> bay``. A trigram of a head is *wanted* where it is confirmed, by
    more than ``least``, and its output comes after ``[source] … [destination]`` more often than
    after the destination without that source before it. Of every two wanted trigrams of one head
    that share the source and differ in destination and output, each destination is *crossed* with
    the other's output. A crossed prediction is *raised* where the whole interval of the edge's
    effect on that output lies above ``least``, and a *bug* where it is raised though on text it
    comes less often than after the destination without the source. Crossed predictions that
    ``effects`` did not measure are left out.

    Args:
        effects: of :func:`~gated_interp.analysis.trigram_effects.confirm_skip_trigrams`.
        tokens: the text to count on, ``effects.tokens`` unless given; the rarer a continuation,
            the more it takes.
        least: nats; what is smaller is not said.

    Returns:
        One row per head, and one of them together (``head`` missing): ``trigrams`` confirmed,
        ``wanted``; ``crossed`` predictions, ``raised``, ``bugs``, and ``never``, the raised that
        never come on the text (where chance would not bring them either, they are no bugs);
        ``share`` of the crossed that are bugs, with ``low`` and ``high`` (95%, Wilson); ``effect``,
        nats, mean of the bugs; ``effect_wanted``, of the wanted trigrams that were crossed; how
        often the bugs' outputs came (``followed``) and would have come by chance (``expected``).
        Missing where there are none.

    Examples:
        >>> from gated_interp.analysis.skip_trigrams import skip_trigrams
        >>> from gated_interp.analysis.trigram_effects import confirm_skip_trigrams
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # from A, head 0 says C1 at B1 and C3 at B3
        >>> text = truth.task.sample(500, seed=0).tokens
        >>> found = skip_trigrams(truth.model, tokens=text)
        >>> found = confirm_skip_trigrams(truth.model, found, text)
        >>> skip_trigram_bugs(found)[["crossed", "raised", "bugs"]].values.tolist()
        [[2, 2, 2], [2, 2, 2], [4, 4, 4]]
    """
    tokens = effects.tokens if tokens is None else tokens
    sure = effects.table[effects.table["confirmed"] & (effects.table["effect_low"] > least)]
    count = Continuations(tokens)
    wanted = sure[_where([found[1] > found[2] for found in _counted(count, sure)])]
    measured = effects.table.set_index(SAID)
    crossed = _crossed(wanted)
    keys = crossed[SAID].itertuples(index=False, name=None)
    crossed = crossed[_where([key in measured.index for key in keys])]
    told = measured.loc[list(crossed[SAID].itertuples(index=False, name=None))]
    crossed = crossed.assign(
        effect=told["effect"].to_numpy(),
        raised=(told["effect_low"] > least).to_numpy(),
        n=pd.Series(_counted(count, crossed), crossed.index, dtype=object),
    )
    rarer = _where([found[1] < found[2] for found in crossed["n"]])
    crossed["bug"] = crossed["raised"] & rarer
    heads = sorted(effects.table["head"].unique().tolist())
    rows = [
        {"head": head, **_row(*(t[t["head"] == head] for t in (sure, wanted, crossed)))}
        for head in heads
    ]
    rows.append({"head": None, **_row(sure, wanted, crossed)})
    return pd.DataFrame(rows).astype({"head": "Int64"})


def _where(chosen: list[bool]) -> "np.ndarray":
    return np.array(chosen, dtype=bool)


def _counted(count: Continuations, table: pd.DataFrame) -> list[tuple[int, int, float]]:
    return [count(*map(int, key)) for key in table[SAID[1:]].itertuples(index=False, name=None)]


def _crossed(wanted: pd.DataFrame) -> pd.DataFrame:
    """Each destination of a head and source with another's output, once."""
    two = wanted.merge(wanted, on=SAID[:2], suffixes=("", "_2"))
    two = two[
        (two["destination_id"] != two["destination_id_2"]) & (two["out_id"] != two["out_id_2"])
    ]
    found = two[[*SAID[:3], "out_id_2", "effect"]].rename(
        columns={"out_id_2": "out_id", "effect": "effect_wanted"}
    )
    return found.groupby(SAID, as_index=False, sort=False).mean()


def _row(sure: pd.DataFrame, wanted: pd.DataFrame, crossed: pd.DataFrame) -> dict[str, Any]:
    bugs = crossed[crossed["bug"].astype(bool)]
    row = {
        "trigrams": len(sure),
        "wanted": len(wanted),
        "crossed": len(crossed),
        "raised": int(crossed["raised"].sum()),
        "bugs": len(bugs),
        "never": int((crossed["raised"] & _where([f[1] == 0 for f in crossed["n"]])).sum()),
    }
    nan = float("nan")
    low = high = nan
    if len(crossed):
        ends = binomtest(len(bugs), len(crossed)).proportion_ci(method="wilson")
        low, high = float(ends.low), float(ends.high)
    return {
        **row,
        "share": len(bugs) / len(crossed) if len(crossed) else nan,
        "low": low,
        "high": high,
        "effect": float(bugs["effect"].mean()) if len(bugs) else nan,
        "effect_wanted": float(crossed["effect_wanted"].mean()) if len(crossed) else nan,
        "followed": sum(found[1] for found in bugs["n"]),
        "expected": float(sum(found[2] for found in bugs["n"])),
    }
