"""The public names: all there, none by surprise, and cheap to import."""

import subprocess
import sys

import pytest

import gated_interp


@pytest.mark.parametrize("name", gated_interp.__all__)
def test_every_public_name_is_there(name):
    assert getattr(gated_interp, name) is not None
    assert name in dir(gated_interp)


# Their examples need the network, so they are no doctests.
ON_THE_NETWORK = {"from_hub", "push_to_hub"}


@pytest.mark.parametrize("name", [n for n in gated_interp.__all__ if n != "__version__"])
def test_every_public_name_is_explained_with_an_example(name):
    thing = getattr(gated_interp, name)
    # Its own words, not those that dataclasses or a base class make up.
    words = vars(thing)["__doc__"] if isinstance(thing, type) else thing.__doc__
    assert words
    assert not words.startswith(f"{name}(")
    assert "Examples:" in words
    assert (">>> " in words) is (name not in ON_THE_NETWORK)
    assert "+SKIP" not in words


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gated_interp.nothing


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, gated_interp; print('torch' in sys.modules, 'plotly' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
