"""Serve the explorer of one model with Voilà, to this machine only."""

import json
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gated_interp.checkpoints.checkpoint import read_info
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.shipped import shipped_names
from gated_interp.tasks.skip_trigrams import require_trigrams

HOST = "127.0.0.1"


def serve(
    source: str | os.PathLike[str],
    port: int = 0,
    open_browser: bool = True,
    say: Callable[[str], object] = print,
) -> None:
    """Serve the explorer of a checkpoint as a page on 127.0.0.1, until Ctrl-C (or SIGTERM).

    Nothing is asked from a network, and only this machine reaches the page.

    Args:
        source: a checkpoint file, a folder that holds one, or the name of a shipped model.
        port: to listen at; 0 takes a free one.
        open_browser: whether to open the page in the default browser.
        say: is told the page's address once it answers, and that it stopped.

    Raises:
        GatedInterpError: no such checkpoint or one of a model without trigrams, the notebook
            packages are missing, or the port is in use or not allowed.
    """
    require_trigrams("the explorer", read_info(source).task)
    where = str(source)
    if not (isinstance(source, str) and source in shipped_names()):
        where = str(Path(source).resolve())
    if type(port) is not int or not 0 <= port <= 65535:
        raise GatedInterpError(f"port is {port!r}; it must be a whole number from 0 to 65535.")
    try:
        from gated_interp.explorer_server.app import ExplorerApp
    except ImportError as error:
        raise GatedInterpError(
            "the explorer's page needs the notebook packages; install them with "
            "pip install 'gated-interp[notebooks]'."
        ) from error
    listening = _listen(port)
    address = f"http://{HOST}:{listening.getsockname()[1]}/"

    def ready() -> None:
        say(f"The explorer is at {address} (Ctrl-C stops it)")
        if open_browser:
            # Some browsers return only when they are closed.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    try:
        with tempfile.TemporaryDirectory(prefix="gated-interp-") as folder:
            notebook = Path(folder) / "explorer.ipynb"
            notebook.write_text(json.dumps(_notebook(where)), encoding="utf-8")
            ExplorerApp.run(notebook, listening, ready)
    finally:
        listening.close()
    say("The explorer stopped.")


def _listen(port: int) -> socket.socket:
    """A socket bound to ``port`` on the loopback interface.

    Raises:
        GatedInterpError: the port cannot be had.
    """
    bound = socket.socket()
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise GatedInterpError(
            f"port {port} on {HOST} cannot be used ({error.strerror}); "
            "name another, or 0 for any that is free."
        ) from error
    bound.setblocking(False)
    return bound


def _notebook(source: str) -> dict[str, object]:
    """A notebook of one cell whose last value is the explorer."""
    code = (
        "from gated_interp.explorer import HeadExplorer\n"
        "from gated_interp.checkpoints.checkpoint import load\n"
        f"model = load({source!r})\n"
        "HeadExplorer(model, model.task)"
    )
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "explorer",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": code,
    }
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "title": "gated-interp explorer"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": [cell]}
