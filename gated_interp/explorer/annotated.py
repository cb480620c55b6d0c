"""States with notes on heads, groups that are switched together, and what is shown of both."""

import dataclasses
from typing import Any

from gated_interp.analysis.heads import Head, HeadLike
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.written import head_name
from gated_interp.explorer.notes import NO_NOTE, note_of, with_note
from gated_interp.explorer.session import Session
from gated_interp.explorer.state import ExplorerState
from gated_interp.explorer.words import require_switch


def with_words_of(
    session: Session,
    state: ExplorerState,
    model: str | None,
    head: int | HeadLike,
    **words: Any,
) -> ExplorerState:
    """``state`` with other words of one head.

    Args:
        words: ``pinned``, ``name``, ``groups`` and ``note``; those left out stay.
    """
    name = session.name(model)
    key = name, session.head(state, head, name)
    before = dataclasses.asdict(state.notes.get(key, NO_NOTE))
    note = note_of(**{**before, **words})
    return dataclasses.replace(state, notes=with_note(state.notes, key, note))


def members(state: ExplorerState, group: Any) -> list[tuple[str, Head]]:
    """The heads of a group, with their models."""
    found = sorted(key for key, note in state.notes.items() if group in note.groups)
    if not found:
        names = sorted({g for note in state.notes.values() for g in note.groups})
        raise GatedInterpError("no-such-group", group=str(group)[:60], names=names or ["none"])
    return found


def with_group(session: Session, state: ExplorerState, group: Any, on: bool) -> ExplorerState:
    """``state`` with every head of a group switched on or off."""
    require_switch("on", on)
    for model, head in members(state, group):
        state = session.with_head(state, head, on, model)
    return state


def notes_view(state: ExplorerState) -> dict[str, Any]:
    """The notes of every head, and the groups."""
    heads = [
        {
            "model": model,
            "layer": head[0],
            "head": head[1],
            "label": head_name(head),
            "on": head not in state.off[model],
            **dataclasses.asdict(note),
        }
        for (model, head), note in sorted(state.notes.items())
    ]
    groups = []
    for name in sorted({group for note in state.notes.values() for group in note.groups}):
        of = members(state, name)
        groups.append(
            {
                "name": name,
                "heads": [[model, head_name(head)] for model, head in of],
                "off": sum(head in state.off[model] for model, head in of),
            }
        )
    return {"heads": heads, "groups": groups}
