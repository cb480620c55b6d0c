"""What made a report: versions, configs, seeds and the command."""

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch

from gated_interp import __version__
from gated_interp.core.fingerprint import fingerprint
from gated_interp.subject import Subject
from gated_interp.views.shown import Shown, View


def show(subject: Subject) -> Iterator[Shown]:
    """A table of facts, and one of configs."""
    model, info = subject.model, getattr(subject.model, "info", None)
    facts: dict[str, Any] = {
        "made by": subject.made_by,
        "gated-interp": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformer-lens": version("transformer-lens"),
        "model": subject.name,
        "hash of the weights": fingerprint(model, trained=True),
        "task": "none named" if subject.task is None else str(subject.task),
        "measured on": subject.size,
        "seed of these, and of the bootstrap": subject.seed,
    }
    own: dict[str, Any] = {}
    if info is not None:
        facts["checkpoint"] = f"{info.kind}, format {info.format}"
        parts = {"model": info.model} | {f"layer {i}": p for i, p in info.replacements.items()}
        for name, part in parts.items():
            if part is not None:
                own |= {f"{name}: {key}": v for key, v in part.config.to_dict().items()}
    own |= _flat({"note": getattr(model, "notes", None) or {}})
    yield _table(
        "provenance",
        "What made this page",
        "Everything on this page was computed from the model's weights through activation hooks. "
        "The same command on the same machine gives the same numbers.",
        facts,
    )
    if own:
        words = "What the checkpoint says of itself: configs, seeds, and its maker's notes."
        yield _table("configs", "Configs of the model and its blocks", words, own, folded=True)


def _table(
    name: str, title: str, words: str, facts: Mapping[str, Any], folded: bool = False
) -> Shown:
    written = [
        v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str)
        for v in facts.values()
    ]
    table = pd.DataFrame({"name": list(facts), "value": written})
    return Shown(name, title, words, table, face=table, folded=folded)


def _flat(notes: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in notes.items():
        deeper = isinstance(value, Mapping)
        found |= _flat(value, f"{before}{key}: ") if deeper else {f"{before}{key}": value}
    return found


VIEW = View("provenance", show, gallery="no")
