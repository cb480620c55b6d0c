"""How Sphinx builds the site: ``make docs``, offline; no page asks another host for anything."""

import inspect
import json
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref

import gated_interp
from gated_interp.core.errors import sentences

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import measured  # noqa: E402

project = "gated-interp"
author = "the gated-interp authors"
version = release = gated_interp.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "from_csv",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

# Notebooks are shown with the outputs that they are stored with.
nb_execution_mode = "off"
# The widgets' own scripts would come from another host; a picture stands beside each.
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "substitution"]
# {{ frontier.ours }} on a page is a number that was computed from a CSV.
myst_substitutions = measured.NUMBERS
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autosummary_generate = True
NAMES = [name for name in gated_interp.__all__ if name != "__version__"]
PUBLIC = {}
"""By public name, such as ``ablate`` or ``analytic.manual_model``, what it is."""
for name in NAMES:
    thing = getattr(gated_interp, name)
    if inspect.ismodule(thing):
        PUBLIC |= {f"{name}.{inner}": getattr(thing, inner) for inner in thing.__all__}
    else:
        PUBLIC[name] = thing
# What a docstring calls it, which says no more than the last word.
BY_LAST_WORD = {path.rpartition(".")[2]: path for path in sorted(PUBLIC, key=len, reverse=True)}
LOWER = [name.lower() for name in NAMES]
# No dot, which is taken for the beginning of a suffix; and where disks do not know large letters
# from small ones, Verdict and verdict are two pages all the same.
autosummary_filename_map = {
    f"gated_interp.{name}": name if LOWER.count(name.lower()) == 1 or name.islower() else f"{name}_"
    for name in NAMES
}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Prose: what stands before its first colon is no type.
napoleon_custom_sections = ["Returns"]

html_theme = "furo"
html_title = f"gated-interp {release}"
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = html_show_sphinx = False
pygments_style = "friendly"
codeautolink_autodoc_inject = False
# A page's blocks read as one script: a name of an earlier block is known in a later one.
codeautolink_concat_default = True
# A docstring's example uses names as its module knows them; the reference has them by one name.
codeautolink_global_preface = "\n".join(
    ["import gated_interp as gi", *(f"from gated_interp import {name}" for name in NAMES)]
)
codeautolink_inventory_map = {
    f"{thing.__module__}.{thing.__qualname__}": f"gated_interp.{path}"
    for path, thing in PUBLIC.items()
    if hasattr(thing, "__qualname__")
}


def setup(app):
    copy_notebooks()
    # It asks which pages there are as soon as it can: after autosummary has written its own.
    app.connect("builder-inited", lambda app: app.env.find_files(app.config, app.builder))
    app.setup_extension("sphinx_codeautolink")
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.connect("source-read", on_the_site)
    app.connect("doctree-read", link_names)
    app.connect("autodoc-process-docstring", plain_stars, priority=900)  # after napoleon
    app.connect("missing-reference", public_name)


def copy_notebooks():
    """Beside the pages, where Sphinx looks; git ignores them there. A page installs nothing."""
    there = HERE / "notebooks"
    shutil.rmtree(there, ignore_errors=True)
    there.mkdir()
    for path in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
        notebook["cells"] = [c for c in cells if "%pip install" not in "".join(c["source"])]
        (there / path.name).write_text(json.dumps(notebook), encoding="utf-8")


def on_the_site(app, docname, content):
    """Links to notebooks lead to their pages here, as they lead to their files elsewhere."""
    content[0] = content[0].replace("](../notebooks/", "](notebooks/")
    if docname == "errors":
        content[0] += every_code()


def every_code():
    """The table of codes and sentences."""
    rows = []
    for code, said in sorted(sentences().items()):
        plain = re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", said)
        rows.append(f"| `{code}` | {plain} |\n")
    return "\n| code | sentence |\n|---|---|\n" + "".join(rows)


def link_names(app, doctree):
    """What prose calls ``gi.ablate`` leads to its page."""
    for literal in list(doctree.findall(nodes.literal)):
        name = re.match(r"gi\.((?:[a-z]+\.)?\w+)", literal.astext())
        inside = isinstance(literal.parent, nodes.reference | pending_xref)
        if name and name[1] in PUBLIC and not inside:
            link = pending_xref(
                "",
                refdomain="py",
                reftype="obj",
                reftarget=f"gated_interp.{name[1]}",
                refdoc=app.env.docname,
            )
            literal.replace_self(link)
            link += literal


def plain_stars(app, what, name, obj, options, lines):
    """The star of a shape, ``*head d_model``, begins no emphasis where a type is prose."""
    lines[:] = [
        line.replace("*", r"\*") if line.lstrip().startswith(":type:") else line for line in lines
    ]


def inline_formula(translator, node):
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def formula(translator, node):
    shown = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{shown}</div>')
    raise nodes.SkipNode


def public_name(app, env, node, contnode):
    """Docstrings name things where they live; the reference lists them under the package."""
    name = BY_LAST_WORD.get(node.get("reftarget", "").rpartition(".")[2])
    if name is None:
        return None
    domain = env.domains["py"]
    shown = contnode.astext().rpartition(".")[2]
    contnode = nodes.literal("", shown) if isinstance(contnode, nodes.literal) else contnode
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"gated_interp.{name}", node, contnode
    )
