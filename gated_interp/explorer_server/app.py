"""Voilà with its own template, this Python as its kernel, and no configuration from outside."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tornado.httpserver
import tornado.ioloop
import tornado.web
from jupyter_client.kernelspec import KernelSpecManager
from traitlets.config import Config
from voila.app import Voila

TEMPLATES = Path(__file__).parent
# Others are not needed, and Voilà loads whatever is installed.
EXTENSIONS = [
    "@jupyter-widgets/jupyterlab-manager",
    "@voila-dashboards/widgets-manager8",
    "anywidget",
]


class ThisPython(KernelSpecManager):
    """One kernel: the Python that runs this, whatever kernels the user has installed."""

    def _kernel_dirs_default(self) -> list[str]:
        return []

    def get_kernel_spec(self, kernel_name: str) -> Any:
        """The kernel, quiet but for errors."""
        spec = super().get_kernel_spec(kernel_name)
        spec.argv = [*spec.argv, f"--log-level={logging.ERROR}"]
        return spec


class ExplorerApp(Voila):
    """Voilà for one notebook on a socket that is already bound.

    Attributes:
        listening: the socket.
        ready: called once requests are answered.
    """

    listening: socket.socket
    ready: Callable[[], None]

    @classmethod
    def run(cls, notebook: Path, listening: socket.socket, ready: Callable[[], None]) -> None:
        """Serve ``notebook`` until interrupted or told to end."""
        host, port = listening.getsockname()
        settings = Config()
        settings.Voila.ip, settings.Voila.port = host, port
        settings.Voila.log_level = logging.ERROR
        settings.Voila.config_file_paths = []
        settings.Voila.tornado_settings = {
            # The default time-out is longer than its interval, which tornado corrects aloud.
            "ws_ping_timeout": 30_000,
            # A page that closes asks for its kernel's end, without the token that this check wants.
            # There is no log-in to protect, and a kernel is only named by an unguessable id.
            "disable_check_xsrf": True,
        }
        settings.VoilaConfiguration.extension_allowlist = EXTENSIONS
        settings.VoilaConfiguration.kernel_spec_manager_class = ThisPython
        settings.VoilaConfiguration.file_allowlist = []
        settings.VoilaConfiguration.show_tracebacks = True
        app = cls(config=settings)
        app.notebook_path = str(notebook)
        app.listening, app.ready = listening, ready
        app.initialize([])
        app.start()

    def setup_template_dirs(self) -> None:
        """Voilà's templates, ours first."""
        super().setup_template_dirs()
        paths: list[str] = getattr(self, "template_paths", [])
        self.template_paths = [str(TEMPLATES), *paths]

    def listen(self) -> None:
        """Answer requests on the socket until interrupted."""
        self.ioloop = tornado.ioloop.IOLoop.current()
        tornado.httpserver.HTTPServer(self.app).add_socket(self.listening)
        self.ioloop.add_callback(self.ready)
        try:
            self.ioloop.start()
        except KeyboardInterrupt:
            pass  # Ctrl-C is how one leaves
        finally:
            self.stop()
