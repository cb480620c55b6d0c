"""The model card of a checkpoint: what it is, how to load it, its settings, measures and source."""

import json
from typing import TYPE_CHECKING, Any

from gated_interp.checkpoints.checkpoint_format import CheckpointInfo
from gated_interp.checkpoints.reference_format import ReferenceInfo
from gated_interp.core.shipped import MODEL_FILE
from gated_interp.core.written import number

if TYPE_CHECKING:
    import pandas as pd

# Says that a card is ours, so that it may be written again; those of others are left alone.
MARK = "<!-- Written by gated_interp.push_to_hub, which writes it again with the next upload. -->"

# Facts that may name folders of the writer's computer.
PRIVATE = ("model", "text")

CITATION = """```bibtex
@misc{mathwin2024gated,
  title  = {Gated Attention Blocks: Preliminary Progress toward Removing Attention Head Superposition},
  author = {Mathwin, Chris and Akar, Dennis and Sharkey, Lee},
  year   = {2024},
}
```"""  # noqa: E501


def model_card(
    info: CheckpointInfo,
    repo_id: str,
    *,
    filename: str = MODEL_FILE,
    base_model: str | None = None,
    license: str | None = None,
    measures: "pd.DataFrame | None" = None,
) -> str:
    """The card (``README.md``) of the checkpoint that ``info`` describes, with its YAML block.

    Args:
        info: of the checkpoint, as ``model.info`` or ``read_info`` give it.
        repo_id, filename: where it will be.
        base_model: the repository of the model that its blocks stand in; ``None`` takes the name
            under which the model was opened, if that was one on the hub.
        license: as the hub writes it, such as ``mit``.
        measures: a table that is shown as it is; name units, n and intervals in its columns.

    Examples:
        >>> from gated_interp.checkpoints.checkpoint import read_info
        >>> print(model_card(read_info("2H3ST-gated"), "user/toy").split("---")[1].strip())
        library_name: gated-interp
        tags:
        - interpretability
        - attention
        - gated
    """
    from huggingface_hub import ModelCardData

    reference = info.reference if isinstance(info, ReferenceInfo) else None
    if base_model is None and reference is not None and "/" in (reference.name or ""):
        base_model = reference.name
    data = ModelCardData(
        base_model=base_model,
        license=license,
        library_name="gated-interp",
        tags=["interpretability", "attention", info.kind],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n{MARK}",
        f"# {repo_id.split('/')[-1]}",
        _what(info, base_model),
        "## Load it",
        _loading(repo_id, filename, reference is not None, base_model),
    ]
    if measures is not None:
        parts += ["## Measures", _table(map(str, measures.columns), measures.to_numpy().tolist())]
    if reference is not None:
        sketch = ", ".join(f"{value:.6g}" for value in reference.sketch)
        parts += [
            "## Base model",
            f"The blocks fit weights with this fingerprint: `{sketch}`. Other weights are refused.",
        ]
    facts = [(name, _cell(value)) for name, value in info.facts() if name not in PRIVATE]
    parts += ["## Settings", _table(("setting", "value"), facts), "## Citation", CITATION]
    return "\n\n".join(parts) + "\n"


def _what(info: CheckpointInfo, base_model: str | None) -> str:
    """One paragraph for a reader who has never heard of it."""
    if not info.replacements:
        return f"A model of gated-interp (`{info.kind}`), trained on `{info.task}`."
    layers = ", ".join(map(str, sorted(info.replacements)))
    where = f"of `{base_model}`" if base_model else "of its model"
    return (
        f"Replacements of kind `{info.kind}` for the attention {where}, in layer {layers} (counted "
        "from 0). They were trained to write what the original attention wrote, with fewer heads "
        "at work at a time, so that heads can be read one by one."
    )


def _loading(repo_id: str, filename: str, refers: bool, base_model: str | None) -> str:
    options = [f'"{repo_id}"'] + ([f'filename="{filename}"'] if filename != MODEL_FILE else [])
    said = ""
    if refers:
        options.append(f'base="{base_model or "path/to/the/model"}"')
        said = "The file holds the blocks alone; `base` is the model that they stand in.\n\n"
    code = f"import gated_interp as gi\n\nmodel = gi.from_hub({', '.join(options)})"
    install = "pip install 'gated-interp[hub]'"
    return f"{said}```bash\n{install}\n```\n\n```python\n{code}\n```"


def _cell(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else number(value)


def _table(columns: Any, rows: Any) -> str:
    columns = [*columns]
    lines = [columns, ["---"] * len(columns), *([number(x) for x in row] for row in rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
