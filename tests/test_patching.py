"""Activation and path patching: identities at both ends, a linear effect worked out by hand."""

import attention_models as models
import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis.heads import intervened
from gated_interp.analysis.patching import activation_patch, patch_effects, path_patch
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(3)
CLEAN = TASK.sample(17, seed=0).tokens
SOURCE = TASK.sample(17, seed=1).tokens

MAKE = {
    "toy": lambda: models.toy(TASK),
    "gated": lambda: models.gated(TASK),
    "two layers": lambda: models.two_layers(TASK),
    "two layers, one gated": lambda: models.gated_layer(TASK, layer=0),
}


@pytest.fixture(params=MAKE)
def model(request):
    return MAKE[request.param]()


def test_patching_everything_is_the_source_run(model):
    last = f"blocks.{model.cfg.n_layers - 1}."
    assert_close(activation_patch(model, CLEAN, SOURCE, last + "hook_resid_post"), model(SOURCE))
    assert_close(activation_patch(model, CLEAN, CLEAN, last + "attn.hook_z"), model(CLEAN))
    assert not torch.allclose(model(CLEAN), model(SOURCE), atol=0.1)


def test_patching_one_head_by_hand(model):
    """The layer's output moves by (source z - z) W_O of that head, elsewhere by nothing."""
    name = "blocks.0.attn.hook_z"
    z, there = (model.run_with_cache(t)[1][name][:, :, 1] for t in (CLEAN, SOURCE))
    moved = (there - z) @ model.blocks[0].attn.W_O[1]
    if model.cfg.n_layers == 1:
        got = activation_patch(model, CLEAN, SOURCE, name, head=1)
        assert_close(got - model(CLEAN), moved @ model.unembed.W_U)
        got = activation_patch(model, CLEAN, SOURCE, name, head=1, position=4)
        effect = got - model(CLEAN)
        assert_close(effect[:, 4], (moved @ model.unembed.W_U)[:, 4])
        assert effect[:, :4].abs().max() == effect[:, 5:].abs().max() == 0
    _, cache = model.run_with_cache(CLEAN)
    direct = cache["blocks.0.hook_resid_post"] + moved

    def put(resid, hook):
        return direct

    want = model.run_with_hooks(CLEAN, fwd_hooks=[("blocks.0.hook_resid_post", put)])
    assert_close(activation_patch(model, CLEAN, SOURCE, name, head=1), want)


def test_patching_a_pattern_by_head_and_query(model):
    """Patterns have the head on axis 1 and the query on axis 2."""
    name = "blocks.0.attn.hook_pattern"
    seen = {}

    def look(pattern, hook):
        seen["patched"] = pattern

    z_name = "blocks.0.attn.hook_z"
    clean, source = (model.run_with_cache(t)[1] for t in (CLEAN, SOURCE))
    model.hook_dict[z_name].add_hook(look)
    activation_patch(model, CLEAN, SOURCE, name, head=2, position=3)
    model.reset_hooks()
    pattern = clean[name][:, 2, 3].clone()
    assert not torch.allclose(pattern, source[name][:, 2, 3])
    v = clean["blocks.0.attn.hook_v"][:, :, 2]
    weight = source[name][:, 2, 3]
    if "blocks.0.attn.hook_gate" in clean:
        weight = weight * clean["blocks.0.attn.hook_gate"][:, 2, 3]
    assert_close(seen["patched"][:, 3, 2], torch.einsum("bk,bkd->bd", weight, v))
    others = torch.ones(11, clean[z_name].shape[2], dtype=torch.bool)
    others[3, 2] = False
    assert_close(seen["patched"][:, others], clean[z_name][:, others])


def test_direct_path_to_the_end_is_the_direct_effect():
    """Sender in layer 0, receiver the last residual stream: only its own write moves it."""
    model = models.two_layers(TASK, normalization_type=None)
    z, there = (
        model.run_with_cache(t)[1]["blocks.0.attn.hook_z"][:, :, 2] for t in (CLEAN, SOURCE)
    )
    moved = (there - z) @ model.blocks[0].attn.W_O[2] @ model.unembed.W_U
    got = path_patch(model, CLEAN, SOURCE, (0, 2), "blocks.1.hook_resid_post")
    logits = model(CLEAN)
    assert_close(got - logits, moved, scale=logits.abs().max())
    whole = activation_patch(model, CLEAN, SOURCE, "blocks.0.attn.hook_z", head=2)
    assert (whole - got).abs().max() > 0.1  # later heads carry the rest


def test_path_to_a_query_by_hand():
    """Layer 1's queries of one head, worked out from the sender's write."""
    model = models.two_layers(TASK)
    clean, source = (model.run_with_cache(t)[1] for t in (CLEAN, SOURCE))
    name = "blocks.0.attn.hook_z"
    moved = (source[name] - clean[name])[:, :, 0] @ model.blocks[0].attn.W_O[0]
    x = model.blocks[1].ln1(clean["blocks.1.hook_resid_pre"] + moved)
    attn = model.blocks[1].attn
    q = x @ attn.W_Q[1] + attn.b_Q[1]

    def put(activation, hook):
        activation[:, :, 1] = q
        return activation

    want = model.run_with_hooks(CLEAN, fwd_hooks=[("blocks.1.attn.hook_q", put)])
    got = path_patch(model, CLEAN, SOURCE, (0, 0), "blocks.1.attn.hook_q", receiver_head=1)
    assert_close(got, want)
    assert (got - model(CLEAN)).abs().max() > 0.01
    every = path_patch(model, CLEAN, SOURCE, (0, 0), "blocks.1.attn.hook_q")
    assert torch.equal(every, path_patch(model, CLEAN, SOURCE, "L0H0", "blocks.1.attn.hook_q"))
    assert (every - got).abs().max() > 0.01


def test_path_to_a_later_z_and_to_itself():
    model = models.two_layers(TASK)
    got = path_patch(model, CLEAN, SOURCE, (0, 0), "blocks.1.attn.hook_z", receiver_head=1)
    assert (got - model(CLEAN)).abs().max() > 0.01
    same = path_patch(model, CLEAN, CLEAN, (0, 0), "blocks.1.attn.hook_z")
    assert_close(same, model(CLEAN))


@pytest.mark.parametrize("name", ["toy", "gated"])
def test_one_layer_has_only_direct_paths(name):
    """Path patching to the end of a one-layer model is activation patching."""
    model = MAKE[name]()
    for head in range(2):
        got = path_patch(model, CLEAN, SOURCE, (0, head), "blocks.0.hook_resid_post")
        want = activation_patch(model, CLEAN, SOURCE, "blocks.0.attn.hook_z", head=head)
        assert_close(got, want)


@pytest.mark.parametrize("make", [lambda: models.gated(TASK), lambda: models.gated_layer(TASK, 0)])
def test_a_gated_heads_result_can_be_replaced(make):
    """A head's result is z W_O, so patching either is the same."""
    model = make()
    result, z = "blocks.0.attn.hook_result", "blocks.0.attn.hook_z"
    got = activation_patch(model, CLEAN, SOURCE, result, head=1)
    assert_close(got, activation_patch(model, CLEAN, SOURCE, z, head=1))
    assert (got - model(CLEAN)).abs().max() > 0.1
    with intervened(model, {result: torch.zeros_like}):
        silent = model(CLEAN)
    with intervened(model, {z: torch.zeros_like}):
        assert_close(silent, model(CLEAN))
    assert (silent - model(CLEAN)).abs().max() > 0.1


def test_effects_table(model):
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    names = ["blocks.0.attn.hook_z", last]
    table = patch_effects(model, CLEAN, SOURCE, names, position=10, target=5)
    heads = len(model.blocks[0].attn.W_Q)
    assert table["head"].tolist()[:heads] == list(range(heads))
    whole = table[table.name == last].iloc[0]
    assert_close(whole.recovered, 1)
    assert_close(whole["source"], model(SOURCE)[:, 10, 5].mean())
    if model.cfg.n_layers == 1:
        # Heads and the token itself are all there is; a linear layer's effects add up.
        rest = patch_effects(model, CLEAN, SOURCE, ["hook_embed"], position=10, target=5)
        parts = table[table.name == names[0]].logit - table.intact[0]
        keep = activation_patch(model, CLEAN, SOURCE, "blocks.0.hook_attn_out")
        moved = keep[:, 10, 5].mean().item() - table.intact[0]
        assert_close(parts.sum(), moved, scale=table.logit.abs().max())
        assert_close(rest.recovered.item(), 1)


def test_no_hook_is_left_and_bad_input_in_one_sentence():
    model = models.two_layers(TASK)
    z = "blocks.0.attn.hook_z"
    bad = [
        (lambda: activation_patch(model, CLEAN, SOURCE[:3], z), "batches-differ-in-shape"),
        (lambda: activation_patch(model, CLEAN, SOURCE, "blocks.7.attn.hook_z"), "no-such-hook"),
        (lambda: activation_patch(model, CLEAN, SOURCE, z, head=3), "no-such-head"),
        (lambda: activation_patch(model, CLEAN, SOURCE, z, position=11), "no-such-position"),
        (
            lambda: activation_patch(model, CLEAN, SOURCE, "hook_embed", head=0),
            "hook-without-heads",
        ),
        (
            lambda: activation_patch(model, CLEAN, SOURCE, "blocks.0.attn.hook_result"),
            "hook-not-reached",
        ),
        (lambda: activation_patch(model, CLEAN + 9, SOURCE, z), "token-outside-vocabulary"),
        (lambda: activation_patch(model, CLEAN, SOURCE.to("meta"), z), "tokens-on-another-device"),
        (lambda: activation_patch(model, CLEAN[:0], SOURCE, z), "tokens-wrong-shape"),
        (lambda: path_patch(model, CLEAN, SOURCE, (2, 0), z), "no-such-layer"),
        (lambda: path_patch(model, CLEAN, SOURCE, (1, 0), z), "receiver-not-later"),
        (lambda: path_patch(model, CLEAN, SOURCE, "L1H0", z), "receiver-not-later"),
        (lambda: path_patch(model, CLEAN, SOURCE, (0, 0), z), "receiver-not-later"),
        (
            lambda: patch_effects(model, CLEAN, SOURCE, [z], position=0, target=8),
            "target-outside-vocabulary",
        ),
        (
            lambda: patch_effects(model, CLEAN, SOURCE, [z], position=11, target=0),
            "no-such-position",
        ),
    ]
    for call, code in bad:
        with refuses(code):
            call()
    left = [len(p._forward_hooks) + len(p.fwd_hooks) for p in model.hook_dict.values()]
    assert sum(left) == 0
