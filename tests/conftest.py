"""Small models without training, for whoever wants them."""

import pytest

from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy


@pytest.fixture
def toy() -> HookedTransformer:
    """An untrained 2H3ST toy: 8 tokens, 11 positions."""
    return build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=5))
