"""The explorer as a local page: ``explore``."""

from typing import Annotated

from gated_interp.cli.console import say
from gated_interp.cli.options import Base, File, at_least


def explore(
    file: File = "2H3ST-gated",
    /,
    *,
    base: Base = None,
    port: Annotated[int, at_least(0, 65535)] = 0,
    browser: bool = True,
) -> None:
    """Switch heads of any model on and off on a local page.

    The page is served to this machine alone, until Ctrl-C.

    Args:
        port: Serve the page at this port. 0 takes a free one.
        browser: Open the page in the browser.
    """
    from gated_interp.explorer_server import explore as opened

    opened(file, base=base, port=port, open_browser=browser, say=say)
