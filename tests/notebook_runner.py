"""Run notebooks in a fresh kernel of this interpreter.

``python tests/notebook_runner.py NOTEBOOK...`` runs them and saves them with their outputs.
"""

import base64
import os
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = {PLOTLY, "image/png", "image/svg+xml"}
SHARP = 2  # saved image pixels per CSS pixel
SECONDS = 300


def executed(path: Path, **variables: str) -> Any:
    """The notebook with fresh outputs; an error in a cell is one of them.

    Args:
        variables: of the kernel's environment.
    """
    notebook = nbformat.read(path, as_version=4)
    with warnings.catch_warnings():
        # What Jupyter's own packages warn about says nothing of ours.
        warnings.simplefilter("ignore")
        # No folder but the interpreter's own kernel, whatever the machine has installed.
        manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        client = NotebookClient(
            notebook,
            km=manager,
            resources={"metadata": {"path": str(path.parent)}},  # where Jupyter runs it
            timeout=SECONDS,
            allow_errors=True,
            record_timing=False,
        )
        # The warnings a reader sees, not those of the process around it; and tensors this small
        # gain nothing from a second thread.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
        environment |= {"OMP_NUM_THREADS": "1", **variables}
        # The kernel and its sockets are closed for a manager of nbclient's own only, unless asked.
        client.execute(cleanup_kc=True, env=environment)
    return notebook


def differences(saved: Any, fresh: Any) -> list[str]:
    """In which cells the outputs differ in kind from the saved ones, one sentence each."""
    if len(saved.cells) != len(fresh.cells):
        return [f"{len(fresh.cells)} cells, saved with {len(saved.cells)}"]
    pairs = zip(saved.cells, fresh.cells, strict=True)
    return [
        f"cell {i}: {kinds(now)}, saved with {kinds(before)}{_trouble(now)}"
        for i, (before, now) in enumerate(pairs)
        if kinds(now) != kinds(before)
    ]


def kinds(cell: Any) -> list[str]:
    """What the cell's outputs are, whatever they say: pictures, tables, widgets, text, errors.

    Sorted, one of each for each output; a stream counts once, however it was cut into pieces.
    """
    outputs = cell.get("outputs", [])
    streams = {output.name for output in outputs if output.output_type == "stream"}
    return sorted([*streams, *(kind for output in outputs for kind in _kinds(output))])


def _kinds(output: Any) -> set[str]:
    if output.output_type == "stream":
        return set()
    if output.output_type == "error":
        return {"error"}
    found = set(output.data) - {"text/plain"}
    if WIDGET in found:
        return {WIDGET}
    # Saved with a PNG alone.
    return {"picture" if kind in PICTURES else kind for kind in found} or {"text"}


def _trouble(cell: Any) -> str:
    """What went wrong in the cell, where something did."""
    outputs = cell.get("outputs", [])
    errors = [f"{o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]
    said = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    return "".join(f"\n  {words.strip()}" for words in errors + said)


def tidy(notebook: Any) -> Any:
    """The notebook as it is saved: pictures still, no state of the session that ran it."""
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop(PLOTLY, None)
                output.metadata = {"image/png": shown_size(output.data["image/png"])}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return notebook


def shown_size(png: str) -> dict[str, int]:
    """Width and height, in CSS pixels, that a sharp picture is shown with."""
    width, height = struct.unpack(">II", base64.b64decode(png)[16:24])
    return {"width": width // SHARP, "height": height // SHARP}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        fresh = executed(Path(name), GATED_INTERP_PICTURE_SCALE=str(SHARP))
        trouble = "".join(map(_trouble, fresh.cells))
        if trouble:
            sys.exit(f"{name} is not saved:{trouble}")
        nbformat.write(tidy(fresh), name)
