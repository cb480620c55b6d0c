"""Install what was built into an empty environment, and try what a stranger tries first.

``python tests/smoke.py dist constraints.txt`` takes the wheel, with what it needs, then the sdist.
With the wheel and its extra for notebooks, the quickest of these runs from top to bottom. Name
others behind, or all: ``notebooks/*.ipynb``.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TRIED = """
import sys
import gated_interp as gi

assert gi.__file__.startswith(sys.prefix), gi.__file__
model = gi.load("2H3ST-gated")
assert gi.verdict(model, model.task).clean
assert set(gi.shipped_names()) >= {"2H3ST-toy", "2H3ST-gated"}
for name in gi.__all__:
    try:
        getattr(gi, name)
    except gi.GatedInterpError as error:  # it needs an extra, and says which
        assert "[notebooks]" in str(error), (name, error)
print(gi.__version__)
"""


QUICKEST = Path(__file__).parent.parent / "notebooks" / "03_ov_qk_and_gate_circuits.ipynb"


class Elsewhere:
    """An environment that knows nothing of this checkout.

    Args:
        folder: where it is made.
        deps: a folder with the dependencies, for an environment that installs none.
    """

    def __init__(self, folder: Path, deps: str | None = None):
        venv.create(folder, with_pip=True)
        self.folder, self.bin = folder, folder / "bin"
        self.settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        if deps is not None:
            (site,) = folder.glob("lib/python*/site-packages")
            (site / "deps.pth").write_text(f"{deps}\n", encoding="utf-8")

    def run(self, *command: str | Path) -> str:
        """What it prints, run there."""
        done = subprocess.run(
            [self.bin / command[0], *command[1:]],
            check=True, cwd=self.folder, env=self.settings, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return done.stdout

    def install(self, built: Path, *of_pip: str, extra: str = "") -> None:
        """A wheel or an sdist, with further arguments of ``pip install``."""
        self.run("python", "-m", "pip", "-q", "--disable-pip-version-check", "install",
                 "--no-compile", *of_pip, f"{built.resolve()}{extra}")  # fmt: skip

    def execute(self, notebook: Path) -> None:
        """A notebook from top to bottom, with the files that lie beside it; it is not saved."""
        self.run("jupyter", "execute", "--timeout=300", notebook.resolve())

    def tried(self) -> str:
        """The version that is installed, once it does what a stranger tries first."""
        version = self.run("python", "-c", TRIED).strip()
        assert self.run("gated-interp", "--version").split()[-1] == version
        assert "held by" in self.run("gated-interp", "verdict", "2H3ST-gated")
        return version


if __name__ == "__main__":
    dist, constraints, *notebooks = map(Path, sys.argv[1:])
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        there = Elsewhere(Path(folder))
        ways = {
            wheel: ("-c", str(constraints.resolve())),
            sdist: ("--no-deps", "--force-reinstall"),
        }
        for built, of_pip in ways.items():
            there.install(built, *of_pip)
            print(f"{built}: {there.tried()}, {built.stat().st_size / 1e6:.1f} MB")
            if built == wheel:
                there.install(wheel, *of_pip, extra="[notebooks]")
                for notebook in notebooks or [QUICKEST]:
                    there.execute(notebook)
                    print(f"{notebook} runs")
