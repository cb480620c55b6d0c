"""The overview of a deep model: what it measures, what commands and pages make of it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from commands import cli
from deep import HEADS, LAYERS, deep_llama
from refusals import refuses, says
from test_open_model import CONFIGS, D_VOCAB, tiny, transformers

import gated_interp as gi
from gated_interp.analysis.overview import MARKED, HeadOverview, head_overview
from gated_interp.analysis.rest import Rest
from gated_interp.experiments.report import report
from gated_interp.explorer.acts import acted
from gated_interp.explorer.session import Session
from gated_interp.explorer.state import link_of
from gated_interp.explorer.view import Viewer
from gated_interp.models.pretrained import from_transformers
from gated_interp.subject import Subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return deep_llama(tmp_path_factory.mktemp("deep") / "deep")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = torch.randint(1, D_VOCAB, (9000,), generator=torch.Generator().manual_seed(1))
    rows = words.view(-1, 20).tolist()
    path.write_text("\n".join(" ".join(f"w{i}" for i in row) for row in rows))
    return gi.open_model(folder, text=path)


@pytest.fixture(scope="module")
def text(model):
    return model.task.part("test").sample(6, 0).tokens


def loss_without(model, tokens, layer, heads, where):
    """The loss with the mean of some heads' z in their place, by hooks on a whole pass."""
    name = f"blocks.{layer}.attn.hook_z"
    _, cache = model.run_with_cache(tokens)

    def put(z, hook):
        z = z.clone()
        z[:, :, heads] = cache[name].mean((0, 1))[heads]
        return z

    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, put)])
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return float(losses.view(len(tokens), -1)[where].mean())


def test_effects_are_what_ablation_by_hooks_says(model, text) -> None:
    found = head_overview(model, text, n=3, bos=0, every=True)
    everywhere = torch.ones(text[:, 1:].shape, dtype=torch.bool)
    intact = loss_without(model, text, 0, [], everywhere)
    assert found.loss == pytest.approx(intact, abs=1e-4)
    for layer, head in [(0, 1), (3, 2), (5, 0)]:
        row = found.table.query("layer == @layer and head == @head").iloc[0]
        alone = loss_without(model, text, layer, [head], everywhere) - intact
        assert row["effect"] == pytest.approx(alone, abs=1e-4)
        whole = loss_without(model, text, layer, list(range(HEADS)), everywhere) - intact
        assert found.layers["effect"][layer] == pytest.approx(whole, abs=1e-4)


def test_of_a_large_model_all_layers_are_measured_and_the_heads_of_some(model, text) -> None:
    found = head_overview(model, text, n=3, bos=0, every=False)
    assert found.layers.notna().all(axis=None)
    for column in ("effect", "effect_repeats"):
        there = found.table[found.table[column].notna()]
        most = found.layers[column].abs().nlargest(3)
        assert set(there["layer"]) == set(most.index)
        assert len(there) == 3 * HEADS
    assert not found.every
    best = int(found.layers["effect_repeats"].idxmax())
    assert found.layer == best
    assert f"Without layer {best}'s heads" in found.why
    again = head_overview(model, text, n=3, bos=0, every=True)
    # On the same few tokens, what is measured is the same.
    few = head_overview(model, text[:4], n=3, bos=0, every=True)
    assert again.every
    assert np.allclose(few.layers["effect"], found.layers["effect"], atol=1e-5)


def test_scores_are_those_of_induction_scores(model, text) -> None:
    from gated_interp.analysis.induction import repeated_random_tokens

    found = head_overview(model, text, n=3, bos=0, every=True).table
    repeats = gi.induction_scores(model, repeated_random_tokens(model, 3, bos=0))
    assert np.allclose(found["prefix_matching"], repeats["prefix_matching"], atol=1e-5)
    _, cache = model.run_with_cache(text)
    pattern = cache["blocks.2.attn.hook_pattern"]
    first = pattern[:, :, 2:, 0].mean((0, 2))
    before = torch.stack([pattern[:, :, i, i - 1] for i in range(2, text.shape[1])]).mean((0, 1))
    mine = found[found["layer"] == 2]
    assert np.allclose(mine["first_token"], first, atol=1e-5)
    assert np.allclose(mine["previous_token"], before, atol=1e-5)


def test_a_mark_needs_most_of_the_attention() -> None:
    table = pd.DataFrame({"prefix_matching": [MARKED, 0.1], "previous_token": [0.9, 0.2],
                          "first_token": [float("nan"), 0.39]})  # fmt: skip
    found = HeadOverview(table, pd.DataFrame(), 0.0, 0.0, (1, 1), [])
    assert found.marks == [["induction", "previous token"], []]


def test_a_replaced_layer_comes_first(model, text) -> None:
    block = gi.GatedAttention.from_attention(model_without_rotary().blocks[4].attn, seed=0)
    spliced = gi.splice(model_without_rotary(), 4, block)
    found = head_overview(spliced, text, n=2, bos=0, every=False)
    assert found.layer == 4
    assert found.spliced == [4]
    subject = Subject.of(spliced, tokens=text, alone=True)
    assert subject.too_deep
    assert subject.narrowed().layers == [4]


def model_without_rotary():
    return from_transformers(tiny(transformers.GPT2Config(
        vocab_size=D_VOCAB, n_embd=24, n_layer=6, n_head=4, n_positions=64)))  # fmt: skip


def test_a_model_without_room_for_repeats_has_none() -> None:
    short = from_transformers(tiny(CONFIGS["GPT-2"]()), n_ctx=4)
    found = head_overview(short, torch.randint(D_VOCAB, (4, 4)))
    assert found.layers["effect_repeats"].isna().all()
    assert "on text" in found.why


def test_rest_takes_what_is_known(model, text) -> None:
    _, cache = model.run_with_cache(text)
    known, own = Rest(model, 3, text, held=cache), Rest(model, 3, text)
    assert torch.equal(known.logits(), own.logits())


# ---- pages and commands


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    return report(model, path, sequences=4, interactive=True).read_text(encoding="utf-8")


def test_the_report_of_a_deep_model_has_the_overview_and_one_layer(page, model) -> None:
    subject = dataclasses.replace(Subject.of(model, sequences=4), made_by="")
    layer = subject.narrowed().layers[0]
    assert page.index('id="overview"') < page.index('id="holders"')
    assert f"layer {layer}: {HEADS} attention heads" in page
    assert f"overview of all heads, the page shows layer {layer}" in page
    others = [i for i in range(LAYERS) if i != layer]
    assert not any(f"effects-L{i}" in page for i in others)
    assert f"effects-L{layer}" in page


@pytest.mark.parametrize("command", ["ablate", "circuits"])
def test_commands_say_which_layer_they_show_and_why(command, folder) -> None:
    said = cli(command, folder).stdout
    found = head_overview_of(said)
    assert "Without layer" in said
    assert f"What follows is of layer {found}; name another with --layer." in said
    named = cli(command, folder, "--layer", 2).stdout
    assert "What follows" not in named
    assert "L2H0" in named


def head_overview_of(said):
    return said.split("What follows is of layer ")[1].split(";")[0]


def test_info_shows_the_overview(folder) -> None:
    said = cli("info", folder).stdout
    assert "The heads that matter most" in said
    assert "induction" in said


def test_a_figure_needs_the_same_heads_in_each_panel() -> None:
    with refuses("overview-of-different-heads"):
        gi.plots.head_overview({"a": {(0, 0): 0.1}, "b": {(1, 0): 0.1}})
    drawn = gi.plots.head_overview(
        {"a": {(0, 0): 0.1, (1, 0): float("nan")}}, whole={"a": [0.2, -0.3]},
        marks={"induction": [(1, 0)]}, layers=[0], layer=1,
    )  # fmt: skip
    assert drawn.data[0].z[0].tolist() == [0.2, -0.3]
    assert drawn.layout.coloraxis.cmin == -drawn.layout.coloraxis.cmax
    assert list(drawn.data[1].y) == [1]  # below the row of whole layers


# ---- the explorer


@pytest.fixture(scope="module")
def session(model):
    return Session(model)


def test_a_switch_is_what_a_whole_pass_says(session, model) -> None:
    """Whatever is cached: heads of several layers, in any order, each read in any layer."""
    from gated_interp.analysis.ablation import without_heads

    state = session.start
    tokens = torch.tensor([state.tokens])
    for head in [(4, 1), (2, 3), (4, 0), (0, 2)]:
        state = session.with_head(state, head, False)
        off = sorted(state.off["model"])
        with without_heads(model, off):
            logits, cache = model.run_with_cache(tokens)
        for layer in (0, 2, 5):
            reading = session.read(session.with_layer(state, layer))["model"]
            at = state.position
            assert np.allclose(reading.logits, logits[0, at].numpy(), atol=1e-3)
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0]
            assert np.allclose(reading.attention, pattern.numpy(), atol=1e-4)
            z, W_O = cache[f"blocks.{layer}.attn.hook_z"][0, at], model.blocks[layer].attn.W_O
            direct = torch.einsum("hd,hdm->hm", z, W_O) @ model.unembed.W_U
            direct = direct / cache["ln_final.hook_scale"][0, at]
            assert np.allclose(reading.writes, direct.numpy(), atol=1e-3)


def test_a_switch_runs_only_the_layers_behind_it(session, model) -> None:
    state = session.with_layer(session.start, 4)
    session.read(state)
    ran: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(model.blocks)
    ]
    try:
        session.read(session.with_head(state, (4, 2), False))
        assert ran == [4, 5]
        # Each head alone is known from the effects; of several, the layers behind run.
        session.effects(session.with_layer(state, 3))
        one = session.with_head(session.with_layer(state, 3), (3, 1), False)
        session.read(session.with_layer(state, 3))
        ran.clear()
        without = session.read(one)["model"]
        assert ran == []
        session.read(session.with_head(one, (3, 2), False))
        assert ran == [3, 4, 5]
    finally:
        for handle in handles:
            handle.remove()
    fresh = Session(model)
    assert np.allclose(without.logits, fresh.read(one)["model"].logits, atol=1e-4)
    assert np.allclose(without.writes, fresh.read(one)["model"].writes, atol=1e-4)


def test_the_strip_is_what_each_head_writes(model, monkeypatch) -> None:
    monkeypatch.setattr("gated_interp.explorer.session.AT_ONCE", 0)  # as of a large model
    session = Session(model)
    view, _ = Viewer(session).view(session.start, session.read(session.start))
    strip, state = view["strip"], session.start
    assert [len(layer) for layer in strip["values"]] == [HEADS] * LAYERS
    token = session.asked(state).token
    for layer in (1, 5):
        writes = session.read(session.with_layer(state, layer))["model"].writes
        wanted = writes[:, token] - writes.mean(1)
        assert np.allclose(strip["values"][layer], wanted, atol=1e-3)
    # Layer by layer, each head's effect is measured when it is asked for.
    assert strip["left"] == LAYERS - 1
    for left in range(LAYERS - 2, -1, -1):
        acted(session, state, {"do": "measure"})
        strip = Viewer(session).view(state, session.read(state))[0]["strip"]
        assert strip["left"] == left
    assert strip["says"].startswith("By how much log p of ")
    monkeypatch.undo()
    assert Viewer(Session(model)).view(state, session.read(state))[0]["strip"] == strip
    without = session.read(session.with_head(state, (2, 3), False))["model"]
    change = without.metric - without.intact_metric
    assert strip["values"][2][3] == pytest.approx(change, abs=1e-3)
    shallow = Session(gi.load("austen-1l"))
    assert Viewer(shallow).view(shallow.start, shallow.read(shallow.start))[0]["strip"] is None


def test_heads_of_any_model_of_several_layers_are_marked() -> None:
    session = Session(gi.load("austen-2l-gated"))
    marks = dict.fromkeys(word for word, _ in session.marks)
    assert set(marks) >= {"previous token", "gated"}
    model = gi.load("austen-2l")
    tokens = gi.text.repeated_random_tokens(model, 2, bos=0)
    scores = gi.induction_scores(model, tokens)
    wanted = {
        (int(r.layer), int(r.head)) for r in scores.itertuples() if r.prefix_matching >= MARKED
    }
    session = Session(model)
    assert {head for word, head in session.marks if word == "induction"} == wanted
    assert "gated" not in dict(session.marks)
    text = session.examples.reference[:2].tokens
    _, cache = model.run_with_cache(text)
    first = cache["blocks.1.attn.hook_pattern"][:, :, 2:, 0].mean((0, 2))
    mine = {head for word, head in session.marks if word == "first token" and head[0] == 1}
    assert mine == {(1, h) for h, share in enumerate(first) if share >= MARKED}


# ---- opening


def test_weights_lie_as_a_pass_reads_them(model) -> None:
    """Else every pass copies them, which on short texts takes as long as the pass itself."""
    block = model.blocks[1]
    assert model.unembed.W_U.T.is_contiguous()
    assert block.mlp.W_gate.T.is_contiguous()
    assert block.attn.W_Q.transpose(1, 2).is_contiguous()
    assert block.attn.W_O.permute(2, 0, 1).is_contiguous()


def test_a_cell_of_an_attention_picture_is_taken_apart(session, model) -> None:
    state = session.at_tokens(session.start, "w1 w2 w3 w1 w2")
    state = session.with_edge(session.with_opened(state, (4, 1)), 4, 2)
    edge = Viewer(session).view(state, session.read(state))[0]["opened"]["edge"]
    found = gi.qk_attribution(model, "L4H1", tokens=[state.tokens], query=4, key=2)
    table = found.table(8)
    assert edge["columns"] == ["query", "key", "write"]
    assert [row[0] for row in edge["rows"]] == list(table["component"])
    for at, column in enumerate(edge["columns"], 1):
        assert np.allclose([row[at] for row in edge["rows"]], table[column], atol=1e-3)
    pattern = session.read(state)["model"].attention
    assert edge["attention"] == pytest.approx(pattern[1, 4, 2], abs=1e-3)
    sums = [sum(row[at] for row in edge["rows"]) for at in (1, 2)]
    assert sums == pytest.approx([edge["scores"]["attention"]] * 2, abs=1e-2)
    # The parts are those of the picture, with what is off.
    off = session.with_head(state, (1, 2), False)
    without = dict(Viewer(session).view(off, session.read(off))[0]["opened"]["edge"])
    assert without["rows"] != edge["rows"]
    assert without["attention"] == pytest.approx(
        session.read(off)["model"].attention[1, 4, 2], abs=1e-3
    )
    assert not session.with_layer(state, 2).edge
    assert session.at_link(link_of(off)) == off


def test_a_cell_that_is_hidden_gets_the_sentence(session) -> None:
    state = session.at_tokens(session.start, "w1 w2 w3 w1 w2")
    with refuses("no-head-opened"):
        session.with_edge(state, 1, 1)
    opened = session.with_opened(state, (4, 1))
    with refuses("no-such-position"):
        session.with_edge(opened, 1, 99)
    ahead = session.with_edge(opened, 1, 3)
    edge = Viewer(session).view(ahead, session.read(ahead))[0]["opened"]["edge"]
    assert says("key-not-visible", edge["refused"])
