"""Attention of the head that matters most, on the text where it writes most."""

from collections.abc import Iterator

import pandas as pd

from gated_interp.core import written
from gated_interp.core.precision import wide
from gated_interp.plots.heatmaps import head_attention
from gated_interp.subject import Side, Subject
from gated_interp.views.shown import Shown, View

# Tokens that are shown, how many of them stand before what the head reads, and the least attention
# that a file has.
WINDOW, BEFORE = 20, 3


def show(subject: Subject) -> Iterator[Shown]:
    """A figure per side, of the head without which its loss rises most."""
    for name in subject.sides:
        sides = [sides[name] for sides in subject.at.values()]
        best = max(sides, key=lambda side: float(side.readings.table["effect"].iloc[0]))
        yield from _attention(subject, best)


def _attention(subject: Subject, side: Side) -> Iterator[Shown]:
    found, first = side.readings, side.readings.table.iloc[0]
    places = found.contexts[found.contexts["head"] == first["head"]]
    if not first["effect"] > 0 or places.empty:
        return
    head, name = int(first["head"]), side.heads[int(first["head"])]
    batch = subject.batch
    # Of the places where it writes most, the first at which what it reads most is near enough.
    keys = found.reads[places.index.tolist()].argmax(1).tolist()
    near = [p - k < WINDOW - BEFORE for p, k in zip(places["position"], keys, strict=True)]
    chosen = near.index(True) if any(near) else 0
    place, key = places.iloc[chosen], keys[chosen]
    row, position = int(place["row"]), int(place["position"])
    there = batch.counted[row].nonzero().flatten()
    begin = max(int(there[0]), key - BEFORE if near[chosen] else position + 1 - WINDOW)
    here = slice(begin, min(begin + WINDOW, int(there[-1]) + 1))
    prefix = f"blocks.{side.layer}.attn."
    wanted = [prefix + "hook_pattern", prefix + "hook_gated_pattern"]
    _, cache = batch[[row]].cache(side.model, wanted, stop_at_layer=side.layer + 1)
    panels = {
        words: wide(cache[hook])[0, head, here, here].cpu().numpy()
        for words, hook in zip(("attention", "after its gate"), wanted, strict=True)
        if hook in cache
    }
    tokens = [subject.names[t] for t in batch.tokens[row, here].tolist()]
    shown = [written.token(token, "·") for token in tokens]
    table = pd.DataFrame(
        {"query_pos": begin + q, "query_token": tokens[q], "key_pos": begin + k,
         "key_token": tokens[k], **{w: float(each[q, k]) for w, each in panels.items()}}
        for q in range(len(tokens))
        for k in range(q + 1)
    )  # fmt: skip
    rise, low, high = (
        written.change(first[name]) for name in ("effect", "effect_low", "effect_high")
    )
    at, read = (
        written.token(subject.names[int(batch.tokens[row, p])], "·") for p in (position, key)
    )
    which = "" if subject.layer_shown is None else f" of layer {side.layer}"
    title = subject.said(side.name, f"{name} is the head{which} that matters most")
    yield Shown(
        f"strongest-{side.name}",
        title,
        f"Without it the loss rises by {rise} nats (95% interval {low} to {high}, zero ablation, "
        f"on {subject.size}). The figure shows the part of a text where it writes "
        f"most: at “{at}” (position {position}) it reads “{read}” most. Each row is a query, each "
        "column a key."
        + (" Right: what its gate lets through of the attention." if len(panels) > 1 else ""),
        table,
        lambda: head_attention(panels, shown, title=f"{subject.label(side.name)}: {name}"),
    )


VIEW = View("heads", show, order=0, gallery="no")
