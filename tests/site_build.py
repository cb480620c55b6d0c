"""The documentation, built away from the checkout, with a page of labels that spell a script."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from gated_interp.plots.attention_views import attention_view

ROOT = Path(__file__).parents[1]
NASTY = ("</script><script>window.hacked=1</script>", "<img src=x onerror=window.hacked=2>")


def build(folder: Path) -> Path:
    """The folder of the built pages; what Sphinx warns of is an error.

    Args:
        folder: empty; the sources are copied into it.
    """
    docs, html = folder / "docs", folder / "html"
    made = shutil.ignore_patterns("_build", "notebooks", "reference")
    shutil.copytree(ROOT / "docs", docs, ignore=made)
    for name in ("figures", "notebooks"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)  # their links lead on from where they really are
    (docs / "labels.ipynb").write_text(json.dumps(labels()), encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(docs), str(html)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return html


def labels() -> dict[str, object]:
    """A notebook whose stored outputs hold tokens that would run, were they not shown as text."""
    table = pd.DataFrame({"token": NASTY}).to_html()
    view = attention_view([[[1.0, 0.0], [0.5, 0.5]]], NASTY, [NASTY[0]])
    outputs = [
        {"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}
        for html in (table, view.fragment(with_script=True))
    ]
    outputs.append({"output_type": "stream", "name": "stdout", "text": "\n".join(NASTY)})
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": f"# Labels `{NASTY[1]}`"},
        {
            "cell_type": "code", "id": "b", "metadata": {}, "execution_count": 1,
            "source": f"tokens = {NASTY!r}", "outputs": outputs,
        },
    ]  # fmt: skip
    metadata = {"orphan": True, "language_info": {"name": "python", "pygments_lexer": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}
