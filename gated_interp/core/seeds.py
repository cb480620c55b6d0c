"""Seeds become generators here; nothing else in the package makes randomness."""

import torch

from gated_interp.core.errors import GatedInterpError

MAX_SEED = 2**63 - 1


def generator(
    seed: int | torch.Generator, *, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator for ``seed``; a generator is passed through. Global state is never touched.

    Examples:
        >>> int(torch.randint(100, (1,), generator=generator(0)))
        44
    """
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise GatedInterpError("bad-seed", seed=seed)
    return torch.Generator(device=device).manual_seed(seed)


def derive(seed: int, *stream: int) -> int:
    """A seed for a named sub-stream of ``seed``, so that streams never share draws.

    Streams have their names in :class:`gated_interp.core.streams.Stream`.
    A SplitMix64 step per stream number: cheap, stable across versions and platforms.

    Examples:
        >>> derive(0, 1) != derive(0, 2) != derive(1, 1)
        True
    """
    x = seed & MAX_SEED
    for number in stream:
        x = (x + 0x9E3779B97F4A7C15 * (number + 1)) & (2**64 - 1)
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        x ^= x >> 31
    return x & MAX_SEED
