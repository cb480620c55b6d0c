"""The study of copying in a pretrained model, on a small one that copies."""

import math

import pandas as pd
import pytest
import torch

import gated_interp as gi
from gated_interp.analysis.rest import Rest
from gated_interp.anatomy.batch import Batch
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.experiments import copying
from gated_interp.experiments.copying import METHODS, _activations, _captured, copying_study
from gated_interp.experiments.copying_measures import CopyingConfig, measured, path_effects
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice
from gated_interp.replacements.topk import TopKAttention
from gated_interp.tasks.mixture import RandomRepeats
from tests.refusals import refuses

SMALL = {"steps": 4, "sequences": 40, "n_positions": 40, "period": 12, "repeats": 4}
SMALL |= {"texts": 2, "chosen": 3, "finetune": 2}


@pytest.fixture(scope="module")
def model():
    return gi.load("austen-2l")


def losses(model, config, hooks=()):
    """Of the second time that random tokens are said, by a plain forward pass with hooks."""
    source = RandomRepeats(model.cfg.d_vocab, 2 * config.period + 1, model.task.bos)
    tokens = source.sample(config.repeats, derive(0, Stream.MEASURED_REPEATS)).tokens
    logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks))
    found = -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    return tokens, found[:, config.period + 1 :]


def test_the_original_is_measured_as_plain_hooks_measure_it(model):
    config = CopyingConfig(**SMALL)
    row, heads = measured(model, 1, model.task, config)
    tokens, intact = losses(model, config)
    _, cache = model.run_with_cache(tokens)
    z = cache["blocks.1.attn.hook_z"]
    mean = z.mean((0, 1))
    later = z[:, 1:].mean((0, 1))

    def off(members, value=mean):
        def edit(z, hook):
            z = z.clone()
            z[:, :, members] = value[members]
            return z

        return losses(model, config, [("blocks.1.attn.hook_z", edit)])[1].mean().item()

    everyone = list(range(8))
    for name in ("loss", "loss_original"):
        assert row[name] == pytest.approx(intact.mean().item(), rel=1e-4)
    assert row["loss_off"] == pytest.approx(off(everyone, later), rel=1e-4)
    assert row["effect"] == pytest.approx(off(everyone) - intact.mean().item(), rel=1e-3)
    assert row["effect"] > 1  # nats: this layer copies
    order = heads.sort_values("order").index.tolist()
    effect = row["effect"]
    kept = [off([h for h in everyone if h not in order[:n]]) for n in (1, 2)]
    assert row["top1"] == pytest.approx((off(everyone) - kept[0]) / effect, rel=1e-3)
    assert row["top2"] == pytest.approx((off(everyone) - kept[1]) / effect, rel=1e-3)
    assert row["top2_low"] < row["top2"] < row["top2_high"]
    gone = off(order[:2]) - intact.mean().item()
    assert row["necessary2"] == pytest.approx(gone / effect, rel=1e-3)
    assert heads["shapley"].sum() == pytest.approx(effect, rel=1e-3)
    assert (row["fvu"], row["kl_text"]) == (0, 0)
    assert row["kl_off"] > 0
    assert 1 <= row["participation_copies"] <= 8


def test_keys_read_the_previous_token_head(model):
    """Of the induction layer: without that head in its keys alone, it copies no more."""
    config = CopyingConfig(**SMALL)
    tokens, _ = losses(model, config)
    batch = Batch.of(model, tokens)
    again = torch.zeros_like(tokens, dtype=torch.bool)
    again[:, config.period + 1 : -1] = True
    found = path_effects(Rest(model, 1, batch), again)
    assert math.isnan(found["gates"])
    assert found["keys"] > 3 * max(abs(found["queries"]), abs(found["values"])) > 0
    assert all(math.isnan(v) for v in path_effects(Rest(model, 0, batch), again).values())
    block = GatedAttention.from_attention(model.blocks[1].attn, 2, init="duplicate", noise=0.0)
    with torch.no_grad():  # gates that depend on the key
        block.W_gate_K[:] = 0.1 * torch.randn(block.W_gate_K.shape, generator=gi_generator(0))
    gated = path_effects(Rest(splice(model, 1, block), 1, batch), again)
    assert not math.isnan(gated["gates"])
    assert gated["keys"] > 0


def gi_generator(seed):
    return torch.Generator().manual_seed(seed)


def test_the_study_keeps_rows_and_goes_on(model, tmp_path):
    said, counted = [], []
    how = {**SMALL, "workers": 1, "say": said.append}
    how["on_progress"] = lambda done, total: counted.append((done, total))
    first = copying_study(model, tmp_path, [1], methods=["gated"], seeds=1, **how)
    assert first[["method", "seed"]].to_numpy().tolist() == [["gated", 0], ["original", -1]]
    both = copying_study(model, tmp_path, [1], methods=["gated", "ungated"], seeds=1, **how)
    assert len(both) == 3
    assert counted == [(0, 1), (0, 1), (1, 1), (1, 2), (2, 2)]  # the original is no block
    assert any("are there already" in words for words in said)
    gated, ungated = both.query("method == 'gated'").iloc[0], both.query("method == 'ungated'")
    assert gated["heads"] == 16
    assert gated["gates_per_pair"] > 0
    assert 0 < gated["fvu"] < 1
    assert ungated.iloc[0]["gates_per_pair"] == 16
    pd.testing.assert_frame_equal(
        both.query("method == 'gated'").reset_index(drop=True), first.iloc[:1]
    )
    assert not list(tmp_path.glob("*.state*"))
    heads = pd.read_csv(tmp_path / "copying-runs.csv")
    assert heads.groupby("method").size().to_dict() == {"gated": 16, "original": 8, "ungated": 16}
    block = GatedAttention.from_pretrained(tmp_path / "L1-gated-seed0.safetensors")
    row, _ = measured(splice(model, 1, block), 1, first_task(model), CopyingConfig(**SMALL))
    assert row["loss"] == pytest.approx(gated["loss"], rel=1e-3)


def test_its_blocks_are_made_where_they_are_told(model, tmp_path, told):
    """As on a Dask cluster, whose workers are given the run folder alone."""
    sent, asked = told(copying)
    how = {"methods": ["ungated"], "seeds": 1, **SMALL, "workers": "tcp://there:1"}
    copying_study(model, tmp_path, [1], **how)
    copying_study(model, tmp_path, [1], **how)
    assert asked == ["tcp://there:1", 1]  # what is finished needs nobody
    assert [(key, args[0]) for key, _, args in sent] == [
        ((1, "original", -1), str(tmp_path)), ((1, "ungated", 0), str(tmp_path))
    ]  # fmt: skip
    (tmp_path / copying.MODEL).unlink()
    with refuses("workers-lack-the-folder", folder=str(tmp_path)):
        sent[0][1](*sent[0][2])


def first_task(model):
    return gi.text.TextTask("austen", SMALL["n_positions"], model.task.tokenizer)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("gated", "ungated")])
def test_every_control_trains(model, tmp_path, method):
    table = copying_study(model, tmp_path, [1], methods=[method], seeds=1, **SMALL, workers=1)
    row = table[table["method"] == method].iloc[0]
    assert math.isfinite(row["loss"])
    assert row["fvu"] > 0


def test_finetuning_goes_on_with_predictions(model):
    data = RandomRepeats(model.cfg.d_vocab, 24)
    how = {"steps": 3, "progress": False, "log_every": 1, **{"init": "duplicate"}}
    plain = gi.fit_gated(model, 1, data, **how).history
    further = gi.fit_gated(model, 1, data, finetune=4, **how).history
    assert further["step"].tolist() == list(range(7))
    assert further["loss"].tolist()[:3] == plain["loss"].tolist()
    assert further["kl"].isna().sum() in (0, 3)
    assert not further["kl"].tail(4).isna().any()


def test_finetuning_keeps_to_the_k_that_the_training_ended_with(model, monkeypatch):
    prepare, seen = TopKAttention.prepare, []

    def recorded(block, *given):
        prepare(block, *given)
        seen.append(block.k_now)

    monkeypatch.setattr(TopKAttention, "prepare", recorded)
    data = RandomRepeats(model.cfg.d_vocab, 24)
    gi.fit_replacement(
        model, 1, data, method="topk copies", steps=30, finetune=5, batch_size=2, progress=False
    )
    assert seen[0] == 16
    assert seen[-5:] == [2] * 5


def test_more_heads_may_write_again_when_finetuning_begins(model, monkeypatch):
    seen, prepare = [], TopKAttention.prepare

    def recorded(block, *given):
        prepare(block, *given)
        seen.append(block.k_now)

    monkeypatch.setattr(TopKAttention, "prepare", recorded)
    how = {"method": "topk copies", "steps": 2, "finetune": 9, "batch_size": 2, "progress": False}
    # Of 16 heads, 2 write in the end. Six more do at the start, and none after a third.
    slower = {"anneal_from": 4 / 70, "anneal_to": 13 / 70}
    data = RandomRepeats(model.cfg.d_vocab, 24)
    result = gi.fit_replacement(model, 1, data, finetune_with=slower, **how)
    assert seen[-9:] == [8, 6, 4, 2, 2, 2, 2, 2, 2]
    assert result.model.k_now == 2


def test_activations_that_are_there_are_used_again(tmp_path):
    (tmp_path / "activations" / "3-12").mkdir(parents=True)
    assert _captured(tmp_path, [12]) == (3, 12)
    assert _captured(tmp_path, [3, 12]) == (3, 12)
    assert _captured(tmp_path, [1]) == (1,)
    assert _activations(tmp_path, (3, 12)).is_dir()


def test_bad_studies_are_refused(model, tmp_path):
    with refuses("no-such-layer"):
        copying_study(model, tmp_path, [5])
    with refuses("unknown-name"):
        copying_study(model, tmp_path, [1], methods=["magic"])
    with refuses("study-needs-text"):
        copying_study(gi.load("2H3ST-toy"), tmp_path, [0])
    with refuses("is-negative"):
        gi.fit_gated(model, 1, finetune=-1)
    with refuses("finetune-with-nothing"):
        gi.fit_replacement(model, 1, finetune_with={"anneal_from": 0.1})
    with refuses("config-negative"):
        copying_study(model, tmp_path, [1], finetune=-1)
    assert not any(tmp_path.iterdir())
