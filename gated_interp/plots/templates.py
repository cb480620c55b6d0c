"""The package's pages, from their Jinja templates.

What is put in is escaped, and a character that cannot be seen is written out.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from gated_interp.core.written import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(template: str, **values: Any) -> str:
    """The page that ``template``, a file beside this one, makes of ``values``."""
    page: str = _environment().get_template(template).render(**values)
    return page


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("gated_interp", "plots"),
        autoescape=True,
        undefined=StrictUndefined,
        # Of what is marked as safe (scripts, styles), nothing is changed.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
