"""AtP*, against patches by hooks and gradients of models of which parts are detached."""

import pytest
import torch
from closeness import assert_close
from refusals import refuses
from test_attribute import KINDS, difference, gated_model, model_of, prompts_of
from transformer_lens import HookedTransformer, HookedTransformerConfig

import gated_interp as gi
from gated_interp.replacements.heads import HeadAttention


def attention_only(**given) -> HookedTransformer:
    """Two layers of two heads without norms, all weights zero."""
    flags = {"n_layers": 2, "d_model": 8, "d_head": 4, "n_heads": 2, "n_ctx": 6, "d_vocab": 11}
    config = HookedTransformerConfig(
        **flags | given, attn_only=True, normalization_type=None, dtype=torch.float64, seed=0
    )
    model = HookedTransformer(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    return model


def saturated() -> HookedTransformer:
    """Random weights; the last layer's scores are so far apart that softmax hardly has a slope."""
    model, source = attention_only(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=source))
        model.blocks[1].attn.W_Q.mul_(30)
    return model


def patched(model, clean, corrupted, hook: str, head: int) -> torch.Tensor:
    """What the metric changes by as a head's queries or such come from the corrupted prompts."""
    _, other = model.run_with_cache(corrupted)

    def edit(x, hook):
        x = x.clone()
        x[:, :, head] = other[hook.name][:, :, head]
        return x

    logits = model.run_with_hooks(clean, fwd_hooks=[(hook, edit)])
    return (difference(logits, clean) - difference(model(clean), clean)).detach()


@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_inputs_of_a_saturated_head_are_right_where_a_gradient_finds_nothing(role):
    """Behind the last pattern all is linear, so the corrected score is the exact one."""
    model, (clean, corrupted) = saturated(), prompts_of()
    found = gi.attribute_heads(model, clean, corrupted, difference, method="AtP*").inputs
    name, kept = f"blocks.1.attn.hook_{role}", {}
    _, other = model.run_with_cache(corrupted)

    def keep(x, hook):
        x.retain_grad()
        kept[hook.name] = x

    logits = model.run_with_hooks(clean, fwd_hooks=[(name, keep)])
    difference(logits, clean).sum().backward()
    plain = ((other[name] - kept[name]) * kept[name].grad).sum((1, 3)).detach()
    for head in range(2):
        exact = patched(model, clean, corrupted, name, head)
        mine = found.scores[:, found.names.index(f"L1H{head}.{role}")]
        assert_close(mine, exact, roundings=2000, scale=10.0)
        if role != "v":
            assert (plain[:, head] - exact).abs().max() > 0.5 * exact.abs().max()


def without_layer(model, clean, corrupted, drop: int | None, names: list[str]):
    """Gradients at hook points with what one layer adds to the stream detached."""
    kept = {}

    def keep(x, hook):
        x = x.clone()
        if drop is not None and f"blocks.{drop}.hook_" in hook.name:
            x = x.detach()
        if x.requires_grad:
            x.retain_grad()
        kept[hook.name] = x
        return x

    out = [n for n in model.hook_dict if n.endswith(("hook_attn_out", "hook_mlp_out"))]
    first = [("blocks.0.hook_resid_pre", lambda x, hook: x.detach().requires_grad_())]
    hooks = [(name, keep) for name in dict.fromkeys([*names, *out])]
    difference(model.run_with_hooks(clean, fwd_hooks=first + hooks), clean).sum().backward()
    return {name: torch.zeros_like(kept[name]) if kept[name].grad is None else kept[name].grad
            for name in names}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "gated"])
def test_sizes_are_those_of_gradients_that_leave_a_layer_out(kind):
    model, (clean, corrupted) = gated_model() if kind == "gated" else model_of(kind), prompts_of()
    found = gi.attribute_heads(model, clean, corrupted, difference, method="AtP*")
    plain = gi.attribute_heads(model, clean, corrupted, difference, method="attribution patching")
    assert_close(found.scores, plain.scores, roundings=2000, scale=10.0)
    other, here = model.run_with_cache(corrupted)[1], model.run_with_cache(clean)[1]
    z, v = "blocks.{}.attn.hook_z", "blocks.{}.attn.hook_v"
    names = [name.format(i) for i in range(2) for name in (z, v)]
    names += [] if model.cfg.attn_only else ["blocks.0.hook_mlp_out"]
    sizes = {}
    for drop in range(2):
        grads = without_layer(model, clean, corrupted, drop, names)
        for name, grad in grads.items():
            product = (other[name] - here[name]) * grad
            mine = product.sum((1, 3)) if product.ndim == 4 else product.sum((1, 2))[:, None]
            sizes[name] = sizes.get(name, 0) + mine.abs().mean(0)  # two layers: L - 1 is 1
    for layer in range(2):
        for h, wanted in enumerate(sizes[z.format(layer)]):
            at = found.names.index(f"L{layer}H{h}")
            assert_close(found.absolute[at], wanted, roundings=2000, scale=10.0)
        mine = [
            i for i, n in enumerate(found.inputs.names) if n[:2] == f"L{layer}" and n[-1] == "v"
        ]
        wanted = sizes[v.format(layer)]
        assert_close(found.inputs.absolute[mine], wanted, roundings=2000, scale=10.0)
    if not model.cfg.attn_only:
        at = found.names.index("L0 mlp")
        wanted = sizes["blocks.0.hook_mlp_out"][0]
        assert_close(found.absolute[at], wanted, roundings=2000, scale=10.0)


def test_shared_keys_are_patched_together():
    """Keys of the last layer, patched by hooks, where all behind the pattern is frozen linear."""
    kind = "rotary, grouped, RMS"
    model, (clean, corrupted) = model_of(kind), prompts_of()
    found = gi.attribute_heads(model, clean, corrupted, difference, method="AtP*").inputs
    other = model.run_with_cache(corrupted)[1]
    name, pattern = "blocks.0.attn.hook_k", "blocks.0.attn.hook_pattern"
    kept = {}

    def edit(x, hook):
        x = x.clone()
        x[:, :, 1] = other[name][:, :, 1]
        return x

    def keep(x, hook):
        kept[hook.name] = x
        return x

    model.run_with_hooks(clean, fwd_hooks=[(name, edit), (pattern, keep)])
    moved, here = kept[pattern], model.run_with_cache(clean)[1][pattern]
    grad = without_layer(model, clean, corrupted, None, [pattern])[pattern]
    wanted = ((moved - here) * grad).sum((1, 2, 3)).detach()
    mine = found.scores[:, found.names.index("L0KV1.k")]
    assert_close(mine, wanted, roundings=2000, scale=10.0)
    assert mine.abs().max() > 1e-4


def undone() -> HookedTransformer:
    """L0H0 writes what L1H0 takes away: exact scores and plain gradients of L0H0 are zero."""
    model = attention_only()
    with torch.no_grad():
        model.embed.W_E[:, 0] = torch.linspace(-1, 1, 11)
        for layer, (reads, sign) in enumerate([(0, 1.0), (1, -1.0)]):
            model.blocks[layer].attn.W_V[0, reads, 0] = 1
            model.blocks[layer].attn.W_O[0, 0, 1] = sign
        model.unembed.W_U[1, 3] = 1
        model.unembed.W_U[2, 7] = 1
        model.blocks[1].attn.W_V[1, 0, 0] = 0.5  # L1H1 answers by itself
        model.blocks[1].attn.W_O[1, 0, 2] = 1
    return model


def test_effects_that_cancel_are_seen():
    tokens = torch.arange(11)[[1, 4, 6], None].expand(3, 5)
    pair = tokens, (tokens + 2) % 11
    exact = gi.attribute_heads(undone(), *pair, difference)
    plain = gi.attribute_heads(undone(), *pair, difference, method="attribution patching")
    star = gi.attribute_heads(undone(), *pair, difference, method="AtP*")
    at = star.names.index("L0H0")
    assert exact.absolute[at] < 1e-9
    assert plain.absolute[at] < 1e-9
    assert star.absolute[at] > 0.1
    assert star.absolute[star.names.index("L0H1")] < 1e-9


def test_passes_and_refusals():
    model, (clean, corrupted) = model_of("LN"), prompts_of()
    found = gi.attribute_heads(model, clean, corrupted, difference, method="AtP*")
    assert (found.forward, found.backward) == (5, 3)
    assert found.inputs.table()["node"].str.endswith((".q", ".k", ".v")).all()
    with refuses("metric-flat-at-clean"):
        gi.attribute_heads(model, clean, corrupted, "kl", method="AtP*")
    one = attention_only(n_layers=1)
    with torch.no_grad():
        for weight in one.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    single = gi.attribute_heads(one, clean, corrupted, difference, method="AtP*")
    assert_close(single.absolute, single.scores.abs().mean(0), roundings=10)
    assert issubclass(type(gated_model().blocks[1].attn), HeadAttention)
