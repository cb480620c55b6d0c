"""Skip trigrams confirmed on text: one attention edge is cut, and what the model says is compared.

An *edge* is what one head reads at one query position from one key position. Cut, its entry of the
pattern (behind the gate, where there is one) is zero, and every other stays as it is.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import kruskal, rankdata
from scipy.stats import t as student
from torch import Tensor

from gated_interp.analysis.heads import chosen_layer, head_in, intervened
from gated_interp.analysis.text_pairs import (
    held_out_text,
    last_before,
    names_for,
    seen_pairs,
)
from gated_interp.anatomy.attention import Attention
from gated_interp.anatomy.batch import Batch, Tokens, token_vocabulary
from gated_interp.anatomy.stream import logits_of
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.core.seeds import derive, generator
from gated_interp.core.streams import Stream
from gated_interp.models.toy import HookedTransformer

EDGES_AT_ONCE = 64
EDGE = ["head", "source_id", "destination_id"]
TRIGRAM = [*EDGE, "out_id"]
LEAST_EACH, PERMUTATIONS = 5, 1000


@dataclasses.dataclass(frozen=True, repr=False)
class SkipTrigramEffects:
    """What cutting the edges of skip trigrams does on text.

    Attributes:
        table: one row per trigram: ``head``, ``source``, ``destination``, ``out`` and their
            numbers; ``circuits``, whether the table asked for it or a destination was added;
            ``n``, places measured, each in another sequence, and ``followed``, at how many of them
            ``out`` comes next; ``effect``, by how many nats the edge raises the log-probability of
            ``out``, with ``effect_low`` and ``effect_high``; ``logit``, the same of its logit above
            the mean logit; ``other_edge``, the effect on ``out`` of the same head's edge to a
            random earlier position that holds another token, and ``other_out``, the effect of the
            edge on a random other token; ``beyond_edge_low`` and ``beyond_out_low``, the lower ends
            of the paired differences; ``confirmed``, whether ``effect_low`` and both of these are
            above zero. Intervals are 95%, Student's t over places.
        examples: one row per trigram and place: ``head``, the numbers, ``row``, ``query_pos``,
            ``key_pos``, ``control_pos``, ``effect``, ``logit``, ``other_edge``, ``other_out``,
            ``followed``.
        tokens: ``[batch pos]``, the text.
        layer: whose heads.

    Examples:
        >>> table = pd.DataFrame({"head": [0, 1], "confirmed": [True, False]})
        >>> SkipTrigramEffects(table, table, torch.zeros(1, 2, dtype=torch.long), layer=0)
        SkipTrigramEffects(layer 0, 1 of 2 confirmed)
    """

    table: pd.DataFrame
    examples: pd.DataFrame
    tokens: Int[Tensor, "batch pos"]
    layer: int

    def __repr__(self) -> str:
        sure = int(self.table["confirmed"].sum())
        return f"SkipTrigramEffects(layer {self.layer}, {sure} of {len(self.table)} confirmed)"

    def groups(self, seed: int = 0) -> pd.DataFrame:
        """By head, source and output, whatever the destination; does it matter?

        A destination that follows its source at once sees more of it than one far away, so effects
        (``logit``, which does not hang on how sure the model was) are compared twice: as they are,
        by the Kruskal-Wallis test, and at like distances, by 1,000 permutations of their ranks
        among places whose distance (query less key) lies between the same powers of two, the mean
        rank of each such distance subtracted.

        Args:
            seed: of the permutations.

        Returns:
            One row per ``head``, ``source``, ``out``: ``destinations`` and ``n``, of all places;
            ``effect`` with its interval, ``confirmed`` as for one trigram; ``tested``, destinations
            of at least five places; ``p`` of the first test, and ``between``, the share of the
            variance of ranks between destinations, less what chance puts there (0 or below: none);
            ``p_alike`` and ``between_alike`` of the second; ``depends``, ``p_alike`` below 0.05.
            Missing where fewer than two are tested.
        """
        named = {
            role: dict(zip(self.table[f"{role}_id"], self.table[role], strict=True))
            for role in ("source", "out")
        }
        rows = []
        for _, mine in self.examples.groupby(["head", "source_id", "out_id"], sort=False):
            head, source, out = (int(mine[c].iloc[0]) for c in ("head", "source_id", "out_id"))
            counts = mine["destination_id"].map(mine["destination_id"].value_counts())
            enough = mine[counts >= LEAST_EACH]
            draw = np.random.default_rng(derive(seed, Stream.DEPENDENCE, head, source, out))
            rows.append(
                {
                    "head": head,
                    "source": named["source"][source],
                    "out": named["out"][out],
                    "source_id": source,
                    "out_id": out,
                    "destinations": mine["destination_id"].nunique(),
                    **_summary(mine),
                    "tested": enough["destination_id"].nunique(),
                    **_dependence(enough, draw),
                }
            )
        return pd.DataFrame(rows)


@torch.no_grad()
def confirm_skip_trigrams(
    model: HookedTransformer,
    trigrams: pd.DataFrame,
    tokens: Tokens | None = None,
    layer: int | None = None,
    *,
    names: Sequence[str] | None = None,
    most: int = 30,
    common: int = 0,
    followed: bool = False,
    seed: int = 0,
) -> SkipTrigramEffects:
    """Cut the edge of each skip trigram where it occurs in text.

    A place is a query that holds the destination and the last key before it that holds the source.
    One is drawn of each sequence. Whether ``out`` comes next there does not matter unless
    ``followed``: what a head says is asked wherever it would say it. What later layers make of the
    cut counts.

    Args:
        trigrams: columns ``head`` (or its name, such as ``"L0H1"``), ``source_id``,
            ``destination_id``, ``out_id``, as of
            :func:`~gated_interp.analysis.skip_trigrams.skip_trigrams`.
        tokens: held-out text; see :func:`~gated_interp.analysis.text_pairs.held_out_text`.
        layer: may be left out where it is the only one.
        names: of tokens; the task's unless given.
        most: places of each source and destination.
        common: of each head and source, so many of the destinations that the source stands before
            in most sequences of ``tokens`` are measured as well, for
            :meth:`SkipTrigramEffects.groups`: those that the circuits favour are no fair sample.
        followed: measure only where ``out`` comes next.
        seed: of the places, of the other edges and of the other outputs.

    Raises:
        GatedInterpError: a table without these columns or rows, no such layer or head, a token
            outside the vocabulary, a layer without attention, no text, or numbers that are not
            positive.

    Examples:
        >>> from gated_interp.analysis.skip_trigrams import skip_trigrams
        >>> from gated_interp.models.analytic import manual_model
        >>> truth = manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both
        >>> text = truth.task.sample_single(200, seed=0).tokens
        >>> found = skip_trigrams(truth.model, tokens=text, sources=1, top=1)
        >>> confirm_skip_trigrams(truth.model, found, text).table["logit"].round(2).tolist()
        [1.88, 1.88]
    """
    layer = chosen_layer(model, layer)
    attn = Attention.of(model, layer).attn
    token_vocabulary(model)
    if most < 2 or common < 0:
        raise GatedInterpError(
            f"most is {most} and common {common}; they must be at least 2 and at least 0."
        )
    trigrams = _require_trigrams(model, layer, trigrams)
    tokens, names = held_out_text(model, tokens), names_for(model, names)
    wanted = trigrams[TRIGRAM].drop_duplicates().assign(circuits=True)
    if common:
        wanted = _with_common(wanted, tokens, common)
    hook = "hook_gated_pattern" if hasattr(attn, "hook_gated_pattern") else "hook_pattern"
    edges = _edges(wanted, tokens, most, followed, seed)
    parts = [
        _measured(model, f"blocks.{layer}.attn.{hook}", tokens, part, seed)
        for part in _batches(edges)
    ]
    columns = [*TRIGRAM, *PLACE, *MEASURED]
    examples = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    summaries = [
        {**dict(zip(TRIGRAM, key, strict=True)), **_summary(mine)}
        for key, mine in examples.groupby(TRIGRAM, sort=False)
    ]
    empty = pd.DataFrame(columns=[*TRIGRAM, *_summary(examples)])
    table = wanted.merge(pd.DataFrame(summaries) if summaries else empty, on=TRIGRAM, how="left")
    table[["n", "followed"]] = table[["n", "followed"]].fillna(0).astype(int)
    table["confirmed"] = table["confirmed"].eq(True)
    for at, role in enumerate(("source", "destination", "out"), 1):
        table.insert(at, role, [names[i] for i in table[f"{role}_id"]])
    return SkipTrigramEffects(table, examples, tokens, layer)


PLACE = ["row", "query_pos", "key_pos", "control_pos"]
MEASURED = ["effect", "logit", "other_edge", "other_out", "followed"]


def _require_trigrams(model: HookedTransformer, layer: int, trigrams: pd.DataFrame) -> pd.DataFrame:
    """``trigrams``, if there are any, with its heads by number."""
    missing = [c for c in TRIGRAM if c not in trigrams.columns]
    if missing or not len(trigrams):
        raise GatedInterpError(
            f"the table of skip trigrams has {len(trigrams)} rows and no column "
            f"{', '.join(missing) or 'missing'}; give at least one row with {', '.join(TRIGRAM)}."
        )
    number = {
        head: head_in(model, layer, head if isinstance(head, str | tuple) else int(head))
        for head in trigrams["head"].unique()
    }
    ids = trigrams[TRIGRAM[1:]].to_numpy()
    if ids.min() < 0 or ids.max() >= model.cfg.d_vocab:
        raise GatedInterpError(
            f"token {ids.min() if ids.min() < 0 else ids.max()} is outside the vocabulary 0 to "
            f"{model.cfg.d_vocab - 1}."
        )
    return trigrams.assign(head=trigrams["head"].map(number))


def _with_common(
    wanted: pd.DataFrame, tokens: Int[Tensor, "batch pos"], common: int
) -> pd.DataFrame:
    """With the destinations that each source comes before most often."""
    sources = torch.tensor(wanted["source_id"].unique())
    counts = tokens.flatten().bincount()
    frequent = counts.topk(min(len(counts), 20 * common)).indices.cpu()
    kept = torch.tensor(sorted({*sources.tolist(), *frequent.tolist()}))
    pairs = seen_pairs(tokens, kept.to(tokens.device)).cpu()
    added = []
    for s in sources.tolist():
        best = pairs[(kept == s).nonzero().item()].topk(min(common, len(kept)))
        added += [(s, int(kept[i])) for i, n in zip(best.indices, best.values, strict=True) if n]
    also = wanted[["head", "source_id", "out_id"]].drop_duplicates()
    also = also.merge(pd.DataFrame(added, columns=EDGE[1:]), on="source_id")
    both = pd.concat([wanted, also.assign(circuits=False)])
    return both.drop_duplicates(TRIGRAM, ignore_index=True)


@dataclasses.dataclass(frozen=True)
class _Edges:
    """One head, source and destination, where they stand, and what the edge may say there."""

    head: int
    source: int
    destination: int
    outs: list[int]
    places: Int[Tensor, "place four"]  # row, query, key, the control's key


def _edges(
    wanted: pd.DataFrame,
    tokens: Int[Tensor, "batch pos"],
    most: int,
    followed: bool,
    seed: int,
) -> Iterator[_Edges]:
    """Every edge with its places; those of a trigram each where ``out`` must follow."""
    before: dict[int, Tensor] = {}
    for _, mine in wanted.groupby(TRIGRAM if followed else EDGE, sort=False):
        outs = [int(i) for i in mine["out_id"]]
        head, source, destination = (int(mine[c].iloc[0]) for c in EDGE)
        if source not in before:
            before[source] = last_before(tokens, source)
        here = (tokens == destination) & (before[source] >= 0)
        here[:, -1] = False
        if followed:
            here[:, :-1] &= tokens[:, 1:] == outs[0]
        places = _drawn(tokens, here, before[source], source, destination, most, seed)
        if len(places):
            yield _Edges(head, source, destination, outs, places)


def _drawn(
    tokens: Int[Tensor, "batch pos"],
    here: Tensor,
    before: Int[Tensor, "batch pos"],
    source: int,
    destination: int,
    most: int,
    seed: int,
) -> Int[Tensor, "place four"]:
    """At most one place of each sequence, and a random other key for each."""
    draw = generator(derive(seed, Stream.EDGE_PLACES, source, destination))
    row, query = here.cpu().nonzero(as_tuple=True)
    order = torch.randperm(len(row), generator=draw)
    row, query = row[order], query[order]
    _, first = np.unique(row.numpy(), return_index=True)
    chosen = torch.from_numpy(np.sort(first)[:most])
    row, query = row[chosen], query[chosen]
    read = tokens.cpu()[row]
    others = (torch.arange(tokens.shape[1]) < query[:, None]) & (read != source)
    control = torch.rand(others.shape, generator=draw).masked_fill(~others, -1.0).argmax(1)
    places = torch.stack([row, query, before.cpu()[row, query], control], 1)
    return places[others.any(1)]


def _batches(edges: Iterator[_Edges]) -> Iterator[list[_Edges]]:
    """Edges of some 64 places together."""
    waiting: list[_Edges] = []
    for each in edges:
        waiting.append(each)
        if sum(len(e.places) for e in waiting) >= EDGES_AT_ONCE:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _measured(
    model: HookedTransformer,
    hook: str,
    tokens: Int[Tensor, "batch pos"],
    edges: list[_Edges],
    seed: int,
) -> pd.DataFrame:
    """One row per trigram and place."""
    places = torch.cat([e.places for e in edges]).to(tokens.device)
    head = torch.cat([torch.full((len(e.places),), e.head) for e in edges]).to(tokens.device)
    row, query, key, control = places.unbind(1)
    read = tokens[row]
    intact = logits_at(model, read, query)
    without, without_other = (
        logits_at(model, read, query, (hook, head, at)) for at in (key, control)
    )
    seen = tokens.flatten().bincount().nonzero()[:, 0].cpu()
    frames, start = [], 0
    for e in edges:
        mine = slice(start, start + len(e.places))
        start += len(e.places)
        parts = intact[mine], without[mine], without_other[mine]
        follows = tokens[row[mine], query[mine] + 1].cpu()
        for out in e.outs:
            draw = generator(derive(seed, Stream.EDGE_CONTROLS, e.source, e.destination, out))
            others = seen[seen != out]
            other = others[torch.randint(len(others), (len(e.places),), generator=draw)]
            frame = {**_differences(*parts, out, other), "followed": (follows == out).numpy()}
            at = dict(zip(PLACE, e.places.T.numpy(), strict=True))
            ids = dict(zip(TRIGRAM, (e.head, e.source, e.destination, out), strict=True))
            frames.append(pd.DataFrame({**at, **frame}).assign(**ids))
    return pd.concat(frames)[[*TRIGRAM, *PLACE, *MEASURED]]


def _differences(
    intact: Float[Tensor, "place d_vocab"],
    without: Float[Tensor, "place d_vocab"],
    without_other: Float[Tensor, "place d_vocab"],
    out: int,
    other: Int[Tensor, " place"],
) -> dict[str, Any]:
    intact, without, without_other = wide(intact), wide(without), wide(without_other)
    fell = intact.log_softmax(-1) - without.log_softmax(-1)
    elsewhere = (intact.log_softmax(-1) - without_other.log_softmax(-1))[:, out]
    logit = intact - without
    return {
        "effect": fell[:, out].cpu().numpy(),
        "logit": (logit[:, out] - logit.mean(-1)).cpu().numpy(),
        "other_edge": elsewhere.cpu().numpy(),
        "other_out": fell.gather(1, other[:, None].to(fell.device))[:, 0].cpu().numpy(),
    }


def logits_at(
    model: HookedTransformer,
    tokens: Int[Tensor, "place pos"],
    query: Int[Tensor, " place"],
    cut: tuple[str, Int[Tensor, " place"], Int[Tensor, " place"]] | None = None,
) -> Float[Tensor, "place d_vocab"]:
    """Each row's logits at its query position, where ``cut`` with one edge of each row removed.

    Args:
        cut: the hook point of the pattern, and each row's head and key position.
    """
    rows = torch.arange(len(tokens), device=tokens.device)

    def edit(pattern: Tensor) -> Tensor:
        assert cut is not None
        pattern = pattern.clone()
        pattern[rows, cut[1], query, cut[2]] = 0
        return pattern

    with intervened(model, {} if cut is None else {cut[0]: edit}):
        stream = Batch(tokens).logits(model, stop_at_layer=model.cfg.n_layers)
    return logits_of(model, stream[rows, query][:, None])[:, 0]


def _summary(examples: pd.DataFrame) -> dict[str, Any]:
    """Means and intervals over the places of one trigram, or of several."""
    effect = examples["effect"].to_numpy(dtype=float)
    low, high = interval(effect)
    beyond = {
        f"beyond_{name}_low": interval(effect - examples[f"other_{name}"].to_numpy(dtype=float))[0]
        for name in ("edge", "out")
    }
    means = {
        name: float(examples[name].mean()) if len(examples) else float("nan")
        for name in ("logit", "other_edge", "other_out")
    }
    return {
        "n": len(examples),
        "followed": int(examples["followed"].sum()),
        "effect": float(effect.mean()) if len(effect) else float("nan"),
        "effect_low": low,
        "effect_high": high,
        **means,
        **beyond,
        "confirmed": low > 0 and all(end > 0 for end in beyond.values()),
    }


def interval(values: "np.ndarray") -> tuple[float, float]:
    """The ends of a mean's 95% interval, by Student's t; missing of fewer than two values.

    Examples:
        >>> [round(end, 2) for end in interval(np.array([1.0, 2.0, 3.0]))]
        [-0.48, 4.48]
    """
    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)
    return float(values.mean()) - half, float(values.mean()) + half


def _dependence(examples: pd.DataFrame, draw: np.random.Generator) -> dict[str, Any]:
    """Whether effects differ between destinations, by rank: as they are, and at like distances."""
    destination = examples["destination_id"].to_numpy(dtype=int)
    effect = examples["logit"].to_numpy(dtype=float)
    groups = [effect[destination == d] for d in np.unique(destination)]
    if len(groups) < 2 or np.ptp(effect) == 0:
        nothing = float("nan") if len(groups) < 2 else 0.0
        whole = nothing + 1.0
        two = {"p": whole, "between": nothing, "p_alike": whole, "between_alike": nothing}
        return {**two, "depends": False}
    statistic, p = kruskal(*groups)
    between = (statistic - len(groups) + 1) / (len(effect) - len(groups))
    distance = (examples["query_pos"] - examples["key_pos"]).to_numpy(dtype=float)
    p_alike, between_alike = alike(rankdata(effect), destination, np.log2(distance) // 1, draw)
    return {
        "p": float(p),
        "between": float(between),
        "p_alike": p_alike,
        "between_alike": between_alike,
        "depends": p_alike < 0.05,
    }


def alike(
    values: "np.ndarray",
    group: "np.ndarray",
    stratum: "np.ndarray",
    draw: np.random.Generator,
) -> tuple[float, float]:
    """Whether ``values`` differ between groups within strata, by permutation.

    Returns:
        The share of permutations that part the groups as far, the values' own order counted; and
        the share of the variance about each stratum's mean that lies between groups, less its mean
        over permutations, in units of what is left above that.

    Examples:
        >>> group, stratum = np.array([0, 1] * 20), np.repeat([0, 1], 20)
        >>> alike(10.0 * stratum + group, group, stratum, np.random.default_rng(0))[1]
        1.0
        >>> alike(10.0 * group, group, group, np.random.default_rng(0))  # the stratum says it all
        (1.0, 0.0)
    """
    off, index = values.astype(float), np.unique(group, return_inverse=True)[1]
    strata = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    for members in strata:
        off[members] -= off[members].mean()
    total = float((off**2).sum())
    if total == 0:
        return 1.0, 0.0
    rows = np.tile(off, (PERMUTATIONS + 1, 1))
    for members in strata:
        rows[1:, members] = draw.permuted(rows[1:, members], axis=1)
    member = np.eye(index.max() + 1)[index]
    shares = ((rows @ member) ** 2 / member.sum(0)).sum(1) / total
    usual = shares[1:].mean()
    above = float((shares[0] - usual) / (1 - usual)) if usual < 1 else 0.0
    return float((shares >= shares[0] - 1e-12).mean()), above
