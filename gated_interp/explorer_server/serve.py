"""Serve the explorer of one model to this machine only."""

import contextlib
import os
import socket
import threading
import webbrowser
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gated_interp.core.errors import GatedInterpError
from gated_interp.core.signals import terminating
from gated_interp.explorer_server.page import HOST, Answer, page_server


def explore(
    source: Any,
    *,
    base: Any = None,
    port: int = 0,
    open_browser: bool = True,
    say: Callable[[str], object] = print,
) -> None:
    """Open the explorer of a model in the browser: switch heads on and off, until Ctrl-C.

    The page is served on 127.0.0.1. In a notebook, :class:`~gated_interp.explorer.HeadExplorer`
    shows the same without a server.

    Nothing is asked from a network, and only this machine reaches the page.

    Args:
        source: a model, or what :func:`~gated_interp.checkpoints.opened.open_model` takes.
        base: the model of a checkpoint that holds blocks alone, as ``open_model`` takes it.
        port: to listen at; 0 takes a free one.
        open_browser: whether to open the page in the default browser.
        say: is told the page's address once the model is loaded, and that it stopped.

    Raises:
        GatedInterpError: no such model, or the port is in use or not allowed.

    Examples:
        >>> explore("2H3ST-gated", port=-1)
        Traceback (most recent call last):
        gated_interp.core.errors.GatedInterpError: port is -1, but it must be a whole number...
    """
    if type(port) is not int or not 0 <= port <= 65535:
        raise GatedInterpError("bad-port", port=port)
    # Leaving waits for the model's last answer: a thread cut off inside PyTorch aborts the process.
    with (
        contextlib.suppress(KeyboardInterrupt),  # Ctrl-C is how one leaves
        terminating(),
        _listening(port) as listener,
        ThreadPoolExecutor(1) as worker,
    ):
        port = listener.getsockname()[1]
        is_path = isinstance(source, str | os.PathLike)
        name = os.path.basename(os.path.normpath(source)) if is_path else "a model"
        server = page_server(name, port, _answers(source, base), worker)
        address = f"http://{HOST}:{port}/"
        say(f"The explorer is at {address} (Ctrl-C stops it)")
        if open_browser:
            # Some browsers return only when they are closed.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server.run([listener])
    say("The explorer stopped.")


def _answers(source: Any, base: Any) -> Answer:
    """Load the model."""
    from gated_interp.checkpoints.opened import open_model
    from gated_interp.explorer.acts import acted
    from gated_interp.explorer.session import Session
    from gated_interp.explorer.view import Viewer, packed

    session = Session(open_model(source, base=base))
    viewer = Viewer(session)

    def answer(request: dict[str, Any]) -> bytes:
        state, message = session.start, ""
        try:
            if request.get("at"):
                state = session.at_link(request["at"])
            state = acted(session, state, request)
            view, patterns = viewer.view(state, session.read(state))
        except GatedInterpError as problem:
            message = str(problem)
            view, patterns = viewer.view(state, session.read(state), message)
        return packed({**view, "answers": str(request.get("do"))}, patterns)

    answer({"do": "look"})  # what is measured once is measured before anyone waits for it
    return answer


def _listening(port: int) -> socket.socket:
    """A socket that listens at ``port`` on the loopback interface."""
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise GatedInterpError(
            "port-unusable", port=port, host=HOST, reason=error.strerror
        ) from error
    # An answer is sent in pieces; none waits for the other side's delay.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
