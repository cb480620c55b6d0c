"""Small models without training, for whoever wants them."""

import signal

import pytest

from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy


@pytest.fixture
def toy() -> HookedTransformer:
    """An untrained 2H3ST toy: 8 tokens, 11 positions."""
    return build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=5))


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard():
    """Started in the background, tests would ignore Ctrl-C, which some of them send."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
