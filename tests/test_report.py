"""The report of a model: what it says, whether its files hold the numbers, what it refuses."""

import base64
import dataclasses
import html
import io
import itertools
import re
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from commands import cli, one_sentence
from refusals import refuses, says
from test_decompose import block, model, task  # noqa: F401

import gated_interp as gi
from gated_interp.analysis.circuit_tables import (
    circuit_table,
    circuits_of,
    largest_entries,
    prefix_matching,
)
from gated_interp.analysis.holders import holders
from gated_interp.analysis.induction import induction_scores, repeated_random_tokens
from gated_interp.analysis.measures import shares
from gated_interp.anatomy.batch import Batch
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.core.written import number
from gated_interp.core.written import short as written_short
from gated_interp.experiments import conclusion
from gated_interp.experiments.report import report
from gated_interp.models.analytic import manual_model
from gated_interp.plots import heatmaps
from gated_interp.subject import Subject, ablations
from gated_interp.training.config import TrainConfig
from gated_interp.views import frontier, strongest
from gated_interp.views import page as pages
from gated_interp.views.shown import Shown

SECTIONS = ["holders", "frontier", "heads", "circuits", "ablations", "provenance"]
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """A report taken apart: tags with attributes, words, headings, and its files as tables."""

    def __init__(self, source):
        super().__init__()
        self.html, self.tags, self.words = source, [], []
        self.feed(source)
        self.csv = {
            name: pd.read_csv(io.BytesIO(base64.b64decode(data)))
            for name, data in re.findall(
                r'<a download="([^"]+)" href="data:text/csv;base64,([^"]+)"', source
            )
        }

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def assert_same(found, expected):
    """A file against the table it was written from: to seven digits."""
    again = pd.read_csv(io.StringIO(expected.to_csv(index=False)))
    pd.testing.assert_frame_equal(found, again, check_dtype=False, rtol=1e-5, atol=1e-7)


def gated(**options):
    """The published manual model with an untrained block of 3 heads in its place."""
    toy = manual_model(2, 3).model
    made = gi.GatedAttention.from_attention(
        toy.blocks[0].attn, 1.5, gate_bias_init=0.7, seed=3, **options
    )
    return gi.splice(toy, 0, made)


def written(tmp_path, source, **options):
    """A report whose figures the page draws, which is quick."""
    options = {"interactive": True, "sequences": 20, **options}
    return Page(report(source, tmp_path / "page.html", **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def toy_page(tmp_path_factory):
    return written(tmp_path_factory.mktemp("toy"), gated(), seed=3)


@pytest.fixture(scope="module")
def text_page(tmp_path_factory, model, block):  # noqa: F811
    spliced = gi.splice(model, 1, block)
    names = [f"{HOSTILE}{i}" for i in range(270)]
    spliced.model_name = HOSTILE
    spliced.notes = {"by": HOSTILE}
    return written(tmp_path_factory.mktemp("text"), spliced, names=names, sequences=8)


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory, model):  # noqa: F811
    """A language model of two layers without a block."""
    return written(tmp_path_factory.mktemp("plain"), model, sequences=8)


# ---- what every page is


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("toy_page", "text_page")]


@pytest.fixture(params=[*SLOW, "plain_page"])
def page(request):
    return request.getfixturevalue(request.param)


def test_it_has_every_section_and_links_to_each(page):
    first, *others = [a["id"] for a in page.all("h2")]
    assert first == "in-short"
    assert [name for name in others if name != "overview"] == SECTIONS
    links = [a["href"] for a in page.all("a") if a["href"].startswith("#")]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    assert {f"#{name}" for name in ["in-short", *SECTIONS]} <= set(links)
    assert page.html.index("<nav") < page.html.index("<h1") < page.html.index('id="in-short"')


def test_headings_do_not_skip_a_level(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_it_is_small_and_asks_nobody_for_anything(page):
    assert len(page.html.encode()) < 5_000_000
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), tag
    assert "default-src 'none'" in page.all("meta")[1]["content"]


def test_every_figure_says_what_it_shows_and_has_its_numbers(page):
    plots = [a for a in page.all("div") if a.get("class") == "plot"]
    assert len(plots) == len(page.all("figure")) > 0
    assert all(len(a["aria-label"]) > 20 for a in plots)
    assert len(page.csv) > len(plots)
    assert all(len(table) and len(table.columns) > 1 for table in page.csv.values())


def test_a_table_has_a_caption_and_names_its_rows_and_columns(page):
    tables = len(page.all("table"))
    assert len(page.all("caption")) == tables > 2
    scopes = [a["scope"] for a in page.all("th")]
    assert scopes.count("row") > tables
    assert scopes.count("col") > tables


# ---- the numbers


@pytest.mark.slow
def test_a_toy_holders_are_those_of_the_analysis(toy_page):
    spliced = gated()
    for side, one in {"original": gi.unsplice(spliced), "block": spliced}.items():
        found = holders(one, spliced.task)
        mine = toy_page.csv["holders-L0.csv"]
        mine = mine[mine["model"] == side]
        shape = found.alone.shape
        for column, values in {"alone": found.alone, "without": found.without}.items():
            expected = values.flatten().tolist()
            assert mine[column].tolist() == pytest.approx(expected, rel=1e-6)
        held = mine["holds"].to_numpy().reshape(shape)
        assert {b + 1: np.flatnonzero(row).tolist() for b, row in enumerate(held)} == found.holders


@pytest.mark.slow
def test_a_toy_faithfulness_is_that_of_the_analysis(toy_page):
    spliced = gated()
    tokens = spliced.task.sample(20, derive(3, Stream.SHOWN_SEQUENCES)).tokens
    found = gi.block_measures(spliced, 0, tokens)
    table = toy_page.csv["faithfulness-L0.csv"].set_index("measure")
    assert "held_share" not in table.index  # of trigrams, holding is another thing
    assert len(table) == 12
    for measure, value in table["block"].items():
        assert value == pytest.approx(found[measure], rel=1e-5), measure
    assert table.loc["ce", "original"] == pytest.approx(found["ce_original"], rel=1e-6)
    sampled = table.dropna(subset="low")
    assert {"fvu", "kl", "ce", "gates_per_pair"} <= set(sampled.index)
    assert (sampled["low"] <= sampled["block"]).all()
    assert (sampled["block"] <= sampled["high"]).all()
    place = toy_page.csv["frontier-point.csv"].set_index("name")
    assert place.loc["block", "fvu"] == table.loc["fvu", "block"]
    assert place.loc["original", "fvu"] == 0
    assert place.loc["original", "gates_per_pair"] == 2


@pytest.mark.slow
def test_a_toy_ablations_and_circuits_are_those_of_the_analysis(toy_page):
    spliced = gated()
    for side, one in {"original": gi.unsplice(spliced), "block": spliced}.items():
        assert_same(toy_page.csv[f"ablation-{side}.csv"], ablations(one))
    expected = circuit_table(circuits_of(spliced), spliced.task.token_names)
    assert_same(toy_page.csv["circuits.csv"], expected)


@pytest.mark.slow
def test_a_text_page_has_the_numbers_of_the_analyses(text_page, model, block):  # noqa: F811
    spliced = gi.splice(model, 1, block)
    tokens = model.task.part("test").sample(8, derive(0, Stream.SHOWN_SEQUENCES)).tokens
    found = gi.block_measures(spliced, 1, tokens)
    table = text_page.csv["faithfulness-L1.csv"].set_index("measure")
    assert table["block"].to_dict() == pytest.approx({m: found[m] for m in table.index}, rel=1e-5)
    ends = table.dropna(subset="low")
    assert {"ce_recovered_zero", "ce_recovered_mean"} <= set(ends.index)
    shares = text_page.csv["held-share-L1.csv"].set_index("model")["held_share"]
    assert shares["block"] == pytest.approx(gi.text_holders(spliced, 1, tokens).share)
    assert shares["original"] == pytest.approx(gi.text_holders(model, 1, tokens).share)
    names = [f"{HOSTILE}{i}" for i in range(270)]
    cards = text_page.csv["block.csv"]
    read = gi.read_heads(spliced, 1, tokens, names=names).table
    assert cards["effect"].tolist() == pytest.approx(read["effect"].tolist(), rel=1e-4, abs=1e-9)
    assert cards["outputs"].tolist() == [" | ".join(said) for said in read["outputs"]]
    effects = text_page.csv["effects-L1.csv"].query("model == 'block'").set_index("head")
    effects = effects.loc[read["head"], "effect"].tolist()
    assert effects == pytest.approx(read["effect"].tolist(), abs=1e-5)  # two ways to one number
    expected = ablations(spliced, [1], Batch.of(spliced, tokens))
    assert_same(text_page.csv["ablation-block.csv"], expected)
    scores = induction_scores(spliced, repeated_random_tokens(spliced))
    expected = largest_entries(spliced, 1, names, prefix_matching(scores))
    assert_same(text_page.csv["circuits-block.csv"], expected)


def test_a_model_without_a_block_stands_alone(plain_page, model):  # noqa: F811
    assert "No block was spliced into this model" in plain_page.html
    assert "faithfulness-L0.csv" not in plain_page.csv
    tokens = model.task.part("test").sample(8, derive(0, Stream.SHOWN_SEQUENCES)).tokens
    table = plain_page.csv["sparsity.csv"]
    loss = gi.faithfulness(model, tokens).cross_entropy.mean().item()
    assert table["value"][0] == pytest.approx(loss, rel=1e-6)
    assert {"held-L0.csv", "held-L1.csv", "composition.csv"} <= set(plain_page.csv)
    assert {"layer-0--model.csv", "layer-1--model.csv"} <= set(plain_page.csv)


@pytest.mark.slow
def test_a_toy_alone_stands_alone(tmp_path):
    page = written(tmp_path, manual_model(2, 3).model)
    assert "before and after" not in page.html
    assert set(page.csv["ablation-model.csv"]["heads"]) == {"L0H0", "L0H1", "all heads"}


@pytest.mark.slow
def test_another_task_has_its_tables_and_figures(tmp_path):
    truth = gi.analytic.conditional_heads()
    page = written(tmp_path, truth.model)
    held = page.csv["holders-L0.csv"]
    assert held["case"].nunique() == len(truth.task.cases)
    drawn = {"circuits.csv", "loadings.csv", "attention.csv", "wiring-model-reads.csv"}
    assert drawn <= set(page.csv)
    cases = set(truth.task.cases.values())
    assert set(page.csv["loadings.csv"]["representation"]) == cases
    assert "answer of each question, on average." in page.html
    assert "trigram" not in re.sub(r"<script.*?</script>", "", page.html, flags=re.S).lower()


def test_a_model_of_ones_own_needs_its_tokens_alone(tmp_path, model):  # noqa: F811
    tokens = model.task.part("test").sample(6, 0).tokens
    own = gi.text.build_language_model(model.language_config)
    own.load_state_dict(model.state_dict())
    page = written(tmp_path, own, layer=1, tokens=tokens, names=[f"t{i}" for i in range(270)])
    assert "t1" in "".join(page.csv["circuits-model.csv"]["writes"])
    assert page.csv["provenance.csv"].set_index("name")["value"]["task"] == "none named"
    with refuses("no-text"):
        report(own, tmp_path / "other.html")


@pytest.mark.slow
def test_it_says_what_made_it(toy_page):
    facts = toy_page.csv["provenance.csv"].set_index("name")["value"]
    assert facts["gated-interp"] == gi.__version__
    assert facts["made by"] == "gi.report('2H3ST', 'page.html')"
    assert facts["seed of these, and of the bootstrap"] == "3"
    assert len(facts["hash of the weights"]) == 16


@pytest.mark.slow
def test_the_same_seed_gives_the_same_page(tmp_path):
    first = written(tmp_path, manual_model(2, 3).model).html
    state = torch.get_rng_state()
    assert written(tmp_path, manual_model(2, 3).model).html == first
    assert torch.equal(torch.get_rng_state(), state)
    assert written(tmp_path, manual_model(2, 3).model, seed=1).html != first


# ---- the conclusion


def points(page):
    """The words of the conclusion."""
    part = page.html.partition('id="in-short"')[2].partition("</ul>")[0]
    return html.unescape(re.sub(r"<[^>]+>", "", part))


def shown(view, subject):
    return {s.name: s.table for s in view.show(subject)}


def said_of(subject, sections):
    found, _ = conclusion.conclusion(subject, sections)
    return "\n".join(f"{point.label} {point.words}" for point in found)


def test_a_text_conclusion_has_the_numbers_of_the_analyses(plain_page, model):  # noqa: F811
    tokens = model.task.part("test").sample(8, derive(0, Stream.SHOWN_SEQUENCES)).tokens
    said = points(plain_page)
    assert plain_page.html.index('id="in-short"') < plain_page.html.index('id="holders"')
    for layer in range(2):
        mine = said.partition(f"What heads share in layer {layer}")[2].partition("\n")[0]
        share = gi.text_holders(model, layer, tokens).share
        assert f"at {share:.1%} of positions" in mine
        effects = gi.head_effects(model, layer, permutations=2, seed=0)
        found = effects.summary()
        assert f"{found['effect']:+.3f} nats".replace("-", "−") in mine
        if effects.matters:
            assert f"{found['carriers']} of {model.cfg.n_heads} heads" in mine
            top = effects.table().iloc[:-1].nlargest(1, "share").iloc[0]
            assert f"{top['head']} has the largest share, {top['share']:.0%}" in mine
        else:
            assert "no more than noise" in mine
    assert "8 sequences of" in said


def test_a_toy_conclusion_says_who_holds_what_and_who_shares():
    truth = manual_model(2, 3)  # trigram 1 is written by head 0, 2 by head 1, 3 by both
    subject = Subject.of(truth.model, sequences=20)
    said = said_of(subject, {})
    found = holders(truth.model, truth.task)
    cases = truth.task.cases
    alone = {b: heads[0] for b, heads in found.holders.items() if len(heads) == 1}
    assert f"{len(alone)} of 3 trigrams are held" in said or "No trigram is held" in said
    for b, name in cases.items():
        for h in range(2):
            assert (f"L0H{h} holds {name}" in said) == (alone.get(b) == h)
    parts = shares(subject.at[0]["model"].loadings)
    for b in set(cases) - set(alone):
        percent = sorted((f"{p:.0%} by L0H{h}" for h, p in enumerate(parts[b - 1].tolist())))
        assert any(p in said for p in percent)
    assert "block" not in said


def trained_to(tmp_path, target, **training):
    """The untrained block in a file that says what its training aimed for."""
    config = TrainConfig(fvu_target=target, **training)
    notes = {"training": config.to_dict(), "layer": 0}
    return gi.load(gi.save(gated(), tmp_path / "model.safetensors", notes=notes))


@pytest.mark.parametrize("downstream", [0.0, 0.67])
def test_a_missed_target_is_warned_of(tmp_path, downstream):
    found = {}
    for times, how in ((0.5, None), (0.9, "came close to"), (1.1, "met")):
        subject = Subject.of(trained_to(tmp_path, 1.0, downstream=downstream), sequences=20)
        tables = shown(frontier, subject)
        rows = tables["faithfulness-L0"].set_index("measure")["block"]
        error = (1 - downstream) * rows["fvu"] + downstream * (1 - rows["kl_recovered_zero"])
        again = trained_to(tmp_path, float(times * error), downstream=downstream)
        subject = Subject.of(again, sequences=20)
        (reached,) = conclusion.targets(subject, tables).values()
        assert reached.error == pytest.approx(error)
        found[times] = conclusion.warned({0: reached})
        words = conclusion._sure(subject, {0: reached}).words
        assert ("its target" in words) == (not found[times])
        assert f"training {how} its target" in words or how is None
    assert found[0.9] == []  # what hovers around its target is on it
    (words,) = found[0.5]
    assert f"came to {written_short(error)}, and {number(float(error / 2))} was aimed for" in words
    page = Page(pages.report_page("t", [], {}, [], [words]))
    (box,) = [a for a in page.all("p") if a.get("class") == "warning"]
    assert box["role"] == "note"
    assert words in html.unescape(page.html)


def test_a_target_is_that_of_the_block_that_is_there(tmp_path):
    loaded = trained_to(tmp_path, 1e-9)
    tables = shown(frontier, Subject.of(loaded, sequences=20))
    assert conclusion.targets(Subject.of(loaded, sequences=20), tables)
    toy = gi.unsplice(loaded)
    other = gi.GatedAttention.from_attention(toy.blocks[0].attn, 2, seed=8)
    changed = Subject.of(gi.splice(toy, 0, other), sequences=20)
    assert not conclusion.targets(changed, tables)
    assert not conclusion.targets(Subject.of(gated(), sequences=20), tables)


# ---- the head that matters most


def test_its_attention_is_the_models(model):  # noqa: F811
    subject = Subject.of(model, sequences=8)
    (found,) = strongest.show(subject)
    effects = {
        (layer, int(row["head"])): row["effect"]
        for layer in range(2)
        for row in gi.read_heads(model, layer, subject.batch.tokens).table.to_dict("records")
    }
    layer, head = max(effects, key=effects.get)
    assert found.title == f"L{layer}H{head} is the head that matters most"
    assert f"{effects[layer, head]:+.3f} nats" in found.words
    name = f"blocks.{layer}.attn.hook_pattern"
    _, cache = model.run_with_cache(subject.batch.tokens, names_filter=name)
    rows = cache[name][:, head]
    table = found.table
    at = table[["query_pos", "key_pos"]].to_numpy().T.tolist()
    values = torch.tensor(table["attention"].tolist()).to(rows)
    same = [torch.allclose(row[at[0], at[1]], values, atol=1e-5) for row in rows]
    assert sum(same) == 1
    tokens = subject.batch.tokens[same.index(True)]
    assert table["key_token"].tolist() == [subject.names[tokens[k]] for k in at[1]]
    assert found.figure.data[0].z.shape == (table["query_pos"].nunique(),) * 2


def test_a_gated_head_is_shown_before_and_after_its_gate():
    subject = Subject.of(gated(), sequences=20)
    before, after = strongest.show(subject)
    assert len(before.figure.data) == 1
    assert len(after.figure.data) == 2
    through = after.table["after its gate"]
    assert (through <= after.table["attention"] + 1e-6).all()
    assert (through < after.table["attention"] - 1e-3).any()


# ---- what cannot be seen


def test_no_control_character_is_on_a_page():
    odd = "a\x00\n\x1b\u202e\u2028\u200b\x85"
    table = pd.DataFrame({odd: [odd], "number": [1.0]})
    part = Shown("odd", odd, odd, table, face=table)
    point = conclusion.Point(odd, odd)
    page = pages.report_page(odd, [odd], {"holders": [part]}, [point], [odd])
    unseen = {c for c in page if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")} - {"\n"}
    assert not unseen
    fig = heatmaps.head_attention({"attention": [[1.0]]}, ["a\n\x1b"])
    assert fig.layout.yaxis.labelalias == {"0": r"a⏎\x1b"}
    assert page.count(r"a\x00⏎\x1b\u202e\u2028\u200b\x85") > 6


# ---- what a frontier says beside it


def beside(tmp_path, table):
    path = tmp_path / "frontier.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    return path


FRONTIER = {"task": ["2H3ST", "2H3ST", "other"], "method": ["topk", "topk", "gated"],
            "fvu": [0.1, 0.2, 0.3], "active_per_position": [2.0, 1.5, 1.0],
            "l0": [3.0, 2.0, 1.0]}  # fmt: skip


def drawn_beside(tmp_path, table):
    """The part of the page that draws ``table`` beside the block."""
    subject = Subject.of(gated(), sequences=20)
    others = frontier.read_beside(beside(tmp_path, table), subject)
    return next(frontier.show(dataclasses.replace(subject, beside=others)))


def test_rows_of_the_same_task_are_drawn_beside_it(tmp_path):
    part = drawn_beside(tmp_path, FRONTIER)
    found = part.table["beside"]
    assert found["fvu"].tolist() == [0.1, 0.2]
    assert found["gates_per_pair"].tolist() == [3.0, 2.0]
    assert "what 1 method reached for 2H3ST (frontier.csv)" in part.words
    (line, *_) = (trace for trace in part.figure.data if trace.name == "topk")
    assert (list(line.x), list(line.y)) == ([1.5, 2.0], [0.2, 0.1])


def test_runs_of_a_decomposition_are_drawn_beside_it(tmp_path):
    runs = {"layer": [0, 1], "fvu": [0.1, 0.2], "active_per_position": [2, 3],
            "gates_per_pair": [1.0, 2.0]}  # fmt: skip
    assert drawn_beside(tmp_path, runs).table["beside"]["fvu"].tolist() == [0.1]


def test_a_table_that_does_not_fit_is_refused(tmp_path):
    page, path = tmp_path / "page.html", tmp_path / "frontier.csv"
    with refuses("bad-comparison-file"):
        report(gated(), page, beside=path)
    with refuses("comparison-lacks-a-column", column="task"):
        report(gated(), page, beside=beside(tmp_path, {"a": [1]}))
    with refuses("comparison-without-rows", wanted="for 2H3ST"):
        report(gated(), page, beside=beside(tmp_path, {k: v[2:] for k, v in FRONTIER.items()}))
    with refuses("no-block-to-compare", model="2H3ST"):
        report(manual_model(2, 3).model, page, beside=path)
    assert not page.exists()


# ---- labels and figures


@pytest.mark.slow
def test_labels_that_spell_a_script_are_text(text_page):
    # Three of its own: figures as JSON, plotly packed, and what draws.
    scripts = {a.get("type", "runs") for a in text_page.all("script")}
    assert scripts == {"application/json", "text/plain", "runs"}
    assert len([a for a in text_page.all("script") if "type" not in a]) == 1
    assert any(HOSTILE in words for words in text_page.words)
    assert f"{HOSTILE}, layer" in "".join(text_page.words)
    assert HOSTILE not in text_page.html


@pytest.mark.slow
def test_figures_are_pictures_and_nothing_is_run(tmp_path):
    told = []
    page = written(
        tmp_path,
        manual_model(2, 3).model,
        interactive=False,
        on_progress=lambda *now: told.append(now),
    )
    assert not page.all("script")
    assert all(len(a["alt"]) > 20 for a in page.all("img"))
    images = [base64.b64decode(a["src"].partition(",")[2]) for a in page.all("img")]
    assert len(images) == len(page.all("figure")) > 4
    assert all(b"<svg" in image and b"<text" not in image for image in images)
    assert "script-src" not in page.html
    assert told == [(i, 8) for i in range(9)]


# ---- where it is written


def test_what_cannot_be_a_report_is_refused(tmp_path):
    with refuses("output-is-a-folder"):
        report("2H3ST-toy", tmp_path)
    with refuses("not-a-page"):
        report("2H3ST-toy", tmp_path / "page.pdf")
    other = tmp_path / "other.html"
    other.write_text("<!DOCTYPE html><title>somebody's</title>")
    with refuses("not-a-report"):
        report("2H3ST-toy", other)
    assert "somebody's" in other.read_text()
    with refuses("page-in-a-file"):
        report("2H3ST-toy", other / "page.html")
    with refuses("no-such-model", source="nothing"):
        report("nothing", tmp_path / "page.html")
    with refuses("too-small", name="sequences", value=1):
        report("2H3ST-toy", tmp_path / "page.html", sequences=1)
    with refuses("no-such-layer"):
        report("2H3ST-toy", tmp_path / "page.html", layer=3)


def test_the_command(tmp_path):
    page = tmp_path / "deep" / "page.html"
    result = cli("report", "2H3ST-toy", "--out", page, "--sequences", 20)
    assert result.stdout.startswith(str(page))
    found = Page(page.read_text(encoding="utf-8")).csv["provenance.csv"]
    made_by = found.set_index("name")["value"]["made by"]
    assert made_by == "gated-interp report 2H3ST-toy --out page.html --sequences 20"
    assert str(tmp_path) not in page.read_text(encoding="utf-8")
    assert says(
        "output-is-a-folder", one_sentence(cli("report", "2H3ST-toy", "--out", tmp_path, code=1))
    )
    cli("report", "2H3ST-toy", "--sequences", "1", code=2)
    assert says("no-such-model", one_sentence(cli("report", "no-such", code=1)))
