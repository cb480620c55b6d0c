"""What a command imports, it imports quickly."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Leave the garbage collector off while the context is open.

    TransformerLens imports transformers, datasets and accelerate at once, which cannot wait; but
    searching the half million objects that stay for garbage, again and again, is a sixth of it.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
