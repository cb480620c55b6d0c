"""What a model is and who holds what in it: ``verdict`` and ``info``."""

import json
import math
from typing import TYPE_CHECKING, Any

from gated_interp.cli.console import cell, say_exactly, show, show_facts
from gated_interp.cli.imports import quick_imports
from gated_interp.cli.options import File, Json, Layer

if TYPE_CHECKING:
    from gated_interp.analysis.holders import Holders
    from gated_interp.analysis.verdict import Verdict
    from gated_interp.models.toy import TaskTransformer
    from gated_interp.tasks.task import ProbedTask


def verdict(file: File, as_json: Json = False, layer: Layer = None) -> None:
    """Say which head holds which trigram, by ablation, and which is its sole owner.

    Sole owner is the post's rule, for comparison. In a model of several layers, a head that answers
    only by what other layers wrote holds nothing; what it holds given them is a column of its own.
    """
    with quick_imports():
        from gated_interp.analysis.heads import chosen_layer
        from gated_interp.analysis.holders import holders
        from gated_interp.analysis.verdict import verdict as verdict_of
        from gated_interp.checkpoints.checkpoint import load
        from gated_interp.tasks.task import require_answers

    model = load(file)
    require_answers(model.task)
    layer = chosen_layer(model, layer)
    if model.cfg.n_layers == 1:
        found = verdict_of(model, model.task)
        if as_json:
            say_exactly(json.dumps(found.to_json()))
        else:
            show_verdict(model.model_name, found, model.task)
            if not found.clean:
                _show_reasons(holders(model, model.task), model.task)
            show_roles(model, found)
        return
    strict = holders(model, model.task, layer=layer)
    given = holders(model, model.task, layer=layer, rest="intact")
    # Below the last layer the post's rule says nothing: what heads write there is read again.
    last = layer == model.cfg.n_layers - 1
    owners = verdict_of(model, model.task, layer=layer).owners if last else None
    if as_json:
        said: dict[str, Any] = {"layer": layer, "learnt": strict.learnt}
        for name, heads in (("holders", strict.holders), ("given_others", given.holders)):
            said[name] = {str(b): h for b, h in heads.items()}
        said |= {"clean": strict.clean, "why_not": {str(b): w for b, w in strict.why_not().items()}}
        said["owners"] = None if owners is None else {str(b): h for b, h in owners.items()}
        say_exactly(json.dumps(said))
        return
    columns = [strict.holders, given.holders, *([owners] if owners is not None else [])]
    rows = [
        [name, *(_names(layer, heads[b]) for heads in columns), f"{accuracy:.1%}"]
        for (b, name), accuracy in zip(model.task.cases.items(), strict.accuracy, strict=True)
    ]
    names = ["held by", "given other layers", "sole owner (the post's)"][: len(columns)]
    title = f"{model.model_name}, layer {layer}"
    show(title, [model.task.case_word, *names, "accuracy"], rows)
    _show_reasons(strict, model.task)


def _names(layer: int, heads: list[int]) -> str:
    return ", ".join(f"L{layer}H{h}" for h in heads) or "-"


def _show_reasons(found: "Holders", task: "ProbedTask") -> None:
    """Why no head holds what none holds, each reason once."""
    reasons = found.why_not()
    if not reasons:
        return
    rows = [
        (", ".join(task.cases[b] for b, why in reasons.items() if why == reason), reason)
        for reason in dict.fromkeys(reasons.values())
    ]
    show("why no head holds it", [task.case_word, "reason"], rows)


def show_verdict(name: str, found: "Verdict", task: "ProbedTask") -> None:
    """A verdict as a table: who holds and who owns each case, how often its answer is on top."""
    rows = []
    for b, accuracy in found.accuracy.items():
        held, owned = (
            ", ".join(f"L0H{h}" for h in heads[b]) for heads in (found.holders, found.owners)
        )
        state = "not learnt" if b in found.not_learnt else held or "no single head"
        rows.append((task.cases[b], state, owned or "-", f"{accuracy:.1%}"))
    show(name, [task.case_word, "held by", "sole owner (the post's)", "accuracy"], rows)


def show_roles(model: "TaskTransformer", found: "Verdict") -> None:
    """Two tables of ordinary sequences: what each head writes for, and what ablations leave."""
    from gated_interp.analysis.roles import head_roles, what_remains

    roles = head_roles(model, model.task, found.holders)
    word, names = model.task.case_word, model.task.cases
    holds = {h: names[b] for b, heads in found.holders.items() for h in heads}
    numbers = ["energy", "purity", "purity_any", "open_pairs", "open_there"]
    rows = [
        [f"L0H{h}", holds.get(h, "-"), *("-" if math.isnan(x) else f"{x:.1%}" for x in shares)]
        for h, shares in enumerate(roles[numbers].to_numpy().tolist())
    ]
    head = ["head", "holds", "energy", "of it there", f"at any {word}", "gate open", "of it there"]
    show("what heads write", head, rows)
    remains = what_remains(model, model.task, found.holders)
    rows = [
        [r["ablated"], r["heads"], f"{r['fvu']:.3g}", f"{r['kl']:.2g}", f"{r['accuracy']:.1%}"]
        for r in remains.to_dict("records")
    ]
    show("what is left", ["ablated", "heads", "FVU", "KL (nats)", f"{word}s answered"], rows)


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
