"""Serve the explorer of one model to this machine only.

The page is there within a second; PyTorch and the model, which take longer, are loaded behind it.
"""

import os
import threading
import webbrowser
from collections.abc import Callable
from typing import Any

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.signals import terminating
from gated_interp.explorer_server.page import Answer, PageServer

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
        source: a checkpoint file, a folder that holds one, or the name of a model that
            :func:`~gated_interp.checkpoints.checkpoint.load` knows.
        port: to listen at; 0 takes a free one.
        open_browser: whether to open the page in the default browser.
        say: is told the page's address once it answers, and that it stopped.

    Raises:
        GatedInterpError: no such checkpoint, or the port is in use or not allowed.
    """
    if type(port) is not int or not 0 <= port <= 65535:
        raise GatedInterpError(f"port is {port!r}; it must be a whole number from 0 to 65535.")
    name = os.path.basename(os.path.normpath(source))
    server = _listening(port, name)
    page = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    try:
        with terminating():
            page.start()
            address = f"http://{HOST}:{server.server_address[1]}/"
            say(f"The explorer is at {address} (Ctrl-C stops it)")
            if open_browser:
                # Some browsers return only when they are closed.
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
            server.answer = _answers(source, server)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass  # Ctrl-C is how one leaves
    finally:
        server.shutdown()
        server.server_close()
    say("The explorer stopped.")


def _answers(source: str | os.PathLike[str], server: PageServer) -> Answer:
    """Load the model, and say on the page what is being done."""
    server.progress = "Loading PyTorch …"
    from gated_interp.checkpoints.checkpoint import load
    from gated_interp.explorer.acts import acted
    from gated_interp.explorer.session import Session
    from gated_interp.explorer.view import Viewer, packed

    server.progress = "Loading the model …"
    model = load(source)
    server.progress = "Drawing examples …"
    session = Session(model)
    viewer = Viewer(session)

    def answer(request: dict[str, Any]) -> bytes:
        state, message = session.start, ""
        try:
            if request.get("at"):
                state = session.at_link(request["at"])
            state = acted(session, state, request)
            shown = viewer.view(state, session.read(state))
        except GatedInterpError as problem:
            message = str(problem)
            shown = viewer.view(state, session.read(state), message)
        return packed(*shown)

    answer({"do": "look"})  # what is measured once is measured before anyone waits for it
    return answer


def _listening(port: int, name: str) -> PageServer:
    """A server bound to ``port`` on the loopback interface.

    Raises:
        GatedInterpError: the port cannot be had.
    """
    try:
        return PageServer((HOST, port), name)
    except OSError as error:
        raise GatedInterpError(
            f"port {port} on {HOST} cannot be used ({error.strerror}); "
            "name another, or 0 for any that is free."
        ) from error
