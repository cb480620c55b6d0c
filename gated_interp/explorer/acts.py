"""What a browser asks an explorer for, and the state that follows; nothing it says is trusted."""

import dataclasses
from collections.abc import Callable
from typing import Any

from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer.annotated import with_group, with_words_of
from gated_interp.explorer.saved import state_of
from gated_interp.explorer.second import measured_second, with_receiver, with_second
from gated_interp.explorer.session import Session
from gated_interp.explorer.state import ExplorerState

Act = Callable[[Session, ExplorerState, dict[str, Any]], ExplorerState]

# Each takes what the message says besides its name.
ACTS: dict[str, Act] = {
    "head": lambda s, at, m: s.with_head(at, m["head"], m["on"] is True, m["model"]),
    "only": lambda s, at, m: s.with_only(at, m["head"], m["model"]),
    "all": lambda s, at, m: s.with_all_on(at, m["model"]),
    "method": lambda s, at, m: s.with_method(at, m["value"]),
    "layer": lambda s, at, m: s.with_layer(at, m["value"]),
    "pattern": lambda s, at, m: s.with_pattern(at, m["value"]),
    "question": lambda s, at, m: s.with_words(at, m["kind"], str(m["value"])),
    "sort": lambda s, at, m: dataclasses.replace(at, by_effect=m["value"] is True),
    "step": lambda s, at, m: stepped(s, at, -1 if m["value"] == -1 else 1),
    "tokens": lambda s, at, m: s.at_tokens(at, str(m["value"])),
    "position": lambda s, at, m: s.at_position(at, m["value"]),
    "open": lambda s, at, m: s.with_opened(at, m["head"], m["model"]),
    "edge": lambda s, at, m: s.with_edge(at, m["query"], m["key"]),
    "close": lambda s, at, m: s.with_opened(at, None),
    "place": lambda s, at, m: s.at_position(s.at_example(at, int(m["example"])), m["position"]),
    "link": lambda s, at, m: s.at_link(m["value"]),
    "text": lambda s, at, m: dataclasses.replace(
        at, readers=m["readers"] is True, first=m["first"] is True
    ),
    "measure": lambda s, at, m: measured(s, at),
    "second": lambda s, at, m: with_second(s, at, str(m["value"])),
    "into": lambda s, at, m: with_receiver(s, at, str(m["value"]), m["part"]),
    "note": lambda s, at, m: with_words_of(
        s, at, m["model"], m["head"], **{k: m[k] for k in ("pinned", "name", "groups", "note")}
    ),
    "group": lambda s, at, m: with_group(s, at, m["value"], m["on"] is True),
    "file": lambda s, at, m: state_of(s, str(m["value"])),
    "measure second": lambda s, at, m: measured_second(s, at),
    "look": lambda s, at, m: at,
}


def acted(session: Session, state: ExplorerState, message: Any) -> ExplorerState:
    """The state after what ``message`` asks for in its ``do``."""
    try:
        act = ACTS[message["do"]]
        return act(session, state, message)
    except GatedInterpError:  # a ValueError too, with a sentence of its own
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise GatedInterpError("not-understood", message=repr(message)[:80]) from error


def measured(session: Session, state: ExplorerState) -> ExplorerState:
    """The same state, in which the effects of one more layer's heads are known."""
    session.measure(state)
    return state


def stepped(session: Session, state: ExplorerState, by: int) -> ExplorerState:
    """One example on or back; from typed tokens to the first or the last."""
    start = (-1 if by > 0 else 0) if state.example is None else state.example
    return session.at_example(state, start + by)
