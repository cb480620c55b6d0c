"""The served explorer: bad input, and the way it stops. The page is tested in tests/browser."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gated_interp.checkpoints.checkpoint import save
from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer_server import serve
from gated_interp.models.analytic import manual_model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(manual_model(2, 3).model, tmp_path / "it's a toy.safetensors")


def test_a_port_in_use_gets_a_sentence(file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(GatedInterpError, match=f"port {port} on 127.0.0.1 cannot be used"):
            serve(file, port=port, open_browser=False)


def test_what_cannot_be_served_gets_a_sentence(file: Path, tmp_path: Path) -> None:
    with pytest.raises(GatedInterpError, match="there is no file"):
        serve(tmp_path / "gone.safetensors", open_browser=False)
    with pytest.raises(GatedInterpError, match="from 0 to 65535"):
        serve(file, port=70000, open_browser=False)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly(file: Path, tmp_path: Path, end: signal.Signals) -> None:
    code = (
        "import sys; from gated_interp.explorer_server import serve; "
        "serve(sys.argv[1], open_browser=False)"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # Its own group, so that the signal reaches it alone, as `kill` would.
    running = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "HOME": str(tmp_path)},
    )
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line.startswith("The explorer is at http://127.0.0.1:")
        running.send_signal(end)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 0
    assert out == "The explorer stopped.\n"
    assert err == ""
    assert list(temporary.iterdir()) == []
