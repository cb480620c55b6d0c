"""Attributions add up to the logits, and each part is what the model wrote."""

import attention_models as models
import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis.ablation import without_heads
from gated_interp.analysis.attribution import (
    edge_loadings,
    logit_attribution,
    source_attribution,
)
from gated_interp.analysis.heads import all_heads, head_name
from gated_interp.analysis.writes import head_writes
from gated_interp.models.analytic import manual_model
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(3)
BATCH = TASK.sample(61, seed=0)
AT = BATCH.example, BATCH.destination_pos
TARGETS = BATCH.trigram + 3

MAKE = {
    "toy": lambda: models.toy(TASK),
    "gated": lambda: models.gated(TASK),
    "LN": lambda: models.two_layers(TASK),
    "LNPre": lambda: models.two_layers(TASK, normalization_type="LNPre"),
    "RMS": lambda: models.two_layers(TASK, normalization_type="RMS"),
    "RMSPre": lambda: models.two_layers(TASK, normalization_type="RMSPre"),
    "two layers, no norm": lambda: models.two_layers(TASK, normalization_type=None),
    "two layers, one gated": lambda: models.gated_layer(TASK),
}


@pytest.fixture(params=MAKE)
def model(request):
    return MAKE[request.param]()


def test_components_add_up_to_the_logit(model):
    parts = logit_attribution(model, BATCH.tokens, *AT, TARGETS)
    logits = model(BATCH.tokens)[*AT, TARGETS]
    assert_close(parts.logits, logits)
    assert_close(parts.values.sum(1), logits)
    assert parts.values.shape == (len(TARGETS), len(parts.components))
    # Every kind of component is there and none is idle.
    size = dict(zip(parts.components, parts.values.abs().amax(0).tolist(), strict=True))
    assert [name for name in size if "H" in name] == [head_name(h) for h in all_heads(model)]
    assert [n for n in size if "b_O" in n] == [f"L{i} b_O" for i in range(len(model.blocks))]
    assert all(value > 1e-3 for name, value in size.items() if "H" in name)


def test_sources_add_up_to_heads(model):
    parts = logit_attribution(model, BATCH.tokens, *AT, TARGETS)
    sources = source_attribution(model, BATCH.tokens, *AT, TARGETS)
    heads = [i for i, name in enumerate(parts.components) if "H" in name]
    assert_close(sources.sum(-1), parts.values[:, heads])
    # Nothing comes from behind the query.
    behind = torch.arange(11)[None] > BATCH.destination_pos[:, None]
    assert sources.transpose(1, 2)[behind].abs().max() == 0
    assert sources.abs().max() > 0.1


def test_edges_and_direct_add_up_to_the_mean_logit(model):
    edges = edge_loadings(model, BATCH, TASK)
    whole = edges.values.sum((1, 2)) + edges.direct
    assert_close(whole, edges.logits)
    logits = model(BATCH.tokens)[*AT, TARGETS]
    for b in TASK.trigrams:
        assert_close(
            edges.logits[b - 1], logits[BATCH.trigram == b].mean(), scale=logits.abs().max()
        )
    assert len(edges.to_frame(TASK.token_names)) == 3 * len(edges.heads) * 8


@pytest.mark.parametrize("name", ["toy", "gated"])
def test_a_heads_share_is_what_ablation_takes_away(name):
    """In one linear layer the attribution is the effect of the intervention."""
    model = MAKE[name]()
    parts = logit_attribution(model, BATCH.tokens, *AT, TARGETS)
    with without_heads(model, [(0, 1)]):
        after = model(BATCH.tokens)[*AT, TARGETS]
    share = parts.values[:, parts.components.index("L0H1")]
    assert_close(parts.logits - after, share)
    writes, _ = head_writes(model, BATCH.tokens, *AT)
    want = writes[:, 1].gather(1, TARGETS[:, None])[:, 0]
    assert_close(share, want)


def test_layer_norm_agrees_with_transformer_lens():
    """ActivationCache's own frozen-scale attribution, biases apart."""
    model = models.two_layers(TASK)
    parts = logit_attribution(model, BATCH.tokens, *AT, TARGETS)
    _, cache = model.run_with_cache(BATCH.tokens)
    stack, labels = cache.stack_head_results(layer=-1, return_labels=True)
    frozen = cache.apply_ln_to_stack(stack, layer=-1)[:, *AT]
    # TransformerLens leaves the weight of the final normalisation out of its stack.
    weight = model.ln_final.w
    want = (frozen * weight * model.unembed.W_U[:, TARGETS].T).sum(-1)
    mine = parts.values[:, [parts.components.index(label) for label in labels]]
    assert_close(mine, want.T)


def test_edges_of_the_manual_model_by_hand():
    truth = manual_model(2, 3)
    batch = truth.task.sample(300, seed=0)
    edges = edge_loadings(truth.model, batch, truth.task)
    # Everything comes from A: trigram 1 from head 0, 2 from head 1, 3 from both by halves.
    want = torch.zeros(3, 2, 8)
    want[0, 0, 0] = want[1, 1, 0] = 2
    want[2, :, 0] = 1
    assert_close(edges.values, want)
    assert edges.direct.tolist() == [0, 0, 0]
    parts = logit_attribution(
        truth.model, batch.tokens, batch.example, batch.destination_pos, batch.trigram
    )
    assert parts.components == ["embed", "pos_embed", "L0 b_O", "L0H0", "L0H1", "bias"]
    assert (parts.values[:, 0] == 1).all()  # B's own logit is its embedding
    assert (parts.values[:, 1:] == 0).all()
    frame = parts.to_frame()
    assert frame[frame.component == "embed"].value.eq(1).all()


def test_bad_input_in_one_sentence():
    model = models.two_layers(TASK)
    rows, positions = AT
    tokens = BATCH.tokens
    bad = [
        ((tokens + 8, rows, positions, TARGETS), "token-outside-vocabulary"),
        ((tokens.repeat(1, 2), rows, positions, TARGETS), "sequence-too-long"),
        ((tokens[:0], rows, positions, TARGETS), "tokens-wrong-shape"),
        ((tokens.to("meta"), rows, positions, TARGETS), "tokens-on-another-device"),
        ((tokens, rows + 61, positions, TARGETS), "no-such-entry"),
        ((tokens, rows, positions + 11, TARGETS), "no-such-entry"),
        ((tokens, rows, positions, TARGETS - 9), "no-such-entry"),
        ((tokens, rows[:0], positions[:0], TARGETS[:0]), "nothing-named"),
    ]
    for arguments, code in bad:
        for call in (logit_attribution, source_attribution):
            with refuses(code):
                call(model, *arguments)
    with refuses("case-without-examples"):
        edge_loadings(model, TASK.sample_single(1, 0), TASK)
    scaled = models.toy(TASK)
    scaled.blocks[0].hook_attn_out.add_perma_hook(lambda out, hook: 2 * out)
    with refuses("attribution-does-not-add-up"):
        logit_attribution(scaled, tokens, *AT, TARGETS)
