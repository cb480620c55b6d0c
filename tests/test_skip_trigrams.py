"""Skip trigrams: known answers, and every number once more through the model itself."""

import dataclasses
import functools

import attention_models as models
import numpy as np
import pandas as pd
import pytest
import torch
from closeness import assert_close

import gated_interp as gi
from gated_interp.analysis.text_pairs import Continuations, held_out_text, last_before, seen_pairs
from gated_interp.analysis.trigram_bugs import _direct
from gated_interp.analysis.trigram_effects import alike, logits_at
from gated_interp.models.analytic import manual_model
from gated_interp.replacements.replacement import kind_named
from gated_interp.replacements.topk import TopKAttention
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

A, B1, B2, B3, C1, C2, C3, BOS = range(8)
IDS = ["head", "source_id", "destination_id", "out_id"]
TASK = SkipTrigramTask(3)


@pytest.fixture(scope="module")
def truth():
    return manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both


@pytest.fixture(scope="module")
def text(truth):
    return truth.task.sample(400, seed=3).tokens


@pytest.fixture(scope="module")
def measured(truth, text):
    found = gi.skip_trigrams(truth.model, tokens=text)
    return gi.confirm_skip_trigrams(truth.model, found, text, most=40)


def language_model(normalization="LNPre", positions="standard", n_layers=1):
    shape = {"d_vocab": 23, "n_ctx": 13, "n_layers": n_layers, "d_model": 12, "n_heads": 3}
    config = gi.LanguageModelConfig(
        **shape, normalization=normalization, positions=positions, seed=5
    )
    made = gi.build_language_model(config)
    with torch.no_grad():
        source = torch.Generator().manual_seed(2)
        for block in made.blocks:
            block.attn.W_O *= 5
            if normalization == "LN":
                block.ln1.b += 0.2 * torch.randn(block.ln1.b.shape, generator=source)
            for bias in (block.attn.b_Q, block.attn.b_K, block.attn.b_V):
                bias += torch.randn(bias.shape, generator=source)
    return made


WORDS = torch.randint(1, 23, (150, 13), generator=torch.Generator().manual_seed(1))
WORDS[:, 0] = 0


def test_a_model_whose_trigrams_are_known(truth, text):
    found = gi.skip_trigrams(truth.model, tokens=text, sources=1)
    assert found["source_id"].unique().tolist() == [A]
    for head, b, c in ((0, {B1, B3}, {C1, C3}), (1, {B2, B3}, {C2, C3})):
        mine = found[found["head"] == head]
        assert set(mine["out_id"]) == c
        assert set(mine["destination_id"][:4]) == b
        sure = mine[mine["destination_id"].isin(b)]
        assert len(sure) == 4
        # A key is drawn as often as A comes; with a score of 1 against -100 it wins against it all.
        share = float((text == A).double().mean())
        odds = 1 / share / (text.shape[1] / 2 - 0.5)
        assert_close(sure["attention"].tolist(), [odds / (1 + odds)] * 4)
        write = {C1: 2, C2: 2, C3: 1}  # and -2 to the C that the head does not hold
        mean = (2 + 1 - 2) / 8
        assert_close(sure["ov"].tolist(), [write[c] - mean for c in sure["out_id"]])
        assert_close(sure["strength"].tolist(), (sure["attention"] * sure["ov"]).tolist())
        assert sure["gate"].eq(1).all()
    assert found["source"].unique().tolist() == ["A"]


@pytest.mark.parametrize("positions", ["standard", "shortformer"])
@pytest.mark.parametrize("normalization", ["LNPre", "LN", "none"])
@pytest.mark.parametrize("spliced", [False, True])
@torch.no_grad()
def test_the_circuits_are_those_of_the_model_at_a_frozen_scale(normalization, positions, spliced):
    """Its own layer is run on one token and one position, norms held at their means by hooks."""
    model = language_model(normalization, positions)
    if spliced:
        config = gi.GatedConfig(d_model=12, n_heads=4, d_head=5, d_gate=2, normalize_weights=False)
        model = gi.splice(model, 0, models.fill(gi.GatedAttention(config), 3, scale=0.4))
    attn, block = model.blocks[0].attn, model.blocks[0]
    _, cache = model.run_with_cache(WORDS)
    got = gi.skip_trigrams(model, tokens=WORDS, sources=3, top=3, least=2)
    assert set(got["head"]) == set(range(4 if spliced else 3))
    mean_position = model.pos_embed.W_pos.mean(0)
    final = 1.0
    if normalization != "none":
        final = float(cache["ln_final.hook_scale"].mean())

    chance = WORDS.flatten().bincount(minlength=23) / WORDS.numel()

    @functools.cache
    def read(token, with_position):
        x = model.embed.W_E[token]
        if with_position and positions == "standard":
            x = x + mean_position
        if normalization != "none":
            # TransformerLens shows one call of the norm; for shortformer all three are alike.
            scale = cache["blocks.0.ln1.hook_scale"][token == WORDS].mean()
            handle = block.ln1.hook_scale.register_forward_hook(lambda *_: scale.view(1, 1, 1))
            x = block.ln1(x[None, None])[0, 0]
            handle.remove()
        return x + mean_position if with_position and positions == "shortformer" else x

    for row in got.sample(6, random_state=0).to_dict("records"):
        s, d, h = (row[c] for c in ("source_id", "destination_id", "head"))

        def score(key, h=h, d=d):
            q = read(d, True) @ attn.W_Q[h] + attn.b_Q[h]
            return q @ (read(key, True) @ attn.W_K[h] + attn.b_K[h]) / attn.attn_scale

        assert_close(row["qk"], score(s), scale=3)
        others = (torch.stack([score(t).exp() for t in range(23)]) * chance).sum()
        odds = score(s).exp() / others / (13 + 1 - 2) * 2
        assert_close(row["attention"], odds / (1 + odds), roundings=200)
        write = read(s, False) @ attn.W_V[h] @ attn.W_O[h]
        if normalization != "none":
            write = write - write.mean()
        if normalization == "LN":
            write = write * model.ln_final.w
        logits = write / final @ model.unembed.W_U
        assert_close(row["ov"], logits[row["out_id"]] - logits.mean(), roundings=200)
        gate = 1.0
        if spliced:
            gate_q = read(d, True) @ attn.W_gate_Q[h] + attn.b_gate_Q[h]
            gate_k = read(s, True) @ attn.W_gate_K[h] + attn.b_gate_K[h]
            gate = float((gate_q @ gate_k).clamp(0, 1))
        assert_close(row["gate"], gate, scale=1, roundings=200)
    assert not spliced or got["gate"].nunique() > 3


def test_rows_are_the_strongest_of_pairs_that_are_there():
    model = language_model()
    pairs = seen_pairs(WORDS, torch.arange(23))
    got = gi.skip_trigrams(model, tokens=WORDS, sources=23, top=23, least=30)
    assert (pairs[got["source_id"], got["destination_id"]] >= 30).all()
    assert 0 not in got["source_id"].tolist()  # every sequence begins with it
    assert got["ov"].gt(0).all()
    few = gi.skip_trigrams(model, tokens=WORDS, sources=2, top=1, least=30)
    for head, mine in few.groupby("head"):
        every = got[got["head"] == head]
        best = every.loc[every.groupby("source_id")["strength"].idxmax()]
        best = best.sort_values("strength", ascending=False)[:2]
        assert mine[IDS].values.tolist() == best[IDS].values.tolist()
    assert gi.skip_trigrams(model, tokens=WORDS, heads=[2])["head"].unique().tolist() == [2]


def test_pairs_and_continuations_by_hand():
    tokens = torch.tensor([[7, 1, 2, 1, 3], [7, 2, 1, 3, 1], [7, 2, 2, 2, 2]])
    assert seen_pairs(tokens, torch.tensor([1, 2, 3])).tolist() == [[2, 1, 2], [2, 1, 2], [1, 0, 0]]
    assert last_before(tokens, 2).tolist()[0] == [-1, -1, -1, 2, 2]
    count = Continuations(tokens)
    # 1 behind a 2: once before 3, once before 3; without one: once, before 2.
    assert count(2, 1, 3) == (2, 2, 0.0)
    assert count(2, 1, 2) == (2, 0, 2.0)
    assert np.isnan(count(7, 1, 3)[2])
    assert count(1, 9, 3)[:2] == (0, 0)


def test_held_out_text_is_in_order_and_without_overlap(tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat on the mat again.\n" * 400)
    task = gi.TextTask(tmp_path / "text.txt", 9, vocab=262, folder=tmp_path)
    config = gi.LanguageModelConfig(d_vocab=262, n_ctx=9, d_model=8, n_heads=2)
    model = gi.build_language_model(config, task)
    ids = task.part("test").ids
    found = held_out_text(model, None)[:, 1:].flatten()
    assert found.tolist() == ids[: len(found)].tolist()
    assert len(gi.skip_trigrams(model, sources=1)) > 0


@pytest.mark.parametrize("spliced", [False, True])
@torch.no_grad()
def test_an_effect_is_what_cutting_one_edge_does(spliced):
    """Each place again: the whole model, one row at a time, through TransformerLens' own hooks."""
    model = language_model(n_layers=2)
    if spliced:
        config = gi.GatedConfig(d_model=12, n_heads=4, d_head=5, normalize_weights=False)
        model = gi.splice(model, 0, models.fill(gi.GatedAttention(config), 3, scale=0.4))
    found = gi.skip_trigrams(model, 0, WORDS, sources=2, top=2, least=3)
    got = gi.confirm_skip_trigrams(model, found, WORDS, 0, most=7, seed=4)
    name = f"blocks.0.attn.hook_{'gated_' if spliced else ''}pattern"
    mine = got.examples.sample(15, random_state=1)
    for e in mine.itertuples():
        read = WORDS[e.row]
        assert read[e.query_pos] == e.destination_id
        assert read[e.key_pos] == e.source_id != read[e.control_pos]
        assert e.control_pos < e.query_pos
        assert not (read[e.key_pos + 1 : e.query_pos] == e.source_id).any()
        assert e.followed == (read[e.query_pos + 1] == e.out_id)

        def cut(pattern, hook, e=e, at=None):
            pattern[:, e.head, e.query_pos, at] = 0
            return pattern

        logits = [model(read[None])[0, e.query_pos]]
        for at in (e.key_pos, e.control_pos):
            edit = (name, lambda p, hook, at=at: cut(p, hook, at=at))
            logits.append(model.run_with_hooks(read[None], fwd_hooks=[edit])[0, e.query_pos])
        p = [each.log_softmax(-1) for each in logits]
        assert_close(e.effect, p[0][e.out_id] - p[1][e.out_id], scale=4)
        assert_close(e.other_edge, p[0][e.out_id] - p[2][e.out_id], scale=4)
        off = logits[0] - logits[1]
        assert_close(e.logit, off[e.out_id] - off.mean(), scale=4)
        away = (p[0] - p[1] - e.other_out).abs()
        away[e.out_id] = 1
        assert away.min() < 1e-5  # that of some other token
    assert not got.examples.duplicated([*IDS, "row"]).any()


def test_a_source_may_stand_first():
    model = language_model()
    row = gi.skip_trigrams(model, tokens=WORDS, sources=2, top=2, least=3).iloc[[0]]
    source, destination = int(row["source_id"].iloc[0]), int(row["destination_id"].iloc[0])
    filler = next(t for t in range(1, 23) if t not in (source, destination))
    words = torch.full((8, 6), filler)
    words[:, 0], words[:, 3] = source, destination
    got = gi.confirm_skip_trigrams(model, row, words, 0, most=8, seed=4).examples
    assert sorted(got["row"]) == list(range(8))
    assert set(got["key_pos"]) == {0}
    assert set(got["query_pos"]) == {3}


@torch.no_grad()
def test_a_head_that_was_not_picked_says_nothing_directly():
    model = language_model()
    layer = TopKAttention.from_attention(model.blocks[0].attn, 2, k=2, seed=1)
    places = torch.tensor([[row, 12] for row in range(20)])
    source = WORDS[:20, 5].mode().values
    effect = _direct(gi.splice(model, 0, layer), 0, WORDS, places, int(source), 3)
    there = (WORDS[:20, :12] == source).any(1)
    assert effect.shape == (20, 6)
    assert ((effect != 0).sum(1) == 2 * there).all()
    assert there.any()


def test_the_table_sums_up_the_places(measured):
    table = measured.table
    row = table[table["confirmed"]].iloc[0]
    mine = measured.examples
    for c in IDS:
        mine = mine[mine[c] == row[c]]
    assert len(mine) == row["n"] == 40
    assert_close(row["effect"], mine["effect"].mean())
    half = 2.0226909 * mine["effect"].std() / 40**0.5  # t of 39 degrees of freedom
    assert_close(row["effect_low"], row["effect"] - half, scale=row["effect"], roundings=200)
    beyond = mine["effect"] - mine["other_edge"]
    low = beyond.mean() - 2.0226909 * beyond.std() / 40**0.5
    assert_close(row["beyond_edge_low"], low, scale=row["effect"], roundings=200)


def test_what_is_confirmed_is_what_the_model_holds(measured):
    table = measured.table[measured.table["confirmed"]]
    said = set(map(tuple, table[["head", "destination_id", "out_id"]].values.tolist()))
    held = {(0, B1, C1), (0, B3, C3), (1, B2, C2), (1, B3, C3)}
    crossed = {(0, B1, C3), (0, B3, C1), (1, B2, C3), (1, B3, C2)}
    assert said == held | crossed
    assert table["source"].unique().tolist() == ["A"]
    # Nobody reads A elsewhere: the other edge does nothing, nor the edge to another token.
    assert table["other_edge"].abs().max() < 0.2
    assert (table["effect"] > table["other_out"]).all()


def test_only_where_it_is_followed(truth, text):
    asked = pd.DataFrame([[0, A, B1, C1], [0, A, B1, C3]], columns=IDS)
    every = gi.confirm_skip_trigrams(truth.model, asked, text, most=400).table
    only = gi.confirm_skip_trigrams(truth.model, asked, text, most=400, followed=True).table
    assert every["n"].tolist()[0] == every["n"].tolist()[1] > 40
    assert only["n"].tolist() == only["followed"].tolist()
    assert 0 <= only["n"][1] < every["followed"][0] <= only["n"][0]  # C3 comes by chance alone


def test_the_seed_decides_and_nothing_else(truth, text):
    asked = pd.DataFrame([[0, A, B1, C1], [1, A, B3, C3]], columns=IDS)

    def run(table, seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found = gi.confirm_skip_trigrams(truth.model, table, text, most=9, seed=seed).examples
        assert torch.equal(before, torch.get_rng_state())
        return found

    assert run(asked, 1).equals(run(asked, 1))
    alone = run(asked[1:], 1)
    both = run(asked, 1)
    assert both[both["head"] == 1].reset_index(drop=True).equals(alone)
    assert not run(asked, 2)["row"].equals(run(asked, 1)["row"])


def test_groups_find_out_whether_the_destination_matters(truth, text):
    """Head 0 reads A at B1 and B3 alone; a head of even attention reads it everywhere alike."""
    asked = pd.DataFrame([[0, A, B1, C1]], columns=IDS)
    found = gi.confirm_skip_trigrams(truth.model, asked, text, most=40, common=6)
    assert found.table["circuits"].tolist() == [True] + [False] * (len(found.table) - 1)
    assert len(found.table) == 6
    group = found.groups().iloc[0]
    assert group["depends"]
    assert group["p"] < 1e-3
    assert group["between_alike"] > 0.3
    assert (group["source"], group["out"], group["destinations"]) == ("A", "C1", 6)
    assert group["n"] == found.table["n"].sum()
    # Of a head that looks at what is near, whatever it is, only the first test finds a difference.
    distance = found.examples["query_pos"] - found.examples["key_pos"]
    noise = np.random.default_rng(0).normal(size=len(distance))
    near = found.examples.assign(logit=2.0 ** -np.floor(np.log2(distance)) + 1e-3 * noise)
    flat = dataclasses.replace(found, examples=near).groups().iloc[0]
    assert not flat["depends"]
    assert abs(flat["between_alike"]) < 0.1
    one = found.examples[found.examples["destination_id"] == B1]
    assert np.isnan(dataclasses.replace(found, examples=one).groups()["p_alike"][0])


def test_the_permutation_test_keeps_its_level():
    """Groups that say nothing beyond their stratum are called different in one case of twenty."""
    draw = np.random.default_rng(0)
    ps = []
    for _ in range(200):
        stratum = draw.integers(3, size=60)
        group = np.where(draw.random(60) < 0.7, stratum, draw.integers(3, size=60))
        ps.append(alike(5 * stratum + draw.normal(size=60), group, stratum, draw)[0])
    assert 0.01 < np.mean(np.array(ps) < 0.05) < 0.1
    group, stratum = np.arange(60) % 3, np.arange(60) // 30
    p, share = alike(group + 0.1 * draw.normal(size=60), group, stratum, draw)
    assert p < 0.01
    assert share > 0.9


def test_a_head_that_says_two_things_must_say_two_more(measured, truth, text):
    """By hand: head 0 says C1 at B1 and C3 at B3, so it says C3 at B1 and C1 at B3 as well."""
    found = gi.skip_trigram_bugs(measured).set_index("head")
    for head in (0, 1):
        row = found.loc[head]
        assert row[["wanted", "crossed", "raised", "bugs"]].tolist() == [2, 2, 2, 2]
        assert row["share"] == 1
        assert row["followed"] < row["expected"]
    whole = found.loc[found.index.isna()].iloc[0]
    assert whole["bugs"] == 4
    assert 0.3 < whole["low"] < 0.6
    table = measured.table.set_index(IDS)["effect"]
    bugs = [table[0, A, B1, C3], table[0, A, B3, C1], table[1, A, B2, C3], table[1, A, B3, C2]]
    assert_close(whole["effect"], np.mean(bugs))
    high = gi.skip_trigram_bugs(measured, least=100.0)
    assert high[["trigrams", "crossed"]].to_numpy().sum() == 0
    # Where the crossed continuations come as often as not, they are no bugs.
    odd = text.clone()
    for b, c in ((B1, C3), (B3, C1), (B2, C3), (B3, C2)):
        rows = torch.tensor([[BOS, A, b, c, BOS, BOS, BOS, BOS, BOS, BOS, BOS]] * 20)
        odd = torch.cat([odd, rows])
    assert gi.skip_trigram_bugs(measured, odd).set_index("head").loc[0, "bugs"] == 0


def test_a_head_of_its_own_for_each_has_no_bugs(text):
    own = manual_model(3, 3, [[0], [1], [2]])
    found = gi.confirm_skip_trigrams(own.model, gi.skip_trigrams(own.model, tokens=text), text)
    assert found.table["confirmed"].sum() == 3
    rows = gi.skip_trigram_bugs(found)
    assert rows["wanted"].tolist() == [1, 1, 1, 3]
    assert rows["crossed"].eq(0).all()
    assert rows["share"].isna().all()


def test_who_holds_a_trigram_before_and_after(truth, text):
    """Two heads hold trigram 3; a gated block that gives it a head of its own does not."""
    own = manual_model(3, 3, [[0], [1], [2]])
    block = gi.GatedAttention.from_attention(
        own.model.blocks[0].attn, 1, init="duplicate", noise=0.0, gate="open",
        normalize_weights=False,
    )  # fmt: skip
    after = gi.splice(truth.model, 0, block)
    asked = pd.DataFrame([[A, B1, C1], [A, B2, C2], [A, B3, C3], [A, B3, C1]], columns=IDS[1:])
    found = gi.skip_trigram_holders(after, asked, text).set_index("out")
    assert found["held_by"].tolist() == ["L0H0", "L0H1", "L0H2"]
    assert found.loc["C3", ["share", "heads"]].tolist() == pytest.approx([1, 1])
    assert found.loc["C3", ["share_original", "heads_original"]].tolist() == pytest.approx([0.5, 2])
    assert found.loc["C2", "held_by_original"] == "L0H1"
    assert "held_by_original" not in gi.skip_trigram_holders(truth.model, asked, text)
    shut = gi.unsplice(after)
    block = gi.GatedAttention.from_attention(shut.blocks[0].attn)
    block.force_gates(0)
    nobody = gi.skip_trigram_holders(gi.splice(shut, 0, block), asked, text)
    assert set(nobody["held_by"]) == {""}
    assert set(nobody["heads"]) == {0.0}
    assert nobody["share"].isna().all()
    assert len(gi.skip_trigram_holders(after, asked, text[(text != A).all(1)])) == 0


@torch.no_grad()
def test_direct_effects_are_those_of_attribution():
    model = language_model("LN")
    asked = pd.DataFrame([[3, 7, 9], [3, 8, 9]], columns=IDS[1:])
    found = gi.skip_trigram_holders(model, asked, WORDS, most=1000)
    at = (torch.isin(WORDS, torch.tensor([7, 8])) & (last_before(WORDS, 3) >= 0)).nonzero()
    assert found["n"][0] == len(at[:, 0].unique())
    only = [i for i in range(len(at)) if (at[:, 0] == at[i, 0]).sum() == 1]
    rows, query = at[only].T
    tokens = WORDS[rows]
    again = gi.skip_trigram_holders(model, asked, tokens, most=1000)
    here, each = torch.arange(len(rows)), []
    for out in range(23):
        parts = gi.source_attribution(model, tokens, here, query, torch.full_like(query, out))
        from_source = (tokens == 3) & (torch.arange(13) < query[:, None])
        each.append((parts * from_source[:, None]).sum(-1))
    writes = torch.stack(each)
    mean = (writes[9] - writes.mean(0)).mean(0)
    assert_close(again["effect"][0], mean.sum(), scale=mean.abs().sum(), roundings=200)
    assert_close(again["share"][0], mean.max() / mean.abs().sum(), scale=1, roundings=200)
    assert again["held_by"][0] == f"L0H{int(mean.argmax())}"


def test_nothing_is_cut_without_an_edge(truth, text):
    here = torch.full((4,), 5)
    assert_close(logits_at(truth.model, text[:4], here), truth.model(text[:4])[:, 5].detach())


def test_bad_input_in_one_sentence(truth, text):
    model = truth.model
    ok = pd.DataFrame([[0, A, B1, C1]], columns=IDS)
    for call, says in (
        (lambda: gi.skip_trigrams(model), "names no text; give tokens"),
        (lambda: gi.skip_trigrams(model, 3, text), "layer 3 is not there"),
        (lambda: gi.skip_trigrams(model, tokens=text, top=0), "top is 0; it must be at least 1"),
        (lambda: gi.skip_trigrams(model, tokens=text, heads=[2]), "head 2 is not there"),
        (lambda: gi.skip_trigrams(model, tokens=text[:2], least=99), "no token comes 99 times"),
        (lambda: gi.skip_trigrams(model, tokens=text, names=["x"]), "1 names; the model has 8"),
        (lambda: gi.confirm_skip_trigrams(model, ok[IDS[:3]], text), "no column out_id"),
        (lambda: gi.confirm_skip_trigrams(model, ok[:0], text), "0 rows"),
        (lambda: gi.confirm_skip_trigrams(model, ok + 5, text), "head 5 is not there"),
        (lambda: gi.confirm_skip_trigrams(model, ok.assign(out_id=8), text), "token 8 is outside"),
        (lambda: gi.confirm_skip_trigrams(model, ok, text, most=1), "most is 1"),
        (lambda: gi.skip_trigram_holders(model, ok[["head"]], text), "no column 'source_id'"),
    ):
        with pytest.raises(gi.GatedInterpError, match=says):
            call()
    kind = kind_named("sae")
    config = kind.config_type(d_model=8, n_heads=4)
    sae = gi.splice(model, 0, kind.from_config(config, model.blocks[0].attn))
    with pytest.raises(gi.GatedInterpError, match="no attention and so no circuits"):
        gi.skip_trigrams(sae, tokens=text)
