"""What a model is and who holds what in it: ``verdict`` and ``info``."""

import json
from typing import TYPE_CHECKING, Any

from gated_interp.cli.console import cell, say_exactly, show_facts
from gated_interp.cli.heads import overviewed, show_topic
from gated_interp.cli.imports import quick_imports
from gated_interp.cli.options import File, Json, Layer
from gated_interp.core.errors import CheckpointError, GatedInterpError

if TYPE_CHECKING:
    from gated_interp.subject import Side


def verdict(file: File, /, *, as_json: Json = False, layer: Layer = None) -> None:
    """Find out by ablation which head holds which skip trigram.

    Also names the sole owners, by the rule of the 2024 post, for comparison. In a model of several
    layers, a head that answers only with what other layers wrote holds nothing. What it holds with
    them is a column of its own.
    """
    with quick_imports():
        from gated_interp.analysis.heads import chosen_layer
        from gated_interp.checkpoints.opened import open_model
        from gated_interp.models.language_model import TextTransformer
        from gated_interp.subject import Subject
        from gated_interp.tasks.task import require_answers

    model = open_model(file)
    if isinstance(model, TextTransformer):
        raise GatedInterpError("no-verdict-on-text", file=file)
    require_answers(model.task)
    subject = Subject.of(model, chosen_layer(model, layer), alone=True)
    if as_json:
        say_exactly(json.dumps(_as_json(subject.after[0])))
    else:
        show_topic(subject, "holders")


def _as_json(side: "Side") -> dict[str, Any]:
    if side.linear and side.model.cfg.n_layers == 1:
        return side.verdict.to_json()
    strict = side.holders
    said: dict[str, Any] = {"layer": side.layer, "learnt": strict.learnt}
    for name, heads in (("holders", strict.holders), ("given_others", side.given.holders)):
        said[name] = {str(b): h for b, h in heads.items()}
    said |= {"clean": strict.clean, "why_not": {str(b): w for b, w in strict.why_not().items()}}
    # Below the last layer the post's rule says nothing: what heads write there is read again.
    owners = side.verdict.owners.items() if side.linear else None
    return said | {"owners": None if owners is None else {str(b): h for b, h in owners}}


def info(file: File, /, *, as_json: Json = False) -> None:
    """Show what a model is: its task, configs and notes.

    Only the header of a checkpoint is read. A model of another library is opened, unless a
    checkpoint refers to it, and an overview says which of its heads matter, and which are induction
    and previous-token heads.
    """
    with quick_imports():
        from gated_interp.checkpoints.checkpoint import read_info
        from gated_interp.checkpoints.foreign import is_foreign
        from gated_interp.checkpoints.opened import open_model
        from gated_interp.subject import Subject

    try:
        found: Any = None if is_foreign(file) else read_info(file)
    except CheckpointError:  # a name of another library, or open_model says what is wrong
        found = None
    if found is None:
        model: Any = open_model(file)
        cfg = model.cfg
        about = {
            "architecture": cfg.original_architecture,
            "layers": cfg.n_layers,
            "heads": cfg.n_heads,
            "key-value heads": cfg.n_key_value_heads or cfg.n_heads,
            "d_model": cfg.d_model,
            "d_head": cfg.d_head,
            "vocabulary": cfg.d_vocab,
            "positions": cfg.n_ctx,
            "processed": getattr(model, "processed", "norms folded"),
            "text": str(model.task or "none, as there is no tokenizer"),
        }
        if as_json:
            say_exactly(json.dumps(about))
        else:
            show_facts(file, list(about.items()))
            if model.task is not None:
                overviewed(Subject.of(model, alone=True))
        return
    if as_json:
        said = {**found.to_json(), "n_parameters": found.n_parameters}
        if "tokenizer" in said.get("task", ()):  # long, and in the file
            said["task"]["tokenizer"] = f"{found.task.d_vocab} tokens"
        say_exactly(json.dumps(said))
        return
    facts = [(k, json.dumps(v) if isinstance(v, dict) else cell(v)) for k, v in found.facts()]
    show_facts(file, facts)
