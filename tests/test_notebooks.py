"""The notebooks: they run, they show what they were saved with, and a reader sees it offline."""

import ast
import base64
import copy
import importlib.util
import re
import struct
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_runner import (
    PICTURES,
    PLOTLY,
    SHARP,
    WIDGET,
    differences,
    executed,
    kinds,
    shown_size,
    tidy,
)

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [
    "01_attention_head_superposition",
    "02_gated_attention",
    "03_ov_qk_and_gate_circuits",
    "04_ablate_heads_interactively",
    "05_a_language_model",
    "06_induction_heads",
    "07_where_gating_fails",
    "08_every_method_on_one_frontier",
    "09_a_pretrained_model",
]
LARGEST = 1_000_000  # bytes: code hosts stop showing notebooks of a few times this size
LONGEST = 5  # lines of a function
HTML = "text/html"
PNG = b"\x89PNG\r\n\x1a\n"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def saved(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def python(cell: Any) -> str:
    """The cell without IPython's own syntax."""
    return TransformerManager().transform_cell(cell.source)


def words_of(part: Any) -> str:
    """All that is saved in a part of a notebook, without the bytes of its pictures."""
    if isinstance(part, dict):
        return "\n".join(words_of(v) for k, v in part.items() if k != "image/png")
    if isinstance(part, list):
        return "\n".join(map(words_of, part))
    return str(part)


def test_all_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


# Running them.


@pytest.mark.slow
@every_notebook
def test_it_runs_and_shows_what_was_saved(path: Path) -> None:
    fresh = executed(path)
    assert differences(saved(path), fresh) == []
    found = {kind for cell in code_cells(fresh) for kind in kinds(cell)}
    assert not found & {"error", "stderr"}
    assert {"picture", HTML} <= found


# The comparison itself, on notebooks made by hand.


def shown(kind: str, content: Any = "") -> Any:
    return new_output("display_data", {kind: content, "text/plain": "…"})


def said(stream: str) -> Any:
    return new_output("stream", name=stream, text="…")


def result(content: str) -> Any:
    return new_output("execute_result", {"text/plain": content}, execution_count=1)


FAILED = new_output("error", ename="ValueError", evalue="of no value", traceback=[])


def notebook_of(*found: Any) -> Any:
    """A notebook whose second cell has these outputs."""
    return new_notebook(
        cells=[new_markdown_cell("A title"), new_code_cell("1", outputs=list(found))]
    )


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([], []),
        ([shown(HTML, "<table>1")], [shown(HTML, "<table>2")]),
        ([result("1")], [result("2")]),
        # A picture was saved without its plotly figure, or is run where nothing draws pictures.
        ([shown("image/png", "abc")], [shown(PLOTLY, {})]),
        ([shown("image/png", "abc")], [new_output("display_data", {PLOTLY: {}, "image/png": "d"})]),
        # A widget has a picture beside it where something draws pictures.
        (
            [new_output("display_data", {WIDGET: {}, "image/png": "abc"})],
            [shown(WIDGET, {})],
        ),
        # The kernel cuts what is printed as it likes.
        ([said("stdout"), said("stdout")], [said("stdout")]),
    ],
)
def test_the_same_kinds_are_no_difference(before: list[Any], now: list[Any]) -> None:
    assert differences(notebook_of(*before), notebook_of(*now)) == []


@pytest.mark.parametrize(
    ("before", "now", "sentence"),
    [
        (
            [shown("image/png", "abc")],
            [FAILED],
            "cell 1: ['error'], saved with ['picture']\n  ValueError: of no value",
        ),
        ([shown(HTML)], [], "cell 1: [], saved with ['text/html']"),
        ([shown(HTML)], [result("0 1")], "cell 1: ['text'], saved with ['text/html']"),
        (
            [shown(HTML), shown(HTML)],
            [shown(HTML)],
            "cell 1: ['text/html'], saved with ['text/html', 'text/html']",
        ),
        ([], [said("stderr")], "cell 1: ['stderr'], saved with []\n  …"),
        ([], [said("stdout")], "cell 1: ['stdout'], saved with []"),
        ([shown(WIDGET, {})], [result("x")], f"cell 1: ['text'], saved with ['{WIDGET}']"),
    ],
)
def test_another_kind_is_a_difference(before: list[Any], now: list[Any], sentence: str) -> None:
    assert differences(notebook_of(*before), notebook_of(*now)) == [sentence]
    assert len(differences(notebook_of(*now), notebook_of(*before))) == 1


def test_a_missing_cell_is_a_difference() -> None:
    notebook, shorter = notebook_of(), notebook_of()
    del shorter.cells[0]
    assert differences(notebook, shorter) == ["1 cells, saved with 2"]


@pytest.mark.slow
def test_an_error_in_a_cell_is_an_output_and_the_rest_still_runs(tmp_path: Path) -> None:
    path = tmp_path / "made.ipynb"
    sources = ["import sys; print('hello', file=sys.stderr)", "1 / 0", "6 * 7"]
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    fresh = executed(path)
    assert [kinds(cell) for cell in fresh.cells] == [["stderr"], ["error"], ["text"]]
    assert fresh.cells[2].outputs[0].data["text/plain"] == "42"


def test_it_is_saved_still() -> None:
    png = picture(640, 360)
    both = new_output("display_data", {PLOTLY: {}, "image/png": png})
    alone = new_output("display_data", {PLOTLY: {}})
    notebook = notebook_of(both, alone)
    notebook.metadata = {"widgets": {"state": {}}}
    notebook.cells[1].metadata = {"execution": {}}
    before = copy.deepcopy(notebook)
    tidied = tidy(notebook)
    assert [set(o.data) for o in tidied.cells[1].outputs] == [{"image/png"}, {PLOTLY}]
    assert [o.metadata for o in tidied.cells[1].outputs] == [
        {"image/png": {"width": 640 // SHARP, "height": 360 // SHARP}},
        {},
    ]
    assert differences(before, tidied) == []
    assert "widgets" not in tidied.metadata
    assert tidied.cells[1].metadata == {}


def picture(width: int, height: int) -> str:
    """The beginning of a PNG of this size."""
    start = PNG + struct.pack(">I4sII", 13, b"IHDR", width, height)
    return base64.b64encode(start).decode("ascii")


# What is saved.


@every_notebook
def test_it_was_saved_whole_in_order_and_without_trouble(path: Path) -> None:
    notebook = saved(path)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    found = {kind for cell in code_cells(notebook) for kind in kinds(cell)}
    assert not found & {"error", "stderr"}


@every_notebook
def test_it_opens_with_a_title_and_the_install_cell(path: Path) -> None:
    title, install = saved(path).cells[:2]
    assert re.match(r"# \w", title.source)
    assert install.cell_type == "code"
    assert "%pip install" in install.source
    assert install.outputs == []


@every_notebook
@pytest.mark.parametrize("missing", [None, "gated_interp", "anywidget"])
@pytest.mark.parametrize("hosted", [True, False])
def test_the_install_cell_installs_only_what_is_missing(
    path: Path, missing: str | None, hosted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    magics, widgets = [], []
    there = importlib.util.find_spec
    shell = types.SimpleNamespace(run_line_magic=lambda *words: magics.append(words))
    if hosted:
        switch = types.SimpleNamespace(enable_custom_widget_manager=lambda: widgets.append(1))
        hosting = types.ModuleType("google.colab")
        hosting.output = switch  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "google.colab", hosting)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else there(name)
    )
    notebook, names = saved(path), {"get_ipython": lambda: shell}
    exec(python(code_cells(notebook)[0]), names)
    # At first with numpy and torch as they are; then, as that did not help, with any.
    wanted = "install -q gated-interp ipywidgets anywidget"
    assert magics == ([("pip", wanted + " {kept}"), ("pip", wanted)] if missing else [])
    assert names["kept"] == f"numpy=={version('numpy')} torch=={version('torch')}"
    # A hosted service shows live widgets only when asked to.
    live = any(WIDGET in output.get("data", {}) for output in outputs(notebook))
    assert widgets == ([1] if hosted and live else [])


def long_functions(source: str) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, functions)]
    return [
        f"{getattr(node, 'name', 'lambda')} at line {node.lineno}"
        for node in found
        if (node.end_lineno or 0) - node.lineno + 1 > LONGEST
    ]


@every_notebook
def test_no_function_is_long(path: Path) -> None:
    for cell in code_cells(saved(path)):
        assert long_functions(python(cell)) == []


def test_a_long_function_would_be_found() -> None:
    five = "async def f():\n" + "    g()\n" * 4
    assert long_functions(five) == []
    assert long_functions(five + "    g()\n") == ["f at line 1"]
    assert long_functions("x = lambda: (\n" + "    1 +\n" * 4 + "1)") == ["lambda at line 1"]
    assert long_functions("class A:\n    def f(self):\n" + "        g()\n" * 5) == ["f at line 2"]


LOADS = re.compile(
    r"""(?:src|href|data-main|srcset)\s*=\s*["']?\s*(?:https?:)?//  # tags
      | (?:import|from|import\(|require\(|fetch\(|importScripts\()\s*["'](?:https?:)?//
      | url\(\s*["']?\s*(?:https?:)?//                              # style sheets
      | !\[[^\]]*\]\(\s*(?:https?:)?//                              # pictures in prose
      | \bcdn\b | jsdelivr | unpkg | cdnjs | cloudflare | requirejs | googleapis
    """,
    re.VERBOSE | re.IGNORECASE,
)
MACHINE = re.compile(r"(?<![\w.:/])/(?:root|work|tmp|home|Users|usr|opt|var|mnt|content)\b")


@every_notebook
def test_nothing_saved_would_load_from_the_network(path: Path) -> None:
    notebook = saved(path)
    assert LOADS.findall(words_of(notebook)) == []
    for output in outputs(notebook):
        assert not set(output.get("data", {})) & {"application/javascript", "text/latex"}
        # A table is not a program.
        assert "<script" not in "".join(output.get("data", {}).get(HTML, "")).lower()


@every_notebook
def test_it_names_no_place_on_a_machine(path: Path) -> None:
    assert MACHINE.findall(words_of(saved(path))) == []


@pytest.mark.parametrize(
    "bad",
    [
        '<script src="https://x.org/a.js">',
        "<link href=//x.org/a.css>",
        '<img\nsrc="http://x.org/a.png">',
        'import y from "https://x.org/y.js"',
        "await import('https://x.org/y.js')",
        "@import url(https://x.org/a.css)",
        "![a picture](https://x.org/a.png)",
        "https://cdn.x.org/plotly.js",
    ],
)
def test_what_loads_would_be_found(bad: str) -> None:
    assert LOADS.search(words_of(notebook_of(shown(HTML, bad))))


def test_a_place_would_be_found_and_a_link_is_none() -> None:
    for bad in ("/root/x.py", "in '/tmp/ipykernel_1/2.py'", "<b>/home/me"):
        assert MACHINE.search(words_of(notebook_of(shown(HTML, bad))))
    fine = "[a page](https://x.org/home/work) and true/tmp or 1/work"
    assert not MACHINE.search(fine)
    assert not LOADS.search(fine)


@every_notebook
def test_every_figure_and_widget_has_a_picture_that_code_hosts_show(path: Path) -> None:
    still = PICTURES | {WIDGET}
    figures = [o for o in outputs(saved(path)) if set(o.get("data", {})) & still]
    assert len(figures) >= 2
    for output in figures:
        assert base64.b64decode(output.data["image/png"]).startswith(PNG)
        size = shown_size(output.data["image/png"])
        # Sharp, and as large as the live figure: no wider than a page.
        assert output.metadata == {"image/png": size}
        assert 300 < size["width"] < 1000
        assert size["height"] > 100


@every_notebook
def test_it_is_small(path: Path) -> None:
    assert 10_000 < path.stat().st_size < LARGEST
