"""Faithfulness of blocks in any layers: each number worked out a second way from the logits."""

import attention_models as models
import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis.faithfulness import ABLATIONS, faithfulness, loss_recovered
from gated_interp.analysis.replacements import other_rows
from gated_interp.anatomy import batch
from gated_interp.core.components import AbstractAttention
from gated_interp.core.seeds import generator
from gated_interp.metrics.reconstruction import fvu, l0
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(3)
TOKENS = TASK.sample(71, seed=0).tokens
OUT = "blocks.{}.hook_attn_out"
FLOAT = {"dtype": torch.float32}


def sizes(wanted):
    """The size of the numbers that each of ``wanted`` is a difference, or a ratio of such, of."""
    loss = max(float(v) for name, v in wanted.items() if "recovered" not in name)
    found = dict.fromkeys(wanted, loss)
    for how in ABLATIONS:
        spread = abs(float(wanted[f"ce_{how}"] - wanted["ce_original"]))
        for recovered, size in ((f"ce_recovered_{how}", spread), (f"kl_recovered_{how}", None)):
            size = float(wanted[f"kl_{how}"]) if size is None else size
            found[recovered] = (1 + abs(float(wanted[recovered]))) * loss / size
    return found


def block(n_heads, seed):
    return models.fill(GatedAttention(GatedConfig(d_model=13, n_heads=n_heads, d_head=7)), seed)


def both_spliced():
    """A two-layer LayerNorm model with blocks of 5 and 4 heads in its layers."""
    return splice(splice(models.two_layers(TASK), 1, block(5, 1)), 0, block(4, 2))


def cross_entropy(logits):
    each = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    return each.double()


@torch.no_grad()
def expected(spliced, original, layers):
    """The losses that :func:`loss_recovered` gives, by TransformerLens' own hooks."""
    logits, (intact, cache) = spliced(TOKENS), original.run_with_cache(TOKENS)
    outputs = {OUT.format(i): cache[OUT.format(i)] for i in layers}
    others = other_rows(len(TOKENS), generator(0))
    puts = {
        "zero": {name: torch.zeros_like(out) for name, out in outputs.items()},
        "mean": {name: out.mean((0, 1), keepdim=True) + 0 * out for name, out in outputs.items()},
        "resample": {name: out[others] for name, out in outputs.items()},
    }

    def kl(found):
        each = torch.nn.functional.kl_div(
            found.log_softmax(-1), intact.log_softmax(-1), log_target=True, reduction="sum"
        )
        return (each / TOKENS.numel()).double()

    ce, before = cross_entropy(logits), cross_entropy(intact)
    wanted = {"ce": ce, "ce_original": before, "kl": kl(logits), "ce_difference": ce - before}
    for how, values in puts.items():
        hooks = [(name, lambda out, hook, values=values: values[hook.name]) for name in values]
        without = original.run_with_hooks(TOKENS, fwd_hooks=hooks)
        off = cross_entropy(without)
        wanted[f"ce_{how}"] = off
        wanted[f"ce_recovered_{how}"] = (off - ce) / (off - before)
        wanted[f"kl_{how}"] = kl(without)
        wanted[f"kl_recovered_{how}"] = 1 - kl(logits) / kl(without)
    return wanted


def test_what_replaces_outputs_is_of_another_sequence():
    rows = other_rows(9, generator(4))
    assert sorted(rows.tolist()) == list(range(9))
    assert (rows != torch.arange(9)).all()


def test_resampling_needs_other_sequences_of_the_same_length():
    spliced = both_spliced()
    assert "ce_resample" not in loss_recovered(spliced, TOKENS[:1])
    mask = torch.ones_like(TOKENS[:3])
    mask[1, 5:] = 0
    assert "ce_resample" not in loss_recovered(spliced, TOKENS[:3], attention_mask=mask)
    seeds = [loss_recovered(spliced, TOKENS[:5], seed=s)["ce_resample"] for s in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_all_spliced_layers_against_the_original():
    spliced, original = both_spliced(), models.two_layers(TASK)
    wanted, got = expected(spliced, original, [0, 1]), loss_recovered(spliced, TOKENS)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(got[name], value, scale=sizes(wanted)[name], **FLOAT)
    assert abs(got["ce_difference"]) > 0.01  # something is measured
    measures = faithfulness(spliced, TOKENS).measures()
    for name in measures.keys() & wanted.keys():
        assert measures[name].item() == pytest.approx(got[name], rel=1e-6)
    assert measures["cross_entropy"].item() == pytest.approx(got["ce"])
    assert measures["original_cross_entropy"].item() == pytest.approx(got["ce_original"])


@torch.no_grad()
def test_gates_and_variance_are_those_of_all_spliced_layers():
    spliced = both_spliced()
    got = faithfulness(spliced, TOKENS).measures()
    _, cache = spliced.run_with_cache(TOKENS)
    gates = [l0(cache[f"blocks.{i}.attn.hook_gate"]).double() for i in (0, 1)]
    assert_close(got["l0"], sum(gates), **FLOAT)
    error, varies = [], []
    for i in (0, 1):
        target = unsplice(spliced, i).run_with_cache(TOKENS)[1][OUT.format(i)].double()
        error.append((cache[OUT.format(i)] - target).square().sum())
        varies.append((target - target.mean((0, 1))).square().sum())
        alone = faithfulness(spliced, i, TOKENS).measures()
        assert_close(alone["fvu"], fvu(cache[OUT.format(i)].double(), target), **FLOAT)
        assert_close(alone["l0"], gates[i], **FLOAT)
    assert_close(got["fvu"], sum(error) / sum(varies), **FLOAT)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_named_layer_against_the_model_before_it_was_spliced(layer):
    spliced = both_spliced()
    wanted = expected(spliced, unsplice(spliced, layer), [layer])
    got = loss_recovered(spliced, [layer], TOKENS)
    for name, value in wanted.items():
        assert_close(got[name], value, scale=sizes(wanted)[name], **FLOAT)
    one = models.gated_layer(TASK, layer=layer)  # the other layer's attention is its own
    assert loss_recovered(one, TOKENS) == loss_recovered(one, [layer], TOKENS)


def test_in_parts_it_is_the_same(monkeypatch):
    spliced = both_spliced()
    whole = faithfulness(spliced, TOKENS).measures()
    monkeypatch.setattr(batch, "AT_ONCE", 20 * TOKENS.shape[1] * TASK.d_vocab)
    for name, value in faithfulness(spliced, TOKENS).measures().items():
        assert_close(value, whole[name], **FLOAT)


def test_replicates_are_recovered_one_by_one():
    spliced = both_spliced()
    weights = torch.zeros(2, 71)
    weights[0, 5] = weights[1, 6] = 1
    got = faithfulness(spliced, TOKENS).measures(weights)["ce_recovered_zero"]
    for row, value in zip((5, 6), got, strict=True):
        alone = loss_recovered(spliced, TOKENS[row : row + 1])["ce_recovered_zero"]
        assert_close(value, alone, **FLOAT)


def test_gates_are_made_in_one_piece_only_where_they_are_counted():
    spliced, seen = both_spliced(), []
    for layer in spliced.blocks:
        layer.attn.register_forward_pre_hook(lambda attn, _: seen.append(attn.in_one_piece()))
    loss_recovered(spliced, TOKENS[:5])
    assert seen
    assert not any(seen)
    seen.clear()
    faithfulness(spliced, TOKENS[:5])
    assert any(seen)


def test_a_perfect_block_recovers_everything():
    model = models.two_layers(TASK)
    same = GatedAttention.from_attention(
        model.blocks[1].attn, 1, init="duplicate", noise=0.0, normalize_weights=False
    )
    same.force_gates(1.0)
    found = loss_recovered(splice(model, 1, same), TOKENS)
    assert_close(found["ce_difference"], 0, scale=1.0, **FLOAT)
    assert_close(found["ce_recovered_zero"], 1, **FLOAT)


def test_what_is_there_without_blocks_or_text():
    model = models.two_layers(TASK)
    assert set(faithfulness(model, TOKENS).measures()) == {"l0", "cross_entropy"}
    assert_close(faithfulness(model, TOKENS).measures()["l0"], 6)  # heads of both layers
    assert faithfulness(models.gated(TASK), TOKENS).ce_zero is None  # its answers are known
    with refuses("nothing-spliced"):
        loss_recovered(model, TOKENS)
    with refuses("nothing-spliced-in-layer", layer=0):
        loss_recovered(models.gated_layer(TASK, layer=1), [0, 1], TOKENS)
    with refuses("no-such-layer", layer=2):
        faithfulness(model, 2, TOKENS)
    with refuses("token-outside-vocabulary"):
        loss_recovered(both_spliced(), TOKENS + 9)


def test_attention_whose_output_is_replaced_reads_nothing(monkeypatch):
    read, whole = [], AbstractAttention.calculate_attention_scores

    def spy(self, q, k):
        read.append(tuple(q.shape[:2]))
        return whole(self, q, k)

    model = both_spliced()
    monkeypatch.setattr(AbstractAttention, "calculate_attention_scores", spy)
    loss_recovered(model, [0, 1], TOKENS)
    assert read.count((1, 1)) == 2 * len(ABLATIONS)  # the others: the originals, intact
