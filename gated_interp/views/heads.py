"""Cards of every head: what it reads, where it writes, what it says."""

from collections.abc import Iterator

from gated_interp.plots.head_page import flat, side_stem
from gated_interp.subject import Subject
from gated_interp.views.shown import Shown, View


def show(subject: Subject) -> Iterator[Shown]:
    """The original's before the block's."""
    many = len(subject.layers) > 1
    sides = {f"layer {s.layer}, {s.name}" if many else s.name: s for s in subject.measured}
    read = {name: side.readings for name, side in sides.items()}
    holds = None
    if subject.known:
        holds = {
            name: {
                h: ", ".join(subject.task.cases[b] for b in held)
                for h in range(len(side.heads))
                if (held := [b for b, heads in side.holders.holders.items() if h in heads])
            }
            for name, side in sides.items()
        }
    yield Shown(
        "heads",
        "What each head reads, where it writes, and what it says",
        f"Read on {subject.size}. “Reads” are the tokens a head takes most from (attention times "
        "gate times the length of the value), “writes at” those it writes at, “says” those it "
        "raises most. All are more frequent than chance would have them. Below each head stand the "
        "places where it writes most.",
        {side_stem(name): flat(found.table) for name, found in read.items()},
        cards={"sides": read, "names": subject.names, "holds": holds},
    )


VIEW = View("heads", show, gallery="no")
