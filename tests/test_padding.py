"""Padded rows give the numbers of the same rows without padding, whatever reads them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from attention_models import fill
from refusals import refuses
from transformer_lens import HookedTransformerConfig

import gated_interp as gi
from gated_interp.analysis.faithfulness import dead_heads
from gated_interp.analysis.spare_heads import spare_heads
from gated_interp.analysis.sparsity import sparsity, switching_on
from gated_interp.anatomy.batch import Batch
from gated_interp.explorer.session import Session
from gated_interp.models.toy import attention_only
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.sae import OutputAutoencoder, SAEConfig
from gated_interp.replacements.topk import TopKAttention, TopKConfig
from gated_interp.training.capture import attention_io

D_VOCAB, N_CTX, D_MODEL = 13, 12, 10
PAD, SHORT = 3, 7
LAYER = 1


def model_of(positions="standard", layer="own", **extras):
    """Two layers; the second of the kind that is asked for, some of its gates shut."""
    model = attention_only(
        HookedTransformerConfig(
            n_layers=2,
            d_model=D_MODEL,
            d_vocab=D_VOCAB,
            n_ctx=N_CTX,
            d_head=4,
            n_heads=2,
            attn_only=True,
            normalization_type="LN",
            act_fn="relu",
            positional_embedding_type=positions,
            rotary_dim=4 if positions == "rotary" else None,
            device="cpu",
        )
    )
    fill(model, 3, 0.5)
    if layer == "own":
        return model
    heads = {"d_model": D_MODEL, "n_heads": 4, "d_head": 3}
    if layer == "sae":
        config = SAEConfig(d_model=D_MODEL, n_heads=6, k=2)
        block = OutputAutoencoder(config, model.blocks[LAYER].attn)
        fill(block.original, 5, 0.5)
    elif layer == "topk":
        block = fill(TopKAttention(TopKConfig(**heads, k=2, n_circuits=2)), 5, 0.5)
    else:
        block = fill(GatedAttention(GatedConfig(**heads, d_gate=2, **extras)), 5, 0.5)
    return gi.splice(model, LAYER, block)


def rows_of(n=5, pos=SHORT, seed=1):
    # The pad token is one that text has, too: only the mask says what is padding.
    return torch.randint(D_VOCAB, (n, pos), generator=torch.Generator().manual_seed(seed))


def padded(rows, side, pad=PAD):
    filled = torch.full((len(rows), pad), 2)
    there = torch.ones_like(rows)
    parts = [(filled, torch.zeros_like(filled)), (rows, there)]
    parts = parts if side == "left" else parts[::-1]
    return tuple(torch.cat(each, 1) for each in zip(*parts, strict=True))


def numbers(found):
    """All numbers of a result, in order."""
    if isinstance(found, pd.DataFrame):
        return numbers(found.select_dtypes("number").astype(float).to_numpy())
    if isinstance(found, dict):
        return np.concatenate([numbers(v) for v in found.values()])
    if isinstance(found, list | tuple):
        return np.concatenate([numbers(v) for v in found])
    return np.asarray(torch.as_tensor(found).detach(), dtype=float).ravel()


def last_tokens(tokens, mask):
    """The last token of every row, and a target to read there."""
    n = len(tokens)
    there = torch.arange(tokens.shape[1]).expand(tokens.shape)
    last = there.max(1).values if mask is None else (there * mask).max(1).values
    return torch.arange(n), last, torch.arange(n) % 5


SPLICED = {
    "faithfulness": lambda m, t, k: gi.faithfulness(m, t, attention_mask=k).measures(),
    "loss_recovered": lambda m, t, k: gi.loss_recovered(m, t, attention_mask=k),
    "decomposition": lambda m, t, k: gi.block_measures(m, LAYER, t, attention_mask=k),
    "switching_on": lambda m, t, k: switching_on(m, LAYER, t, seed=0, steps=0, attention_mask=k),
    "spare_heads": lambda m, t, k: spare_heads(m, LAYER, t, 0.3, attention_mask=k),
}
ANY = {
    "ablate": lambda m, t, k: gi.ablate(m, t, attention_mask=k),
    "ablate by mean": lambda m, t, k: gi.ablate(
        m, t, [(1, 0)], "mean", attention_mask=k, reference_tokens=t, reference_mask=k
    ),
    "ablate, a metric": lambda m, t, k: gi.ablate(
        m, t, [(0, 1)], metric=lambda logits, _: logits[..., 3], attention_mask=k
    ),
    "subset_values": lambda m, t, k: dict(
        gi.subset_values(m, t, heads=["L0H0", "L1H1"], attention_mask=k).values
    ),
    "head_effects": lambda m, t, k: [
        (found := gi.head_effects(m, 1, t, attention_mask=k)).table().drop(columns="head"),
        found.carried,
    ],
    "sparsity": lambda m, t, k: sparsity(m, LAYER, t, attention_mask=k),
    "dead_heads": lambda m, t, k: [-1, *dead_heads(m, LAYER, t, 0.5, attention_mask=k)],
    "text_holders": lambda m, t, k: [
        (found := gi.text_holders(m, LAYER, t, attention_mask=k)).share,
        found.by_head(),
    ],
    "logit_attribution": lambda m, t, k: gi.logit_attribution(
        m, t, *last_tokens(t, k), attention_mask=k
    ).to_frame(),
    "patch_effects": lambda m, t, k: [
        gi.activation_patch(
            m,
            t,
            t.flip(0),
            "blocks.0.attn.hook_z",
            head=0,
            attention_mask=k,
            source_mask=None if k is None else k.flip(0),
        )[last_tokens(t, k)[:2]],
        gi.path_patch(
            m,
            t,
            t.flip(0),
            (0, 1),
            "blocks.1.hook_resid_post",
            attention_mask=k,
            source_mask=None if k is None else k.flip(0),
        )[last_tokens(t, k)[:2]],
    ],
}
WITH_PATTERN = {
    "induction_scores": lambda m, t, k: gi.induction_scores(m, t, attention_mask=k),
    "head_scores": lambda m, t, k: gi.head_scores(m, t, n=2, bos=0, attention_mask=k),
    "read_heads": lambda m, t, k: [
        (found := gi.read_heads(m, LAYER, t, attention_mask=k)).table,
        found.details,
    ],
    "source_attribution": lambda m, t, k: gi.source_attribution(
        m, t, *last_tokens(t, k), attention_mask=k
    ).sum(-1),
}
KINDS = [
    *((kind, "own") for kind in ("standard", "rotary", "alibi", "shortformer")),
    *((kind, layer) for kind in ("standard", "shortformer") for layer in ("gated", "topk", "sae")),
]


@pytest.mark.parametrize(("positions", "layer"), KINDS)
def test_numbers_are_those_of_the_rows_without_padding(positions, layer):
    model, rows = model_of(positions, layer), rows_of()
    asked = ANY | (SPLICED if layer != "own" else {})
    asked |= WITH_PATTERN if layer != "sae" else {}
    for name, function in asked.items():
        wanted = numbers(function(model, rows, None))
        assert len(wanted), name
        for side in ("left", "right"):
            found = numbers(function(model, *padded(rows, side)))
            where = f"{name}, {side}"
            # A share of what an ablation costs magnifies rounding where it costs little.
            rtol = 1e-4 if name in SPLICED else 1e-5
            np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-5, err_msg=where)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", ["own", "gated", "topk"])
def test_rows_of_several_lengths(layer, side):
    """Means of each row, and of all positions: by hand from rows that are read one by one."""
    model, rows = model_of(layer=layer), [rows_of(1, n, n) for n in (3, 9, 5)]
    parts = [padded(row, side, 9 - row.shape[1]) for row in rows]
    tokens, mask = (torch.cat(each) for each in zip(*parts, strict=True))
    each = [gi.ablate(model, row, [(1, 0)]) for row in rows]
    together = gi.ablate(model, tokens, [(1, 0)], attention_mask=mask)
    wanted = np.mean([table["ablated"] for table in each], 0)
    np.testing.assert_allclose(together["ablated"], wanted, rtol=1e-5, atol=1e-5)
    found = gi.text_holders(model, LAYER, tokens, attention_mask=mask)
    alone = [gi.text_holders(model, LAYER, row) for row in rows]
    held = sum(int(f.by_head()["positions"].sum()) for f in alone)
    assert found.by_head()["positions"].sum() == held
    assert found.share == pytest.approx(held / sum(row.shape[1] - 1 for row in rows))


@pytest.mark.parametrize("layer", ["gated", "topk", "sae"])
def test_a_block_masks_as_transformer_lens_does(layer):
    """Also of queries that see padding alone: a pattern of zeros, and gradients without NaN."""
    model = model_of(layer=layer)
    tokens, mask = padded(rows_of(), "left")
    logits, cache = model.run_with_cache(tokens, attention_mask=mask)
    assert logits.isfinite().all()
    attn = model.blocks[LAYER].attn
    if layer != "sae":
        pattern = cache["blocks.1.attn.hook_pattern"]
        assert (pattern[:, :, :PAD] == 0).all()
        assert (pattern[..., :PAD] == 0).all()
        assert torch.allclose(pattern[:, :, PAD:].sum(-1), torch.ones(()), atol=1e-6)
    logits[:, PAD:].square().sum().backward()
    grads = [p.grad for p in attn.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)
    written = attention_io(model, LAYER, tokens, attention_mask=mask).output
    unpadded = attention_io(model, LAYER, rows_of()).output
    torch.testing.assert_close(written[:, PAD:], unpadded, rtol=1e-5, atol=1e-5)


def test_a_mask_of_ones_changes_nothing():
    model, rows = model_of(layer="gated"), rows_of()
    assert torch.equal(model(rows), model(rows, attention_mask=torch.ones_like(rows)))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("penalty_pairs", ["causal", "all"])
@pytest.mark.parametrize("hooked", [False, True])
def test_penalties_and_gates_do_not_count_padding(side, penalty_pairs, hooked):
    """In one piece (somebody looks at gates) and some query positions at a time."""
    block = model_of(layer="gated", penalty_pairs=penalty_pairs).blocks[LAYER].attn
    if hooked:
        block.hook_gate.add_hook(lambda gate, hook: None)
    x = torch.randn(4, SHORT, D_MODEL, generator=torch.Generator().manual_seed(0))
    junk = 9 * torch.ones(4, PAD, D_MODEL)
    longer = torch.cat([junk, x] if side == "left" else [x, junk], 1)
    real = torch.cat([torch.zeros(4, PAD), torch.ones(4, SHORT)], 1).bool()
    real = real if side == "left" else real.flip(1)
    plain, masked = block.terms(x, x, x), block.terms(longer, longer, longer, real=real)
    torch.testing.assert_close(masked.output[real], plain.output.flatten(0, 1))
    torch.testing.assert_close(masked.penalty, plain.penalty)
    assert masked.measures() == pytest.approx(plain.measures())
    overlaps = (block.overlap_penalty(plain.z), block.overlap_penalty(masked.z, real=real))
    torch.testing.assert_close(*overlaps)
    masked.penalty.backward()
    assert all(p.grad.isfinite().all() for p in block.parameters() if p.grad is not None)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["gated", "topk", "sae on output"])
@pytest.mark.parametrize("positions", ["standard", "shortformer"])
def test_a_training_is_that_of_the_rows_without_padding(positions, method, side):
    model, rows = model_of(positions), rows_of(20)
    tokens, mask = padded(rows, side)
    options = {"method": method, "steps": 3, "batch_size": 8, "log_every": 1, "accumulate": 2}
    options |= {"evaluate_every": 2, "n_held_out": 6, "progress": False}
    wanted = gi.fit_replacement(model, LAYER, rows, **options).history
    found = gi.fit_replacement(
        model, LAYER, tokens, attention_mask=mask, held_out=(tokens, mask), **options
    ).history
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-4, atol=1e-5)

    def pairs(n, source):
        drawn = torch.randint(len(tokens), (n,), generator=source)
        return tokens[drawn], mask[drawn]

    drawn = gi.fit_replacement(model, LAYER, pairs, **options).history
    pd.testing.assert_frame_equal(drawn, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_nobody_predicts_padding(side):
    config = gi.TrainConfig.toy(steps=3, batch_size=8, log_every=1, n_sequences=8)
    rows = rows_of(20)
    tokens, mask = padded(rows, side)
    histories = [
        gi.train_model(model_of(), config, data=data, attention_mask=k, progress=False).history
        for data, k in ((rows, None), (tokens, mask), (tokens.numpy(), mask.tolist()))
    ]
    for history in histories[1:]:
        pd.testing.assert_frame_equal(history, histories[0], rtol=1e-5)


def test_an_exact_copy_explains_padded_rows():
    """The original masks padding, so its stand-in must: this was an FVU of 2.33."""
    model = model_of()
    rows = [rows_of(8, n, n) for n in (4, 9)]
    parts = [padded(row, "left", 9 - row.shape[1]) for row in rows]
    tokens, mask = (torch.cat(each) for each in zip(*parts, strict=True))
    history = gi.fit_replacement(
        model, LAYER, tokens, attention_mask=mask, steps=1, gate="open", noise=0.0, progress=False
    ).history
    assert history["fvu"].iloc[0] < 1e-8


def test_the_mask_of_a_source_without_tokens_is_refused():
    with refuses("mask-without-tokens"):
        gi.fit_replacement(
            model_of(), 0, lambda n, source: rows_of(n), attention_mask=[[1]], steps=1
        )
    tokens, mask = padded(rows_of(), "right", SHORT)
    mask[0, 1:] = 0
    with refuses("sequence-too-short", n=1):
        gi.train_model(model_of(), data=tokens[:, :9], attention_mask=mask[:, :9])


def tokenizer(side, pad=12, bos=0):
    return SimpleNamespace(pad_token_id=pad, bos_token_id=bos, padding_side=side)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_pad_tokens_without_a_mask_are_asked_for_one(padding_side):
    model = model_of(layer="gated")
    model.tokenizer = tokenizer(padding_side)
    for tokens in ([[12, 3, 4]], [[3, 4, 12]]):
        for function in (
            lambda t: gi.ablate(model, t),
            lambda t: gi.fit_replacement(gi.unsplice(model), 0, t, steps=1, progress=False),
            lambda t: gi.text_holders(model, 0, t),
        ):
            with refuses("unmarked-padding"):
                function(tokens)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_mask_comes_from_the_pad_token(padding_side):
    model = model_of()
    model.tokenizer = tokenizer(padding_side)
    tokens = np.array([[12, 12, 3, 4], [3, 12, 4, 12], [12, 5, 6, 12]])
    wanted = [[0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0]]
    assert gi.attention_mask(model, tokens).tolist() == wanted
    model.tokenizer = tokenizer(padding_side, pad=0)  # the token that a text begins with
    tokens = [[0, 0, 3, 4], [0, 3, 4, 0]]
    assert gi.attention_mask(model, tokens).tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]
    rows = [[0, 3, 4], [0, 3, 4]]
    found = gi.ablate(model, tokens, attention_mask=gi.attention_mask(model, tokens))
    wanted = gi.ablate(model, rows)
    np.testing.assert_allclose(numbers(found), numbers(wanted), rtol=1e-5, atol=1e-5)
    model.tokenizer = None
    with refuses("padding-unknown"):
        gi.attention_mask(model, tokens)


@pytest.mark.parametrize("layer", ["gated", "topk", "sae"])
def test_a_tokenizer_that_pads_on_the_left_is_no_obstacle(layer):
    """TransformerLens then adds a mask to every forward pass by itself."""
    model, rows = model_of(layer=layer), rows_of()
    rows[rows == 12] = 1
    plain = model(rows)
    before = gi.faithfulness(model, rows).measures()
    for each in (model, gi.unsplice(model)):
        each.tokenizer = tokenizer("left")
    torch.testing.assert_close(model(rows), plain)
    assert numbers(gi.faithfulness(model, rows).measures()) == pytest.approx(numbers(before))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_explorer_shows_rows_without_their_padding(side):
    model, rows = model_of(layer="gated"), rows_of()
    tokens, mask = padded(rows, side)
    plain = Session(model, tokens=rows)
    session = Session(model, tokens=tokens, attention_mask=mask)
    assert session.examples.tokens == plain.examples.tokens
    assert session.start == plain.start
    assert isinstance(gi.HeadExplorer(model, tokens=tokens, attention_mask=mask), gi.HeadExplorer)


def test_batches_are_cut_as_tensors_are():
    tokens, mask = padded(rows_of(7), "left")
    batch = Batch.of(model_of(), tokens, mask)
    for n in (1, 2, 3, 7, 9):
        parts = batch.chunk(n)
        assert [p.tokens.tolist() for p in parts] == [p.tolist() for p in tokens.chunk(n)]
        assert [p.real.long().tolist() for p in parts] == [p.tolist() for p in mask.chunk(n)]
