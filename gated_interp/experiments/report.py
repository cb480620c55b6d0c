"""One page on one model, which a paper can link to: before and after, with numbers to download."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gated_interp.anatomy.batch import Mask, Tokens
from gated_interp.checkpoints.opened import open_model
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.files import require_place, write_text
from gated_interp.experiments.conclusion import conclusion
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.subject import Subject
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.text import TextTask
from gated_interp.views.frontier import read_beside
from gated_interp.views.page import GENERATOR, report_page
from gated_interp.views.registry import shown_of
from gated_interp.views.shown import TOPICS, Shown

ENDINGS = (".html", ".htm")
HEAD = 4096
"""Bytes at the beginning of a page in which it says that it is a report."""
LARGEST = 5_000_000


def report(
    model: HookedTransformer | str | os.PathLike[str],
    out: Path | str,
    *,
    layer: int | None = None,
    tokens: Tokens | None = None,
    names: Sequence[str] | None = None,
    sequences: int | None = None,
    seed: int = 0,
    beside: Path | str | None = None,
    interactive: bool = False,
    attention_mask: Mask | None = None,
    command: str | None = None,
    say: Callable[[str], object] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write one self-contained page on ``model``: who holds what, how exact and how sparse it is,
    what each head does, circuits, ablations, and what made it.

    Of a model with blocks spliced in, the original stands beside them. The page opens from disk,
    asks nobody for anything, and holds every number it shows as CSV. Its figures are pictures.

    Args:
        model: a model, a checkpoint, or the name of one that comes with the package.
        out: the page; a report that is there is written over, anything else is left.
        layer: whose heads; unless given, every layer that something was spliced into, or else all.
            Of a language model of more than four layers, an overview of all heads says which layer
            matters most, and the page shows that one.
        tokens: sequences to measure on; of the model's own task or text unless given.
        attention_mask: of these, 1 at tokens and 0 at padding.
        names: of tokens; the task's unless given.
        sequences: how many are drawn; 1,000 of a task with known answers, else 32, and fewer of a
            model with more than 32 million weights, down to 8.
        seed: they, and the bootstrap, are drawn from it.
        beside: a ``frontier.csv`` (of ``gated-interp frontier``) or ``runs.csv`` (of
            ``decompose``): what its rows reached on the same task or layer is drawn beside the
            block.
        interactive: figures say numbers under the mouse; the page brings the script (2 MB).
        command: what the page says made it; this call unless given.
        say: takes a sentence on whatever had to be left out.
        on_progress: told how many parts are done, of how many.

    Returns:
        ``out``.

    Raises:
        GatedInterpError: ``out`` is a folder, no page, or something else; no such model or layer;
            a model without task or text and no tokens; a table without a row for this block.

    Examples:
        >>> import tempfile
        >>> from gated_interp.models.analytic import manual_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(
        ...         manual_model(2, 3).model, f"{folder}/page.html", sequences=50, interactive=True
        ...     )
        ...     page.read_text(encoding="utf-8").count("<h2 ")
        7
    """
    out = Path(out)
    require_page(out)
    loaded = model if isinstance(model, HookedTransformer) else open_model(model)
    subject = Subject.of(
        loaded, layer, tokens, attention_mask=attention_mask, names=names, sequences=sequences,
        seed=seed,
    )  # fmt: skip
    subject = dataclasses.replace(
        subject,
        beside=None if beside is None else read_beside(Path(beside), subject),
        made_by=command or f"gi.report({subject.name!r}, {out.name!r})",
    )
    subject.batch  # noqa: B018  # refuses, before anything is measured, what cannot be read
    sections: dict[str, list[Shown]] = {}
    for done, topic in enumerate(TOPICS):
        on_progress(done, len(TOPICS) + 1)
        if done == 0 and subject.too_deep:
            subject = subject.narrowed()
        found = list(shown_of(subject, topic))
        if found or topic != "overview":
            sections[topic] = found
    on_progress(len(TOPICS), len(TOPICS) + 1)
    points, warnings = conclusion(subject, sections)
    page = report_page(title_of(subject), lead_of(subject), sections, points, warnings,
                       interactive=interactive)  # fmt: skip
    write_text(out, page)
    size = out.stat().st_size
    if size > LARGEST:
        say(f"{out} has {size / 1e6:.1f} MB; name one layer (--layer) for a smaller page.")
    on_progress(len(TOPICS) + 1, len(TOPICS) + 1)
    return out


def require_page(out: Path) -> None:
    """Refuse what no report can be written to, before anything is computed."""
    require_place(out)
    if out.suffix.lower() not in ENDINGS:
        raise GatedInterpError("not-a-page", path=out)
    above = next((folder for folder in out.absolute().parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise GatedInterpError("page-in-a-file", path=out, folder=above)
    if out.exists():
        with out.open("rb") as file:
            mine = f'content="{GENERATOR}"'.encode() in file.read(HEAD)
        if not mine:
            raise GatedInterpError("not-a-report", path=out)


def title_of(subject: Subject) -> str:
    """The page's heading."""
    sides = [len(heads) for heads in subject.heads.values()]
    title = f"{subject.name}: {sides[0]} attention heads"
    if subject.has_overview and subject.layer_shown is not None:
        title = f"{subject.name}, layer {subject.layer_shown}: {sides[0]} attention heads"
    return title if len(sides) == 1 else f"{title}, and the {sides[1]} of a block"


def lead_of(subject: Subject) -> list[str]:
    """What the model is, what was done, and how the page is read."""
    layers = subject.model.cfg.n_layers
    what = "an attention-only transformer" if subject.model.cfg.attn_only else "a transformer"
    kind = f"{what} of {layers} layer{'s' if layers > 1 else ''}"
    said = [f"{subject.name} is {kind}{_purpose(subject.task)}."]
    if subject.original is not None:
        where = " and ".join(f"layer {i}" for i in subject.layers)
        said.append(
            f"{_kind(subject)} replaces the attention of {where}. It was trained to write what the "
            "original attention wrote. “Original” is the model before, “block” the model with it."
        )
    if subject.has_overview and subject.original is None and subject.layer_shown is not None:
        said.append(
            f"Below the overview of all heads, the page shows layer {subject.layer_shown}. "
            "Another layer: --layer, or layer= in Python."
        )
    said.append(
        "Each figure and table has its numbers below it, as CSV. Heads are named by layer and "
        "index: L0H3 is head 3 of layer 0."
    )
    return said


def _purpose(task: object) -> str:
    if isinstance(task, SkipTrigramTask):
        more = ", B2 by C2 and so on" if task.n_trigrams > 1 else ""
        return (
            f", for {task.n_trigrams} skip trigrams: in sequences of {task.n_positions} tokens, "
            f"once an A has come, B1 is followed by C1{more}"
        )
    if isinstance(task, TextTask):
        text = " and ".join(f"“{Path(name).name}”" for name in task.text)
        said = f"a vocabulary of {task.d_vocab:,} tokens, sequences of {task.n_positions}"
        return f", for the text {text} ({said})" if text else f", for text ({said})"
    return "" if task is None else f", for {task}"


def _kind(subject: Subject) -> str:
    blocks = [subject.model.blocks[i].attn for i in subject.layers]
    if all(isinstance(block, GatedAttention) for block in blocks):
        return (
            "A gated attention block (more heads, each with a sparse gate for every pair of "
            "positions, so that each can hold one thing)"
        )
    return f"A replacement ({', '.join(dict.fromkeys(block.kind for block in blocks))})"
