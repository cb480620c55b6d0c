"""fit_gated and decompose: what trains, what is measured and written, and what is refused."""

import copy
import json
import math
import re
import types

import pandas as pd
import pytest
import torch
from closeness import assert_close
from commands import cli, one_sentence
from refusals import refuses, says

import gated_interp as gi
from gated_interp.analysis.block_measures import block_measures
from gated_interp.analysis.faithfulness import loss_recovered
from gated_interp.analysis.spare_heads import spare_heads
from gated_interp.anatomy.batch import Batch
from gated_interp.core.written import change
from gated_interp.experiments import decompose as study
from gated_interp.metrics.predictions import next_token_loss
from gated_interp.plots.head_grid import head_grids
from gated_interp.replacements.replacement import active
from gated_interp.tasks.text import RepeatedText, TextTask
from gated_interp.training.data import held_out_part
from gated_interp.training.fit import fit_settings
from gated_interp.training.methods import METHODS

TEXT = "".join(f"line {i} of a text, in which {i % 7} is said again\n" for i in range(300))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return TextTask(path, 12, vocab=270, folder=path.parent)


@pytest.fixture(scope="module")
def model(task):
    """Two layers that have learnt something: what is zero without training measures nothing."""
    shape = {"d_vocab": 270, "n_ctx": 12, "n_layers": 2, "d_model": 16, "n_heads": 2}
    config = gi.TrainConfig.language(steps=150, batch_size=16, lr=0.02, evaluate_every=0)
    made = gi.text.build_language_model(gi.text.LanguageModelConfig(**shape), task)
    return gi.train_model(made, config, progress=False).model


@pytest.fixture(scope="module")
def block(model):
    """A block for the second layer, some way from it."""
    return gi.fit_gated(model, 1, heads=8, steps=30, fvu=0.3, overlap=1.0, progress=False).model


# ---- fit_gated


def test_it_starts_as_the_layer_itself(model):
    """Copies of the heads, their output shared out, gates wide open: nothing is lost yet."""
    made, config = fit_settings(model, 1, noise=0.0)
    made.force_gates(1)
    tokens = model.task.sample(4, seed=0).tokens
    spliced = gi.splice(model, 1, made)
    assert_close(spliced(tokens), model(tokens), roundings=256)
    assert made.W_O.shape == (4, 16, 16)  # of 2 heads of 8 dimensions
    four, _ = fit_settings(model, 1, expansion=4, width=1)
    assert four.W_O.shape == (8, 8, 16)
    assert config.batch_size == 1024 // 12


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_nearer_to_what_the_layer_writes(model, method):
    # Copies start within the error, and few of them soon leave it.
    k = 8 if METHODS[method].fit.get("init") == "duplicate" else 2
    options = {"heads": 16, "k": k} if METHODS[method].kind in ("topk", "sae") else {}
    options["downstream"] = 0.0
    found = gi.fit_replacement(
        model, 0, method=method, steps=40, fvu=0.05, progress=False, **options
    )
    assert found.history["fvu"].iloc[-1] < 0.8 * found.history["fvu"].iloc[0] or (
        found.history["fvu"].iloc[-1] < 0.1
    )
    tokens = model.task.part("test").sample(8, seed=0).tokens
    assert loss_recovered(gi.splice(model, 0, found.model), tokens)["ce"] < 6


@pytest.mark.slow
def test_the_overlap_penalty_parts_heads_and_the_target_holds_them_back(model):
    tokens = model.task.part("test").sample(16, seed=0).tokens
    loose, tight, apart = (
        block_measures(
            gi.splice(
                model, 1, gi.fit_replacement(model, 1, steps=150, progress=False, **kw).model
            ),
            1,
            tokens,
        )
        for kw in (
            {"fvu": 0.5, "overlap": 1.0},
            {"fvu": 0.02, "overlap": 1.0},
            {"fvu": 0.5, "overlap": 0.0, "alpha": 0.0},
        )
    )
    assert tight["fvu"] < loose["fvu"]
    assert loose["active_per_position"] < apart["active_per_position"]
    assert loose["gates_per_pair"] < apart["gates_per_pair"]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"layer": 2}, "no-such-layer"),
        ({"method": "magic"}, "unknown-name"),
        ({"heads": 0}, "bad-expansion"),
        ({"colour": 1}, "unknown-setting-of-fit"),
        ({"fvu": 0.0}, "config-not-positive"),
        ({"d_gate": 0}, "config-not-positive"),
        ({"d_head": 3}, "cannot-copy-narrow-heads"),
        ({"width": 0}, "not-a-whole-number"),
        ({"width": 2, "method": "sae on output"}, "no-heads-to-widen"),
    ],
)
def test_what_cannot_be_fitted_is_refused(model, given, code):
    with refuses(code):
        gi.fit_replacement(model, **{"layer": 0, "progress": False, **given})


def test_a_layer_that_is_replaced_already_is_refused(model, block):
    with refuses("already-replaced"):
        gi.fit_gated(gi.splice(model, 1, block), 1, progress=False)


def test_held_out_parts(task):
    assert held_out_part(task, "test") == task.part("test")
    assert held_out_part(task.part("train"), "test") == task.part("test")
    assert held_out_part(RepeatedText(task.part("train"), 0.5), "test") == task.part("test")
    assert held_out_part(task.part("validation"), "test") == task.part("validation")

    def function(n, generator): ...

    assert held_out_part(function, "test") is function


# ---- measures


def test_what_is_recovered_is_what_ablation_by_hand_says(model, block):
    tokens = model.task.part("test").sample(40, seed=1).tokens
    found = loss_recovered(gi.splice(model, 1, block), tokens)
    name = "blocks.1.hook_attn_out"
    _, cache = model.run_with_cache(tokens)
    mean = cache[name].mean((0, 1))

    def loss(hook=None):
        hooks = [] if hook is None else [(name, hook)]
        return next_token_loss(model.run_with_hooks(tokens, fwd_hooks=hooks), tokens).mean()

    zero = loss(lambda x, hook: torch.zeros_like(x))
    level = loss(lambda x, hook: mean.expand_as(x))
    spliced = gi.splice(model, 1, block)(tokens)
    ce = next_token_loss(spliced, tokens).mean()
    log_p = model(tokens).log_softmax(-1)
    kl = (log_p.exp() * (log_p - spliced.log_softmax(-1))).sum(-1).mean()
    expected = {"ce": ce, "ce_original": loss(), "ce_zero": zero, "ce_mean": level, "kl": kl}
    for key, value in expected.items():
        assert_close(torch.tensor(found[key]).float(), value, roundings=256, scale=zero.item())
    assert found["ce_recovered_zero"] == pytest.approx(
        (found["ce_zero"] - found["ce"]) / (found["ce_zero"] - found["ce_original"])
    )
    assert found["ce_recovered_mean"] == pytest.approx(
        (found["ce_mean"] - found["ce"]) / (found["ce_mean"] - found["ce_original"])
    )


def test_the_original_in_its_own_place_recovers_everything(model):
    tokens = model.task.part("test").sample(10, seed=1).tokens
    same, _ = fit_settings(model, 1, method="ungated", heads=2, noise=0.0)
    found = block_measures(gi.splice(model, 1, same), 1, tokens)
    assert found["ce_recovered_zero"] == pytest.approx(1, abs=1e-4)
    assert found["kl"] == pytest.approx(0, abs=1e-5)
    assert found["fvu"] == pytest.approx(0, abs=1e-6)
    assert found["active_per_position"] == found["active_original"] == 2
    assert found["held_share"] == found["held_share_original"]
    assert found["gates_per_pair"] == found["heads"] == found["heads_alive"] == 2


def test_decomposition_agrees_with_the_other_measures(model, block):
    tokens = model.task.part("test").sample(400, seed=2).tokens  # more than one batch
    spliced = gi.splice(model, 1, block)
    found = block_measures(spliced, 1, tokens)
    whole = gi.faithfulness(spliced, 1, tokens).measures()
    assert found["fvu"] == pytest.approx(float(whole["fvu"]), rel=1e-4)
    assert found["gates_per_pair"] == pytest.approx(float(whole["l0"]), rel=1e-5)
    assert found["open_share"] == pytest.approx(found["gates_per_pair"] / 8)
    assert found["ce"] == pytest.approx(float(whole["cross_entropy"]), rel=1e-5)
    _, cache = spliced.run_with_cache(tokens)
    writes = active(cache["blocks.1.attn.hook_z"], block.W_O).sum(-1).double().mean()
    assert found["active_per_position"] == pytest.approx(float(writes), abs=1e-3)
    assert found["held_share"] == gi.text_holders(spliced, 1, tokens).share
    assert found["held_share_original"] == gi.text_holders(model, 1, tokens).share
    about_mean = gi.text_holders(spliced, 1, tokens, about_mean=True)
    assert found["held_about_mean"] == about_mean.share != found["held_share"]
    assert found["held_entropy_original"] == gi.text_holders(model, 1, tokens).entropy
    assert found["parameters"] == sum(p.numel() for p in block.parameters() if p.requires_grad)


def test_nothing_spliced_is_refused(model):
    tokens = model.task.sample(2, seed=0).tokens
    with refuses("nothing-spliced"):
        loss_recovered(model, tokens)
    with refuses("nothing-spliced-in-layer"):
        block_measures(model, 0, tokens)


# ---- decompose


QUICK = {"steps": 20, "fvu": 0.3, "sequences": 16, "workers": 1, "batch_size": 16}
KEYS = """
fvu ce ce_original ce_zero ce_mean ce_recovered_zero ce_recovered_mean kl active_per_position
open_share heads heads_alive held_share held_share_original seconds
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("decompose")
    return gi.studies.decompose(model, out, seeds=2, **QUICK)


def test_every_layer_and_seed_is_measured_and_written(done, model):
    results = json.loads((done.folder / "results.json").read_text())
    assert list(results["layers"]) == ["all", "0", "1"]
    for layer in ("0", "1"):
        each = results["layers"][layer]
        assert [row["seed"] for row in each["seeds"]] == [0, 1]
        values = [row["fvu"] for row in each["seeds"]]
        assert each["median"]["fvu"] == pytest.approx(sum(values) / 2)
        assert each["low"]["fvu"] < min(values) < max(values) < each["high"]["fvu"]
        assert set(KEYS) <= each["median"].keys()
        assert each["measured"].keys() == each["median"].keys()
        assert each["measured"]["fvu"]["on"].startswith("16 held-out sequences of 12 tokens (")
        assert all(how["what"] and how["n"] == 2 for how in each["measured"].values())
    assert results["layers"]["all"]["median"]["ce"] > 0
    assert done.runs["positions"].dropna().unique().tolist() == [20 * 16 * 12]


def test_what_an_ablation_that_costs_nothing_would_lose_is_missing(tmp_path):
    """What the heads of this circuit write says nothing of the next token: no loss to recover."""
    circuit = gi.known_circuit("compiled-count")
    quick = {"steps": 2, "seeds": 1, "sequences": 128, "workers": 1, "pages": False}
    with pytest.warns(gi.GatedInterpWarning, match="not faithful"):
        found = gi.studies.decompose(circuit.model, tmp_path, **quick)
    (row,) = found.runs.to_dict("records")
    assert row["ce_resample"] == pytest.approx(row["ce_original"], rel=1e-6)
    assert math.isnan(row["ce_recovered_resample"])
    assert math.isfinite(row["ce_recovered_zero"])
    assert "ce_recovered_resample" not in found.results["layers"]["0"]["median"]
    assert "ce_recovered_resample" not in found.model(0, 0).notes


def test_the_written_model_is_the_one_that_was_measured(done, model):
    row = done.runs[(done.runs["layer"] == 1) & (done.runs["seed"] == 1)].iloc[0]
    spliced = done.model(1, 1)
    tokens = study.held_out(model, model.task, "test", 16)
    assert block_measures(spliced, 1, tokens)["kl"] == pytest.approx(row["kl"], rel=1e-4)
    history = pd.read_csv(done.folder / "L1-seed1-history.csv")
    assert history["step"].iloc[-1] == 19
    assert not list(done.folder.glob("*.state"))


def test_all_layers_at_once_are_those_blocks_together(done, model):
    row = done.runs[(done.runs["layer"] == -1) & (done.runs["seed"] == 0)].iloc[0]
    both = model
    for layer in (0, 1):
        both = gi.splice(both, layer, done.model(layer, 0).blocks[layer].attn)
    tokens = study.held_out(model, model.task, "test", 16)
    assert loss_recovered(both, tokens)["ce"] == pytest.approx(row["ce"], rel=1e-4)


def test_given_again_it_goes_on_where_it_was(done, model, monkeypatch, tmp_path):
    said = []
    again = gi.studies.decompose(model, done.folder, seeds=2, **QUICK, say=said.append)
    assert said == ["4 of 4 runs are there already and are kept."]
    pd.testing.assert_frame_equal(again.runs, done.runs, check_exact=False)
    with refuses("results-of-another-run"):
        gi.studies.decompose(model, done.folder, seeds=2, **QUICK | {"steps": 21})


def test_an_interrupted_training_is_taken_up_again(done, model, monkeypatch, tmp_path):
    """Stopped in its tenth step, then given again: the same blocks as without the stop."""
    real, calls = study.fit_replacement, []

    def stops(*args, **kwargs):
        calls.append(kwargs["resume"])
        if len(calls) == 1:
            ticks = iter(range(9))

            def data(n, generator):
                if next(ticks, None) is None:
                    raise KeyboardInterrupt
                seed = generator.initial_seed()
                return model.task.sample(n, seed).tokens

            args = (*args[:2], data)
        return real(*args, **kwargs)

    monkeypatch.setattr(study, "fit_replacement", stops)
    # Named as the text is, so that the state is of the same training.
    monkeypatch.setattr("gated_interp.training.loop.name_of", lambda data: "text")
    with pytest.raises(KeyboardInterrupt):
        gi.studies.decompose(model, tmp_path, layers=[1], seeds=1, **QUICK)
    assert (tmp_path / "L1-seed0.safetensors.state").is_file()
    again = gi.studies.decompose(model, tmp_path, layers=[1], seeds=1, **QUICK)
    assert calls[0] is None
    assert calls[1] == tmp_path / "L1-seed0.safetensors.state"
    whole = done.runs[(done.runs["layer"] == 1) & (done.runs["seed"] == 0)].iloc[0]
    assert again.runs.iloc[0]["kl"] == pytest.approx(whole["kl"], rel=1e-3)


def test_its_trainings_run_where_they_are_told(done, model, tmp_path, told):
    """As on a cluster, whose workers are given the run folder alone."""
    sent, asked = told(study)
    how = {"layers": [1], "seeds": 2, **QUICK, "workers": "tcp://there:1"}
    found = gi.studies.decompose(model, tmp_path, **how).runs.drop(columns="seconds")
    gi.studies.decompose(model, tmp_path, **how)
    assert asked == ["tcp://there:1", 1]  # what is finished needs nobody
    assert [(key, args[:2]) for key, _, args in sent] == [
        ((1, seed), (str(tmp_path), None)) for seed in (0, 1)
    ]
    wanted = done.runs[done.runs["layer"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, wanted[found.columns], check_dtype=False)
    (tmp_path / study.ORIGINAL).unlink()
    with refuses("workers-lack-the-folder", folder=str(tmp_path)):
        sent[0][1](*sent[0][2])


@pytest.mark.slow
@pytest.mark.parametrize("captured", [0, 60])
def test_it_runs_on_a_cluster(model, tmp_path, cluster, captured):
    """From the model, and from stored activations that the worker reads."""
    address, *_ = cluster(1)
    how = {"layers": [1], "seeds": 1, "captured": captured, "pages": False, **QUICK}
    here, there = (
        gi.studies.decompose(model, tmp_path / name, **how | {"workers": workers}).runs
        for name, workers in (("here", 1), ("there", address))
    )
    pd.testing.assert_frame_equal(here.drop(columns="seconds"), there.drop(columns="seconds"))


def test_heads_that_write_nothing_are_pruned(model):
    made, _ = fit_settings(model, 1, heads=8)
    with torch.no_grad():
        made.raw_W_O[2].zero_()
        made.raw_W_O[5].zero_()
    tokens = model.task.part("validation").sample(8, seed=0).tokens
    spliced = gi.splice(model, 1, made)
    smaller = study._pruned(spliced, 1, Batch(tokens), spare=0)
    assert len(smaller.blocks[1].attn.W_O) == 6
    assert_close(smaller(tokens), spliced(tokens), roundings=128)
    ungated = gi.splice(model, 1, fit_settings(model, 1, method="topk")[0])
    assert study._pruned(ungated, 1, Batch(tokens), spare=1) is ungated


def squared_error_without(spliced, model, tokens, heads):
    """By zeroing what these heads write."""
    name = "blocks.1.hook_attn_out"
    made = copy.deepcopy(spliced.blocks[1].attn)
    with torch.no_grad():
        made.raw_W_O[list(heads)] = 0
    outputs = [m.run_with_cache(tokens, names_filter=name)[1][name].double()
               for m in (gi.splice(model, 1, made), model)]  # fmt: skip
    return float((outputs[0] - outputs[1]).square().sum())


@pytest.mark.parametrize("rise", [0.0, 0.05, 0.5, 100.0])
def test_spare_heads_are_those_that_removing_one_by_one_finds(model, block, rise):
    tokens = model.task.part("validation").sample(8, seed=0).tokens
    spliced = gi.splice(model, 1, block)
    limit = (1 + rise) * squared_error_without(spliced, model, tokens, [])
    gone = []
    while len(gone) < 7:
        left = [h for h in range(8) if h not in gone]
        errors = {h: squared_error_without(spliced, model, tokens, [*gone, h]) for h in left}
        head = min(errors, key=errors.get)
        if errors[head] > limit:
            break
        gone.append(head)
    assert spare_heads(spliced, 1, tokens, rise) == gone
    assert rise != 100 or len(gone) > 3
    smaller = gi.prune_spare_heads(spliced, 1, tokens, rise)
    assert len(smaller.blocks[1].attn.W_O) == 8 - len(gone)
    _, cache = smaller.run_with_cache(tokens, names_filter="blocks.1.hook_attn_out")
    _, before = model.run_with_cache(tokens, names_filter="blocks.1.hook_attn_out")
    (after,), (wanted,) = cache.values(), before.values()
    assert float((after - wanted).double().square().sum()) <= limit * (1 + 1e-5)
    assert spliced.blocks[1].attn is block


def test_spare_heads_are_refused_where_there_are_none(model, block):
    tokens = model.task.sample(2, seed=0).tokens
    with refuses("no-replacement", layer=0):
        spare_heads(gi.splice(model, 1, block), 0, tokens)
    with refuses("is-negative", name="rise", value=-1):
        spare_heads(gi.splice(model, 1, block), 1, tokens, -1)
    sae, _ = fit_settings(model, 1, method="sae on output")
    with refuses("no-gated-block"):
        gi.prune_spare_heads(gi.splice(model, 1, sae), 1, tokens)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"layers": [2]}, "no-such-layer"),
        ({"layers": []}, "nothing-to-decompose"),
        ({"seeds": 0}, "nothing-to-decompose"),
        ({"spare": -0.1}, "is-negative"),
        ({"method": "magic"}, "unknown-name"),
    ],
)
def test_bad_input_writes_nothing(model, tmp_path, given, code):
    with refuses(code):
        gi.studies.decompose(model, tmp_path / "out", **QUICK | given)
    assert not (tmp_path / "out").exists()


def test_a_layers_page_starts_from_an_overview_of_all_layers(done, model):
    table = pd.read_csv(done.folder / "overview.csv")
    assert table[["layer", "head"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    page = (done.folder / "L0.html").read_text(encoding="utf-8")
    assert page.index("The heads that matter most") < page.index("<h2>Layer 0</h2>")
    assert page.index("<h2>Layer 0</h2>") < page.index('class="card"')
    tiles = re.findall(r'<td style="background: ([^"]*)" title="([^"]*)"', page)
    said = {name: color for color, tip in tiles for name in [tip.split(":")[0]]}
    assert {"all of layer 0", "all of layer 1", "L0H0", "L1H1"} <= said.keys()
    for column, places in (("effect", tiles[:6]), ("effect_repeats", tiles[6:])):
        found = {tip.split(":")[0]: tip for _, tip in places}
        for row in table.to_dict("records") if places else ():
            name = f"L{row['layer']}H{row['head']}"
            assert found[name].startswith(f"{name}: {change(row[column])} nats")
    assert '<a href="L1.html">1</a>' in page
    assert '<a href="L0.html">' not in page
    assert "<script" not in page


def test_the_grid_of_all_heads_says_what_was_measured_and_marks_heads():
    table = pd.DataFrame({"layer": [0, 0, 1], "head": [0, 1, 0], "effect": [1.0, math.nan, -0.5],
                          "effect_repeats": [math.nan] * 3})  # fmt: skip
    layers = pd.DataFrame({"effect": [2.0, -0.5], "effect_repeats": [math.nan] * 2})
    overview = types.SimpleNamespace(
        table=table, layers=layers, marks=[["induction", "first token"], [], []]
    )
    (grid,) = head_grids(overview, 1, [0])
    assert [(c["layer"], c["here"], c["linked"]) for c in grid["columns"]] == [
        (0, False, True), (1, True, False)
    ]  # fmt: skip
    (_, whole), (_, first), (_, second) = grid["rows"]
    assert whole[0]["tip"] == "all of layer 0: +2.000 nats"
    assert whole[1]["tip"] == "all of layer 1: −0.500 nats"
    assert first[0]["tip"] == "L0H0: +1.000 nats, induction, first token"
    assert (first[0]["sign"], first[1]["sign"]) == ("◆", "")
    assert first[0]["color"] == "rgba(0, 114, 178, 0.50)"
    assert first[1]["color"].startswith("rgba(222, 138, 62")
    assert second[0]["tip"] == "L0H1: not measured"
    assert second[1]["tip"] == ""  # there is no such head


def test_the_command(done, model, tmp_path):
    path = tmp_path / "model.safetensors"
    gi.save(model, path)
    said = cli("decompose", path, "--layer", 0, "--steps", 5, "--seeds", 1, "--sequences", 8,
               "--workers", 1, "--fvu", 0.3, "--downstream", 0.5,
               "--out", tmp_path / "out")  # fmt: skip
    assert "held by one head" in said.output
    assert (pd.read_csv(tmp_path / "out" / "L0-seed0-history.csv")["kl"] > 0).all()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["layers"]["0"]["seeds"]
    refused = cli("decompose", path, "--layer", 7, "--out", tmp_path / "no", code=1)
    assert says("no-such-layer", one_sentence(refused))
    toy = cli("decompose", "2H3ST-toy", "--text", tmp_path, "--out", tmp_path / "no", code=1)
    assert "tokenizer" in one_sentence(toy)
