"""What a model is and who holds what in it: ``verdict`` and ``info``."""

import json
import math
from typing import TYPE_CHECKING, Any

from gated_interp.cli.console import cell, say_exactly, show, show_facts
from gated_interp.cli.imports import quick_imports
from gated_interp.cli.options import File, Json

if TYPE_CHECKING:
    from gated_interp.analysis.verdict import Verdict
    from gated_interp.models.toy import KnownTransformer


def verdict(file: File, as_json: Json = False) -> None:
    """Say which head holds which trigram, by ablation, and which is its sole owner.

    Sole owner is the post's rule, for comparison.
    """
    with quick_imports():
        from gated_interp.analysis.verdict import verdict as verdict_of
        from gated_interp.checkpoints.checkpoint import load

    model = load(file)
    found = verdict_of(model, model.task)
    if as_json:
        say_exactly(json.dumps(found.to_json()))
    else:
        show_verdict(model.model_name, found)
        show_roles(model, found)


def show_verdict(name: str, found: "Verdict") -> None:
    """A verdict as a table: each trigram, who holds and who owns it, how often C is on top."""
    rows = []
    for b, accuracy in found.accuracy.items():
        held, owned = (
            ", ".join(f"L0H{h}" for h in heads[b]) for heads in (found.holders, found.owners)
        )
        state = "not learnt" if b in found.not_learnt else held or "no single head"
        rows.append((f"A…B{b}→C{b}", state, owned or "-", f"{accuracy:.1%}"))
    show(name, ["trigram", "held by", "sole owner (the post's)", "accuracy"], rows)


def show_roles(model: "KnownTransformer", found: "Verdict") -> None:
    """Two tables of ordinary sequences: what each head writes for, and what ablations leave."""
    from gated_interp.analysis.holders import head_roles, what_remains

    roles = head_roles(model, model.task, found.holders)
    holds = {h: f"A…B{b}→C{b}" for b, heads in found.holders.items() for h in heads}
    numbers = ["energy", "purity", "purity_any", "open_pairs", "open_there"]
    rows = [
        [f"L0H{h}", holds.get(h, "-"), *("-" if math.isnan(x) else f"{x:.1%}" for x in shares)]
        for h, shares in enumerate(roles[numbers].to_numpy().tolist())
    ]
    head = ["head", "holds", "energy", "of it there", "at any trigram", "gate open", "of it there"]
    show("what heads write", head, rows)
    remains = what_remains(model, model.task, found.holders)
    rows = [
        [r["ablated"], r["heads"], f"{r['fvu']:.3g}", f"{r['kl']:.2g}", f"{r['accuracy']:.1%}"]
        for r in remains.to_dict("records")
    ]
    show("what is left", ["ablated", "heads", "FVU", "KL (nats)", "trigrams answered"], rows)


def info(file: File, as_json: Json = False) -> None:
    """Say what a checkpoint is.

    Its task, configs and notes; only the header is read.
    """
    with quick_imports():
        from gated_interp.checkpoints.checkpoint import read_info

    found = read_info(file)
    if as_json:
        said = {**found.to_json(), "n_parameters": found.n_parameters}
        if "tokenizer" in said["task"]:  # long, and in the file
            said["task"]["tokenizer"] = f"{found.task.d_vocab} tokens"
        say_exactly(json.dumps(said))
        return
    facts: list[tuple[str, Any]] = [
        ("kind", found.kind),
        ("format", found.format),
        ("trained parameters", found.n_parameters),
        ("task", found.task),
    ]
    for part in (found.model, *found.replacements.values()):
        if part is not None:
            own = ", ".join(f"{k}={v}" for k, v in part.config.to_dict().items())
            facts.append((type(part.config).__name__, own))
    notes = found.notes.items()
    facts += [
        (f"notes.{k}", cell(v) if not isinstance(v, dict) else json.dumps(v)) for k, v in notes
    ]
    show_facts(file, facts)


COMMANDS = {"verdict": verdict, "info": info}
