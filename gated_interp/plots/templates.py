"""The package's pages, from their Jinja templates; what is put in is escaped."""

from functools import cache
from typing import TYPE_CHECKING, Any

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
        loader=PackageLoader("gated_interp", "plots"), autoescape=True, undefined=StrictUndefined
    )
