"""read_heads and its page: known answers, sums that must agree, and what a page must not do."""

import base64
import io
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from closeness import assert_close
from refusals import refuses
from test_decompose import block, model, task  # noqa: F401

import gated_interp as gi
from gated_interp.analysis.heads import intervened
from gated_interp.analysis.read_heads import read_attention
from gated_interp.anatomy.batch import Batch
from gated_interp.core.written import times
from gated_interp.experiments.decompose import held_out
from gated_interp.metrics.predictions import next_token_loss
from gated_interp.models.analytic import manual_model
from gated_interp.plots.head_page import cards, head_page, shown
from gated_interp.replacements.replacement import active


def test_a_model_whose_answer_is_known():
    """Head 0 writes C1 and a share of C3 where it sees A, head 1 likewise of C2; nothing else."""
    truth = manual_model(2, 3)
    found = gi.read_heads(truth.model, tokens=truth.task.sample_single(300, seed=1).tokens, top=2)
    by_head = found.table.set_index("head")
    assert by_head["sources"].tolist() == [["A"], ["A"]]
    assert by_head["outputs"].tolist() == [["C1"], ["C2"]]
    assert by_head.loc[0, "destinations"][0] in ("B1", "A", "B3")
    assert by_head["held"].gt(0).all()
    assert by_head["effect"].gt(0).all()  # each is needed
    assert (by_head["effect_low"] < by_head["effect"]).all()
    said = found.contexts.groupby("head")["output"].unique()
    assert said[0].tolist() == ["C1"]
    assert said[1].tolist() == ["C2"]


def test_the_numbers_are_those_of_other_measures(model, block):  # noqa: F811
    tokens = held_out(model, model.task, "test", 20).tokens
    spliced = gi.splice(model, 1, block)
    found = gi.read_heads(spliced, 1, tokens)
    table = found.table.set_index("head").sort_index()
    name = "blocks.1.attn.hook_z"
    _, cache = spliced.run_with_cache(tokens)
    z = cache[name]
    writes = active(z, block.W_O)[:, 1:].double().mean((0, 1))
    assert table["active"].tolist() == pytest.approx(writes.tolist(), abs=1e-3)
    assert table["share"].sum() == pytest.approx(1)
    by_head = gi.text_holders(spliced, 1, tokens).by_head()
    assert table["held"].tolist() == by_head["share"].tolist()
    assert table["entropy"].tolist() == by_head["entropy"].tolist()
    before = next_token_loss(spliced(tokens), tokens).mean()

    def without(z):
        z = z.clone()
        z[:, :, 3] = 0
        return z

    with intervened(spliced, {name: without}):
        after = next_token_loss(spliced(tokens), tokens).mean()
    assert table.loc[3, "effect"] == pytest.approx((after - before).item(), abs=1e-5)
    assert found.table["effect"].is_monotonic_decreasing


def test_what_a_head_reads_adds_up_to_what_it_writes_at_most(model, block):  # noqa: F811
    tokens = held_out(model, model.task, "test", 5).tokens
    spliced = gi.splice(model, 1, block)
    z, reads, attends = read_attention(spliced, Batch(tokens), 1)
    _, cache = spliced.run_with_cache(tokens)
    pattern, v = cache["blocks.1.attn.hook_pattern"], cache["blocks.1.attn.hook_v"]
    gate = cache["blocks.1.attn.hook_gate"]
    size = torch.einsum("bkhd,hdm->bkhm", v, block.W_O).norm(dim=-1).permute(0, 2, 1)
    assert_close(attends, pattern * size[:, :, None], roundings=64)
    assert_close(reads, pattern * gate * size[:, :, None], roundings=64)
    length = torch.einsum("bphd,hdm->bphm", z, block.W_O).norm(dim=-1).permute(0, 2, 1)
    assert (length <= reads.sum(-1) * (1 + 1e-4) + 1e-6).all()  # triangle inequality


def test_base_rates_are_those_of_chance(model):  # noqa: F811
    tokens = held_out(model, model.task, "test", 4).tokens
    names = [str(i) for i in range(model.cfg.d_vocab)]
    details = gi.read_heads(model, 0, tokens, names=names, top=model.cfg.d_vocab).details
    evenly, stands, comes = (torch.zeros(model.cfg.d_vocab).double() for _ in range(3))
    comes += 1
    for row in tokens.tolist():
        for q in range(1, len(row)):
            stands[row[q]] += 1
            comes[row[q]] += 1
            for k in range(q + 1):
                evenly[row[k]] += 1 / (q + 1)
    for role, rate in {"source": evenly, "destination": stands, "output": comes}.items():
        mine = details[details["role"] == role]
        base = (rate / rate.sum())[mine["token"].astype(int).tolist()].numpy()
        assert mine["base"].tolist() == pytest.approx(base.tolist(), rel=1e-6)
        assert mine["lift"].tolist() == pytest.approx((mine["share"] / base).tolist(), rel=1e-4)


def test_cards_name_what_is_more_frequent_than_chance(model):  # noqa: F811
    tokens = held_out(model, model.task, "test", 4).tokens
    found = gi.read_heads(model, 0, tokens, top=model.cfg.d_vocab)
    (side,) = cards({"model": found}, [str(i) for i in range(model.cfg.d_vocab)])
    named = sum(len(chips) for card in side["cards"] for _, chips in card["roles"])
    assert named == (found.details["lift"] > 1.05).sum() < len(found.details)
    first = found.details[found.details["head"] == found.table["head"][0]].iloc[0]
    chip = side["cards"][0]["roles"][0][1][0]
    assert chip["said"] == f"{times(first['lift'])}, {first['share']:.0%}"


def test_contexts_are_where_the_head_writes_most(model):  # noqa: F811
    tokens = held_out(model, model.task, "test", 30).tokens
    found = gi.read_heads(model, 0, tokens, contexts=3)
    z, reads, _ = read_attention(model, Batch(tokens), 0)
    W_O = model.blocks[0].attn.W_O
    length = torch.einsum("bphd,hdm->bphm", z, W_O).norm(dim=-1)[:, 1:]
    for head, places in found.contexts.groupby("head"):
        assert len(places) == 3
        assert places["row"].is_unique
        longest = length[:, :, head].amax(1)
        assert_close(longest[places["row"].tolist()], longest.sort(descending=True)[0][:3])
        for i, place in places.iterrows():
            assert place["length"] == pytest.approx(longest[place["row"]].item(), rel=1e-4)
            mine = reads[place["row"], head, place["position"]]
            assert_close(found.reads[i], mine, roundings=64)


def test_refusals(model):  # noqa: F811
    tokens = model.task.sample(2, seed=0).tokens
    with refuses("which-layer-of-heads"):
        gi.read_heads(model, tokens=tokens)
    with refuses("too-few-names", names=2, tokens=270):
        gi.read_heads(model, 0, tokens, names=["a", "b"])
    toy = gi.load("2H3ST-toy")
    with refuses("no-text"):
        gi.read_heads(toy)
    sae = gi.fit_replacement(model, 0, method="sae on output", steps=1, progress=False).model
    with refuses("layer-without-sources"):
        gi.read_heads(gi.splice(model, 0, sae), 0, tokens)


# ---- the page


class Seen(HTMLParser):
    """Tags with their attributes, and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(model, block):  # noqa: F811
    tokens = held_out(model, model.task, "test", 10).tokens
    names = [f"<script>alert({i})</script>" for i in range(270)]
    sides = {
        "original": gi.read_heads(model, 1, tokens, names=names),
        "block": gi.read_heads(gi.splice(model, 1, block), 1, tokens, names=names),
    }
    return head_page("a <b> title", "said", sides, names, [("loss", ["1", "2"])]), sides


def test_every_head_has_a_card_sorted_by_effect(page):
    html, sides = page
    ids = re.findall(r'<article class="card" id="([^"]+)"', html)
    expected = [f"{side}-L1H{h}" for side, read in sides.items() for h in read.table["head"]]
    assert ids == expected


def test_labels_that_spell_a_script_are_text(page):
    seen = Seen(page[0])
    assert "script" not in {tag for tag, _ in seen.tags}
    assert any("<script>alert(" in words for words in seen.words)
    assert "a <b> title" in seen.words


def test_it_asks_nobody_for_anything(page):
    for tag, attributes in Seen(page[0]).tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), tag


def test_its_numbers_are_there_to_download(page):
    html, sides = page
    found = re.findall(r'href="data:text/csv;base64,([^"]+)"', html)
    for data, read in zip(found, sides.values(), strict=True):
        table = pd.read_csv(io.BytesIO(base64.b64decode(data)))
        assert table["head"].tolist() == read.table["head"].tolist()
        assert table["effect"].tolist() == pytest.approx(read.table["effect"].tolist(), rel=1e-4)


def test_a_newline_is_seen():
    assert shown(" a\n") == " a⏎"
