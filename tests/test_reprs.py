"""What things print as: one line that says what they are, no pages of weights."""

import pytest
import torch
from refusals import refuses

from gated_interp.analysis.attribution import edge_loadings, logit_attribution
from gated_interp.analysis.faithfulness import faithfulness
from gated_interp.analysis.subsets import subset_values
from gated_interp.checkpoints.checkpoint import load, save_pretrained
from gated_interp.core.shipped import shipped_names
from gated_interp.experiments.recipes import Recipe
from gated_interp.experiments.seeds import train_seeds
from gated_interp.models.analytic import manual_model
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.pruning import prune_dead_heads
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import train_gated
from gated_interp.training.stacked.runs import train_gated_runs

QUICK = Recipe(steps=4, toy_steps=4, n_sequences=20, batch_size=10)
TRUTH = manual_model(2, 3)


def block_of_truth() -> GatedAttention:
    return GatedAttention.from_attention(TRUTH.model.blocks[0].attn, expansion=2.5)


def test_a_block_says_what_is_known_of_it():
    block = GatedAttention(GatedConfig(d_model=8, n_heads=4, d_head=3, d_gate=2, gate="tanh"))
    assert repr(block) == "GatedAttention(4 heads, d_head=3, d_gate=2, gate=tanh)"
    block = GatedAttention(GatedConfig(d_model=8, n_heads=4))
    assert repr(block) == "GatedAttention(4 heads, gate=clamp)"
    splice(TRUTH.model, 0, block)
    assert repr(block) == "GatedAttention(4 heads, 3 trigrams, gate=clamp)"
    block.l0 = 0.372
    assert repr(block) == "GatedAttention(4 heads, 3 trigrams, gate=clamp, L0=0.37)"
    block.force_gates(1)  # what was measured is past
    assert repr(block) == "GatedAttention(4 heads, 3 trigrams, gate=clamp)"


@pytest.mark.parametrize("name", [n for n in shipped_names() if n.endswith("ST-gated")])
def test_a_shipped_block_says_it_all(name):
    model = load(name)
    heads, trigrams = model.cfg.n_heads, model.task.n_trigrams
    l0 = model.notes["l0"]
    wanted = f"GatedAttention({heads} heads, {trigrams} trigrams, gate=clamp, L0={l0:.2f})"
    assert repr(model.blocks[0].attn) == wanted
    assert f"(attn): {wanted}\n" in repr(model)
    # What it says is so, on other sequences than it was measured on.
    tokens = model.task.sample(500, seed=3).tokens
    assert float(faithfulness(model, tokens).measures()["l0"]) == pytest.approx(l0, rel=0.1)
    assert "GatedAttention" not in repr(unsplice(model))


def test_training_tells_a_block_its_l0():
    config = TrainConfig(steps=3, batch_size=7)
    block = block_of_truth()
    result = train_gated(TRUTH.model, block, config, data=TRUTH.task, progress=False)
    assert block.l0 == result.history["l0"].iloc[-1] > 0
    runs = [QUICK.gated_run(TRUTH.model, TRUTH.task, seed) for seed in (0, 1)]
    results = train_gated_runs(runs, progress=False)
    for run, result in zip(runs, results, strict=True):
        assert run.block.l0 == result.history["l0"].iloc[-1]
        loss = result.history["loss"].iloc[-1]
        assert repr(result) == f"TrainResult(GatedAttention, 4 steps, loss={loss:.4g})"
    assert repr(runs[0]).startswith(
        "GatedRun(block=GatedAttention(8 heads, d_gate=2, gate=clamp, L0="
    )


@pytest.mark.parametrize("note", [{}, {"l0": "low"}, {"l0": None}])
def test_notes_without_a_number_tell_nothing(note, tmp_path):
    model = splice(TRUTH.model, 0, block_of_truth())
    model.toy_config = TRUTH.model.toy_config
    save_pretrained(model, tmp_path, notes=note)
    assert repr(load(tmp_path).blocks[0].attn) == "GatedAttention(5 heads, 3 trigrams, gate=clamp)"


def test_results_are_one_line_without_weights():
    batch = TRUTH.task.sample_single(6, seed=0)
    assert repr(batch) == "TrigramBatch(6 sequences of 11 tokens, 6 trigrams)"
    assert repr(subset_values(TRUTH.model, TRUTH.task)) == "SubsetValues(n_heads=2, layer=0)"
    batch = TRUTH.task.sample_single(60, seed=0)
    edges = edge_loadings(TRUTH.model, batch, TRUTH.task)
    assert repr(edges) == "EdgeLoadings(heads=['L0H0', 'L0H1'])"
    at = torch.tensor([0])
    split = logit_attribution(TRUTH.model, batch.tokens, at, at, at)
    assert repr(split).startswith("Attribution(components=['embed', ")
    assert "HookedTransformer" not in repr(TRUTH)
    spliced = splice(TRUTH.model, 0, block_of_truth())
    assert repr(prune_dead_heads(spliced)).startswith("Pruned(kept=[0, ")
    measured = repr(faithfulness(TRUTH.model, batch.tokens))
    assert measured.startswith("Faithfulness(60 sequences: l0=2, cross_entropy=")
    for made in (edges, split, TRUTH, measured):
        assert "\n" not in repr(made)


def test_an_outcome_counts_what_was_learnt():
    outcome = train_seeds(2, TRUTH.task, QUICK, [0, 1])
    assert repr(outcome) == "SeedsOutcome(0 of 2 toys learnt, 0 of 0 gated runs are clean)"
    assert "HookedTransformer" not in repr(outcome.toys[0])
    with refuses("no-toy-learnt", n=2):
        _ = outcome.selected
