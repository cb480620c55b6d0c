"""What works beside transformer_lens 4: ``make test-tl4`` runs it there, in its own environment.

Nothing here is promised (``pyproject.toml`` asks for 3.9); it says what breaks when 4.x moves on,
and that docs/transformer-lens-4.md is still right. One line each; exits with 1 if any fails.
"""

import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version

import torch


def hook_point() -> None:
    from transformer_lens.hook_points import HookPoint

    assert torch.equal(HookPoint()(torch.ones(2)), torch.ones(2))


def factored_matrix() -> None:
    from transformer_lens import FactoredMatrix

    a, b = torch.ones(3, 1), torch.ones(1, 4)
    assert torch.equal(FactoredMatrix(a, b).AB, a @ b)


def tasks() -> None:
    import gated_interp as gi

    assert gi.SkipTrigramTask(n_trigrams=3).sample(5, seed=0).tokens.shape == (5, 11)


def configs() -> None:
    import gated_interp as gi

    assert gi.TrainConfig(steps=5).steps == 5


def figures() -> None:
    import gated_interp as gi

    assert gi.plots.shapley_and_interactions([1.0], [[0.0]], ["L0H0"]).data


def a_block_alone() -> None:
    import gated_interp as gi

    block = gi.GatedAttention(gi.GatedConfig(d_model=8, n_heads=4))
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    terms = block.terms(x, x, x)
    (terms.output.square().mean() + 0.1 * terms.penalty).backward()
    assert block.W_Q.grad is not None
    with tempfile.TemporaryDirectory() as folder:
        block.save_pretrained(folder)
        assert torch.equal(gi.GatedAttention.from_pretrained(folder)(x), block(x))
    assert gi.GatedAttention.from_pretrained("2H3ST-gated").config.n_heads == 8


def a_model_is_refused_in_a_sentence() -> None:
    import gated_interp as gi

    said = "it loads, and docs/transformer-lens-4.md says that it does not"
    try:
        gi.load("2H3ST-toy")
    except ImportError as error:
        said = str(error)
    assert "HookedTransformer" in said, said


def a_bridge_is_refused_in_a_sentence() -> None:
    from transformer_lens.model_bridge import TransformerBridge

    import gated_interp as gi

    said = "it is opened, and docs/transformer-lens-4.md says that it is not"
    bridge = TransformerBridge.__new__(TransformerBridge)  # the error comes before it is looked at
    try:
        gi.open_model(bridge)
    except ImportError as error:
        said = str(error)
    assert "HookedTransformer" in said, said


CHECKS: list[Callable[[], None]] = [
    hook_point, factored_matrix, tasks, configs, figures, a_block_alone,
    a_model_is_refused_in_a_sentence, a_bridge_is_refused_in_a_sentence,
]  # fmt: skip


def main() -> int:
    print(f"transformer_lens {version('transformer-lens')}, torch {torch.__version__}")
    failed = 0
    for check in CHECKS:
        try:
            check()
            said = "works"
        except Exception as error:  # whatever 4.x does, the next one is still tried
            failed += 1
            said = f"fails: {type(error).__name__}: {error}"
        print(f"{check.__name__.replace('_', ' '):36}{said}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
