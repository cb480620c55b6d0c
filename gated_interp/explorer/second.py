"""The second prompt: the states that have one, and what a browser is told of it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import head_name
from gated_interp.explorer.patches import PARTS, Pair, Patches, Receiver
from gated_interp.explorer.session import AT_ONCE, Session
from gated_interp.explorer.state import ExplorerState
from gated_interp.explorer.words import require_words

FORMULA = (
    "share = (answer with this head’s output from the second prompt − answer to the first) / "
    "(answer to the second − answer to the first)"
)
ALONG = (
    "the same share where only the direct path from each head to the receiver sees the second "
    "prompt; all other heads and MLPs in between stay as they are"
)
# Places where the prompts differ that are named.
NAMED = 8


def with_second(session: Session, state: ExplorerState, words: str) -> ExplorerState:
    """``state`` with another second prompt, as it is typed; without one where nothing is."""
    require_words("words", words)
    if not words.strip():
        return dataclasses.replace(state, other=None, receiver=None)
    # What is shown, entered as it is, is the same tokens: also those without a first token.
    for same in (state.other, state.tokens):
        if same is not None and words == session.vocabulary.written(same):
            return dataclasses.replace(state, other=same)
    other = session.vocabulary.parse(words, session.longest)
    return dataclasses.replace(state, other=other)


def with_receiver(session: Session, state: ExplorerState, value: str, part: Any) -> ExplorerState:
    """``state`` with other paths shown, as a browser says it: ``gated.L1H3``, ``gated.logits``."""
    if not value:
        return dataclasses.replace(state, receiver=None)
    if state.other is None:
        raise GatedInterpError("no-second-prompt")
    model, _, end = value.partition(".")
    if end == "logits":
        return session.with_receiver(state, model, None)
    # From a gated head to one without a gate, what is read there falls back to the query.
    name = session.name(model)
    parts = session.patches[name].parts(session.head(state, end, name))
    if part in PARTS and part not in parts:
        part = PARTS[0]
    return session.with_receiver(state, name, end, part)


def pair_of(session: Session, state: ExplorerState, model: str) -> Pair:
    """Both prompts, and what is asked of ``model``."""
    if state.other is None:
        raise GatedInterpError("no-second-prompt")
    off, asked = state.off[model], session.asked(state)
    return Pair(state.tokens, state.other, off, state.method, state.position, asked)


def shares(
    session: Session, state: ExplorerState, model: str, most: int = 0
) -> list[list[float] | None]:
    """By layer, the share of each head; ``None`` where it is not known yet.

    Args:
        most: how many unknown layers are measured, where measuring all takes long.
    """
    pair, patches = pair_of(session, state, model), session.patches[model]
    bench = session.benches[model]
    later = patches.unmeasured(pair)
    if bench.heads_behind * len(state.tokens) < AT_ONCE:
        most = len(later)
    return _by_layer(session, len(bench.counts), later, most, lambda at: patches.heads(pair, at))


def path_shares(session: Session, state: ExplorerState, most: int = 0) -> list[list[float] | None]:
    """The same of the paths to the state's receiver, from the layers before it."""
    if state.receiver is None:
        raise GatedInterpError("no-receiver")
    model, head, part = state.receiver
    pair, patches = pair_of(session, state, model), session.patches[model]
    receiver = Receiver(head, part)
    later = patches.unmeasured_paths(pair, receiver)
    if not _takes_long(patches, pair):
        most = len(later)
    before = patches.before(receiver)
    return _by_layer(session, before, later, most, lambda at: patches.paths(pair, receiver, at))


def _by_layer(
    session: Session,
    n: int,
    unknown: Sequence[int],
    most: int,
    measure: Callable[[int], list[float]],
) -> list[list[float] | None]:
    """What ``measure`` finds of each layer, of at most ``most`` unknown ones: the last first."""
    later = set(unknown[: max(0, len(unknown) - most)])
    with session.threads():
        return [None if at in later else measure(at) for at in range(n)]


def _takes_long(patches: Patches, pair: Pair) -> bool:
    """Whether all paths take long: each is two passes of the whole model."""
    blocks = patches.bench.model.blocks
    weights = sum(p.numel() for p in blocks.parameters()) * sum(patches.bench.counts)
    return 2 * weights * len(pair.tokens) >= AT_ONCE


def measured_second(session: Session, state: ExplorerState) -> ExplorerState:
    """The same state, in which one more layer is known: of the heads, then of the paths."""
    for model in session.benches:
        if None in shares(session, state, model):
            shares(session, state, model, 1)
            return state
    if state.receiver is not None and None in path_shares(session, state):
        path_shares(session, state, 1)
    return state


def second_view(
    session: Session, state: ExplorerState, shown: Callable[[int], str]
) -> dict[str, Any] | None:
    """What is shown of the second prompt; ``None`` without one."""
    if state.other is None:
        return None
    models = [_model_view(session, state, name) for name in session.benches]
    differ = [
        [i, *map(shown, both)]
        for i, both in enumerate(zip(state.tokens, state.other, strict=False))
        if both[0] != both[1]
    ]
    refused = ""
    if len(state.tokens) != len(state.other):
        refused, models, differ = models[0]["refused"], [], []
    return {
        "box": session.vocabulary.written(state.other),
        "refused": refused,
        "differ": differ[:NAMED],
        "more": max(0, len(differ) - NAMED),
        "formula": FORMULA,
        "along": ALONG,
        "models": models,
        "receivers": [] if refused else _receivers(session),
        "paths": None if refused else _paths_view(session, state),
    }


def _model_view(session: Session, state: ExplorerState, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "asked": session.asked(state).name}
    counts = session.benches[name].counts
    blank: list[list[float] | None] = [None] * len(counts)
    try:
        first, second = session.patches[name].answers(pair_of(session, state, name))
        values = shares(session, state, name)
        said: dict[str, Any] = {"first": round(first, 4), "second": round(second, 4)}
        # A small difference makes large shares, so it is said beside them.
        said |= {"difference": f"{second - first:+.2g}", "refused": ""}
    except GatedInterpError as problem:
        values, said = blank, {"first": None, "second": None, "refused": str(problem)}
    left = 0 if said["refused"] else values.count(None)
    return {**found, **said, "left": left, "shares": _rounded(values, counts)}


def _paths_view(session: Session, state: ExplorerState) -> dict[str, Any] | None:
    if state.receiver is None:
        return None
    name, head, part = state.receiver
    patches = session.patches[name]
    counts = patches.bench.counts[: patches.before(Receiver(head, part))]
    try:
        values, refused = path_shares(session, state), ""
    except GatedInterpError as problem:
        values, refused = [None] * len(counts), str(problem)
    end = "logits" if head is None else head_name(head)
    return {
        "model": name,
        "value": f"{name}.{end}",
        "part": part,
        "parts": [] if head is None else list(patches.parts(head)),
        "refused": refused,
        "left": 0 if refused else values.count(None),
        "shares": _rounded(values, counts),
    }


def _receivers(session: Session) -> list[tuple[str, list[str]]]:
    """Where paths may end, by model."""
    found = []
    for name, bench in session.benches.items():
        heads = [(at, h) for at, n in enumerate(bench.counts) for h in range(n) if at]
        found.append((name, ["logits", *map(head_name, heads)]))
    return found


def _rounded(
    values: Sequence[list[float] | None], counts: Sequence[int]
) -> list[list[float | None]]:
    """Four digits; ``None`` for each head of a layer that is not known."""
    pairs = zip(values, counts, strict=True)
    return [[None] * n if v is None else [_finite(x) for x in v] for v, n in pairs]


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
