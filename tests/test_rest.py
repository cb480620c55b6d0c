"""What runs behind a layer's heads equals the whole model with hooks, for models of every kind."""

from functools import partial

import pytest
import torch
from closeness import assert_close
from model_kinds import FAMILIES, KINDS, N_CTX, TASK, Column
from refusals import refuses

import gated_interp.analysis.rest as module
from gated_interp.analysis.rest import Rest
from gated_interp.core.components import AbstractAttention
from gated_interp.replacements.heads import HeadAttention

ALL = [
    *(Column(kind, "MLPs") for kind in KINDS),
    *(Column(kind) for kind in FAMILIES),
    *(Column("LN", "parallel MLPs", block=block) for block in ("gated", "TopK", "autoencoder")),
    *(Column("Llama", block=block) for block in ("gated", "TopK")),
]
POSITIONS = torch.arange(N_CTX) % 3 == 1


def _asked(batch: int = 5) -> torch.Tensor:
    """Different positions in each row, the same many never."""
    return (torch.arange(N_CTX) + torch.arange(batch)[:, None]) % 4 == 0


def _hooked(model, layer, tokens, z, mask):
    """The whole model, with z put in by TransformerLens' own hooks."""
    return model.run_with_hooks(
        tokens,
        attention_mask=mask,
        fwd_hooks=[(f"blocks.{layer}.attn.hook_z", lambda old, hook: z)],
    )


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("column", ALL, ids=str)
def test_equals_the_whole_model_with_hooks(column: Column, padded: bool, monkeypatch) -> None:
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 2 * N_CTX)  # rows two by two
    model = column.build()
    if padded and model.cfg.attention_dir != "causal":
        return
    source = torch.Generator().manual_seed(3)
    tokens = torch.randint(TASK.d_vocab, (5, N_CTX), generator=source)
    mask = None
    if padded:
        mask = torch.ones_like(tokens)
        mask[1, :4], mask[3, 9:] = 0, 0
    for layer in range(model.cfg.n_layers):
        rest = Rest(model, layer, tokens, attention_mask=mask)
        name = f"blocks.{layer}.attn.hook_z"
        whole, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=name)
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        assert_close(rest.logits()[real], whole[real], roundings=128)
        z = torch.randn(cache[name].shape, generator=source)
        expected = _hooked(model, layer, tokens, z, mask)
        size = expected.abs().max()
        close = {"roundings": 128, "scale": size}
        assert_close(rest.logits(z)[real], expected[real], **close)
        # Some positions, some rows, one of them twice.
        rows = torch.tensor([4, 1, 4])
        found = rest.logits(z[rows], POSITIONS, rows)
        shown = real[rows][:, POSITIONS]
        assert_close(found[shown], expected[rows][:, POSITIONS][shown], **close)
        asked = _asked() & real
        assert_close(rest.logits(z[rows], asked, rows), expected[rows][asked[rows]], **close)
        halved = _hooked(model, layer, tokens, cache[name] / 2, mask)
        last = rest.logits(lambda z: z / 2, slice(-2, None), slice(1, 3))
        shown = real[1:3, -2:]
        assert_close(last[shown], halved[1:3, -2:][shown], **close)


def test_only_the_layers_behind_run() -> None:
    model = Column("Llama").build()
    rest = Rest(model, 1, torch.ones(2, 5, dtype=torch.long))
    ran = []
    hooks = [
        block.hook_resid_pre.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(model.blocks)
    ]
    rest.logits(torch.zeros_like(rest.z))
    for hook in hooks:
        hook.remove()
    assert ran == [1]


@pytest.mark.parametrize("block", [None, "gated", "TopK"])
def test_its_own_attention_reads_nothing_unless_somebody_looks(block, monkeypatch) -> None:
    model = (Column("LN") if block is None else Column("LN", block=block)).build()
    kind = HeadAttention if block else AbstractAttention
    layer = next(i for i in (0, 1) if isinstance(model.blocks[i].attn, kind))
    attn, tokens = model.blocks[layer].attn, TASK.sample(3, 0).tokens
    rest, seen = Rest(model, layer, tokens), []
    project = module.intervened  # the edit sees what the attention made

    def watched(model, edits):
        return project(model, {name: partial(spy, edit) for name, edit in edits.items()})

    def spy(edit, old):
        seen.append(bool(old.any()) and old.shape == rest.z.shape)
        return edit(old)

    monkeypatch.setattr(module, "intervened", watched)
    z = torch.randn(rest.z.shape, generator=torch.Generator().manual_seed(0)).to(rest.z)
    found = rest.logits(z)
    attn.hook_pattern.add_perma_hook(lambda value, hook: None)
    assert_close(rest.logits(z), found, roundings=64)
    assert seen == [False, True]
    assert "forward" not in vars(attn)


def test_losses_are_made_of_a_few_logits_at_a_time(monkeypatch) -> None:
    model = Column("GPT-2").build()
    source = torch.Generator().manual_seed(5)
    tokens = torch.randint(TASK.d_vocab, (5, N_CTX), generator=source)
    rest, asked = Rest(model, 0, tokens), _asked()
    asked[:, -1] = False
    z = torch.randn(rest.z.shape, generator=source)
    expected = torch.nn.functional.cross_entropy(
        rest.logits(z, asked), tokens.roll(-1, 1)[asked], reduction="none"
    )
    monkeypatch.setattr(module, "LOSSES_AT_ONCE", 3 * model.cfg.d_vocab)
    made = []
    hook = model.unembed.register_forward_hook(lambda _m, _i, out: made.append(out.shape[1]))
    assert_close(rest.losses(z, asked), expected, roundings=128)
    hook.remove()
    assert max(made) == 3
    assert sum(made) == int(asked.sum())


def test_logits_are_made_where_they_are_asked_for() -> None:
    model = Column("GPT-2").build()
    rest = Rest(model, 0, torch.ones(5, N_CTX, dtype=torch.long))
    made = []
    hook = model.unembed.register_forward_hook(lambda _m, _i, out: made.append(out.shape))
    rest.logits(positions=_asked())
    hook.remove()
    assert made == [(1, int(_asked().sum()), TASK.d_vocab)]


def test_refusals() -> None:
    model = Column("LN").build()
    rest = Rest(model, 0, torch.ones(5, N_CTX, dtype=torch.long))
    with refuses("bad-z"):
        rest.logits(torch.zeros_like(rest.z)[:2])
    with refuses("bad-mask"):
        rest.logits(positions=torch.ones(3, dtype=torch.bool))
