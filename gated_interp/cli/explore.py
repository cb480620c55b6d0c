"""The explorer as a local page: ``explore``."""

from typing import Annotated

import typer

from gated_interp.cli.console import say


def explore(
    file: Annotated[
        str,
        typer.Argument(metavar="[FILE]", help="A checkpoint, or the name of a shipped model."),
    ] = "2H3ST-gated",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
) -> None:
    """Switch heads of any model on and off on a local page.

    The page is served to this machine alone, until Ctrl-C.
    """
    from gated_interp.explorer_server import serve

    serve(file, port=port, open_browser=browser, say=say)


COMMANDS = {"explore": explore}
