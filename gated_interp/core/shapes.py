"""Shapes of the parameters of attention, as a file holds them."""

from gated_interp.core.config import Shapes


def attention_shapes(
    m: int, h: int, d: int, *, b_V: bool = True, b_O: bool, raw: str = ""
) -> Shapes:
    """The shapes of ``h`` heads of ``d`` dimensions; ``b_V`` and ``b_O`` only where they train.

    Args:
        raw: stands before the names of ``W_V`` and ``W_O``.
    """
    shapes: Shapes = dict.fromkeys(("W_Q", "W_K", f"{raw}W_V"), (h, m, d))
    shapes |= {f"{raw}W_O": (h, d, m)} | dict.fromkeys(("b_Q", "b_K"), (h, d))
    return shapes | ({"b_V": (h, d)} if b_V else {}) | ({"b_O": (m,)} if b_O else {})
