"""Views say what a model does, and each thing that they show is measured once."""

import sys
from collections import Counter

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from attention_models import gated, toy, two_layers
from closeness import assert_close
from commands import cli
from refusals import refuses

import gated_interp as gi
from gated_interp import subject as subjects
from gated_interp import views
from gated_interp.analysis.circuit_tables import circuit_summary, circuit_table, circuits_of
from gated_interp.analysis.example import example_of
from gated_interp.analysis.superposition import loading_matrix
from gated_interp.anatomy.batch import Batch
from gated_interp.experiments.figures import GALLERY, pictures_of
from gated_interp.experiments.report import report
from gated_interp.models.analytic import coherent_head, manual_model, two_readers
from gated_interp.models.analytic_tasks import (
    conditional_heads,
    induction_model,
    marked_relay,
    wide_pairs,
)
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.subject import METHODS, Subject, ablations, marks_of
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.views import ablations as ablation_view
from gated_interp.views import circuits, loadings, shapley, wiring
from gated_interp.views.registry import all_views, shown_of
from gated_interp.views.shown import TOPICS, Shown, write_all

TASK = SkipTrigramTask(3)


@pytest.fixture(scope="module")
def manual():
    """Heads 0 and 1 own trigrams 1 and 2 and hold trigram 3 together."""
    return manual_model(2, 3).model


@pytest.fixture(scope="module")
def spliced():
    return gated(TASK, n_heads=5)


def by_name(subject, topic=None):
    """What is shown, by name; of two sides the model itself."""
    return {shown.name: shown for shown in shown_of(subject, topic)}


def summary_of(model, layer=0):
    return circuit_summary(model, layer, model.task.token_names, circuits_of(model, layer))


# ---- a view is one file

NEW = """
import pandas as pd
import plotly.graph_objects as go
from gated_interp.views.shown import Shown, View

def show(subject):
    table = pd.DataFrame({"head": subject.after[0].heads, "number": 7.5})
    draw = lambda: go.Figure(go.Bar(y=table["number"]), layout={"width": 300, "height": 200})
    yield Shown("novel", "Every head is worth 7.5", "How it is read.", table, draw, table)

VIEW = View("circuits", show, lambda subject: subject.known)
"""


@pytest.fixture
def novel(tmp_path, monkeypatch):
    """A view that is one file more."""
    folder = tmp_path / "views"
    folder.mkdir()
    (folder / "novel.py").write_text(NEW)
    monkeypatch.setattr(views, "__path__", [*views.__path__, str(folder)])
    yield
    sys.modules.pop("gated_interp.views.novel", None)
    monkeypatch.delattr(views, "novel", raising=False)


def test_a_new_file_is_in_the_command_the_gallery_and_the_report(novel, manual, tmp_path):
    gi.save(manual, tmp_path / "manual.safetensors")
    out = tmp_path / "out"
    said = cli("circuits", tmp_path / "manual.safetensors", "--out", out, "--format", "html").stdout
    assert "Every head is worth 7.5" in said
    assert "How it is read." in said
    assert pd.read_csv(out / "manual-novel.csv")["number"].tolist() == [7.5, 7.5]
    assert (out / "manual-novel.html").exists()
    page = report(manual, tmp_path / "page.html", sequences=20, interactive=True)
    assert "Every head is worth 7.5" in page.read_text(encoding="utf-8")
    assert f"{GALLERY}-novel" in pictures_of(manual, GALLERY)


def test_without_the_file_nothing_is_left_of_it(manual):
    assert "novel" not in by_name(Subject.of(manual), "circuits")


def test_every_view_has_a_topic_and_its_words(spliced):
    assert {view.topic for view in all_views()} == set(TOPICS)
    for shown in shown_of(Subject.of(spliced, sequences=20)):
        assert len(shown.title) > 10
        assert shown.title[-1] != "."
        assert shown.words.endswith(".")


def test_what_is_shown_writes_its_files(tmp_path):
    table = pd.DataFrame({"a": [0.123456789]})
    figure = go.Figure(layout={"width": 100, "height": 100})
    drawn = Shown("x", "t", "w", {"": table, "more": table}, lambda: figure)
    assert {p.name for p in drawn.write(tmp_path / "x", ("html",))} == {
        "x.html", "x.csv", "x-more.csv"
    }  # fmt: skip
    (plain,) = Shown("y", "t", "w", table).write(tmp_path / "y-0.5", ("html",))
    assert plain.read_text() == "a\n0.1234568\n"
    with refuses("no-such-format", format="gif"):
        write_all({}, ("gif",))


# ---- measured once


def counted(monkeypatch, *names):
    """How often each is called, and on how many distinct models and layers."""
    calls = Counter()
    for name in names:
        asked = getattr(subjects, name)

        def count(*args, asked=asked, name=name, **options):
            calls[name] += 1
            return asked(*args, **options)

        monkeypatch.setattr(subjects, name, count)
    return calls


ONCE = ("verdict_from_writes", "holders", "probe_writes", "example_of", "readings",
        "shapley_of", "interactions_of", "ablations")  # fmt: skip


@pytest.mark.slow
def test_a_report_asks_for_the_verdict_of_each_model_once(spliced, tmp_path, monkeypatch):
    calls = counted(monkeypatch, *ONCE)
    report(spliced, tmp_path / "page.html", sequences=20, interactive=True)
    assert calls == dict.fromkeys(ONCE, 2)  # of the original and of the block


@pytest.mark.slow
def test_a_run_asks_for_the_verdict_of_each_model_once(spliced, monkeypatch):
    calls = counted(monkeypatch, *ONCE)
    first = pictures_of(spliced, GALLERY)
    assert set(calls.values()) == {2}
    assert calls["verdict_from_writes"] == 2
    calls.clear()
    assert list(pictures_of(spliced, "3H4ST")) == [
        "3H4ST-before-after", "3H4ST-roles", "3H4ST-gates"
    ]  # fmt: skip
    assert calls["verdict_from_writes"] == 2  # nothing is kept behind the caller's back
    assert calls["probe_writes"] == 2
    assert {f"{GALLERY}-wiring", f"{GALLERY}-toy-wiring", f"{GALLERY}-toy-shapley"} <= set(first)


def test_a_subject_measures_its_model_and_nothing_else(manual, spliced):
    one, other = Subject.of(manual).after[0], Subject.of(spliced).after[0]
    assert one.verdict is one.verdict
    assert one.verdict.owners == {1: [0], 2: [1], 3: []}
    assert other.verdict == gi.verdict(spliced, TASK)
    assert_close(other.loadings, loading_matrix(spliced, TASK))
    pd.testing.assert_frame_equal(other.shapley, gi.shapley(spliced, TASK))
    assert_close(other.interactions, gi.pair_interactions(spliced, TASK)["lead"])


def test_what_a_subject_refuses(manual):
    with refuses("no-such-case", word="trigram", case=4, last=3):
        Subject.of(manual, trigram=4)
    with refuses("no-such-layer", layer=2):
        Subject.of(manual, 2)
    below = Subject.of(induction_model().model, 0).after[0]
    with refuses("logits-not-a-sum", layer=0):
        _ = below.verdict


# ---- tables


def test_ablations_have_every_head_by_every_method(manual):
    effects = ablations(manual, n=120, n_reference=20)
    assert effects["method"].unique().tolist() == list(METHODS)
    assert effects["heads"].unique().tolist() == ["L0H0", "L0H1", "all heads"]
    zero = effects[(effects["method"] == "zero") & (effects["metric"] == "accuracy")]
    lost = zero.pivot(index="heads", columns="trigram", values="change")
    assert lost.loc["L0H0"].tolist() == [-1, 0, -1]
    assert lost.loc["L0H1"].tolist() == [0, -1, -1]


def test_ablations_are_the_same_each_time(manual):
    first, second = (ablations(manual, n=60, n_reference=11) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_ablations_of_several_layers_are_those_of_each_and_of_all_heads_once():
    model = two_layers(TASK)
    batch = Batch.of(model, TASK.sample(6, 0).tokens)
    first, second = (ablations(model, [layer], batch) for layer in (0, 1))
    first = first[first["kind"] != "all"]
    expected = pd.concat([first, second], ignore_index=True)
    pd.testing.assert_frame_equal(ablations(model, [0, 1], batch), expected, check_exact=True)


def test_an_example_is_what_the_model_does_there(spliced):
    example = example_of(spliced, TASK, 2)
    tokens = torch.tensor([[TASK.token_names.index(name) for name in example.tokens]])
    assert example.tokens[example.position] == "B2"
    assert "A" in example.tokens[: example.position - 1]
    logits = spliced(tokens)[0, example.position]
    direct = torch.eye(TASK.d_vocab)[tokens[0, example.position]] + spliced.blocks[0].attn.b_O
    assert_close(example.effects.sum(0) + direct, logits)
    assert example.predicted == int(logits.argmax())
    assert_close(example.pattern.sum(-1), torch.ones(5, TASK.n_positions))
    assert example.gate.shape == example.pattern.shape


def test_an_example_is_of_a_distributed_trigram_unless_one_is_named(manual):
    example = Subject.of(manual).after[0].example
    assert (example.trigram, example.predicted) == (3, TASK.completion(3))
    assert example.gate is None
    assert Subject.of(manual, trigram=1).after[0].example.trigram == 1


def test_circuit_tables_hold_every_entry(spliced):
    table = circuit_table(circuits_of(spliced), TASK.token_names)
    v = TASK.d_vocab
    assert table["circuit"].value_counts().to_dict() == dict.fromkeys(
        ("OV", "QK", "gate"), 5 * v**2
    )
    attn = spliced.blocks[0].attn
    row = table[(table["head"] == "L0H3") & (table["circuit"] == "OV")]
    one = row[(row["row_token"] == "B2") & (row["column_token"] == "C1")]["value"].item()
    by_hand = (attn.W_V[3, 2] + attn.b_V[3]) @ attn.W_O[3, :, 4]
    assert_close(one, by_hand)


def test_the_summary_names_what_stands_out(manual):
    summary = summary_of(manual).set_index("head")
    # From A head 0 writes 2 to C1 and 1 to C3 (and less elsewhere); its B1 attends to A.
    assert summary.loc["L0H0", "writes"] == "A → C1"
    assert_close(summary.loc["L0H0", "logit"], 2)
    assert summary.loc["L0H1", "writes"] == "A → C2"
    assert summary.loc["L0H0", "looks"] == "B1 → A"
    assert_close(summary.loc["L0H0", "attention"], 1)
    assert "opens" not in summary


def test_a_gate_that_never_opens_is_named_so():
    shut = gated(TASK, n_heads=5)
    shut.blocks[0].attn.force_gates(0)
    summary = summary_of(shut)
    assert summary["opens"].unique().tolist() == ["never"]
    assert summary["open_pairs"].unique().tolist() == [0]


def test_shapley_values_are_sampled_beyond_sixteen_heads():
    assert not Subject.of(toy(TASK, n_heads=17)).after[0].shapley["exact"].any()
    assert Subject.of(toy(TASK, n_heads=2)).after[0].shapley["exact"].all()


# ---- figures


def test_loadings_are_those_of_both_models(spliced):
    for subject in (Subject.of(spliced), Subject.of(spliced, alone=True)):
        (shown,) = loadings.show(subject)
        for start, model in {"before": unsplice(spliced), "after": spliced}.items():
            mine = shown.table[shown.table["model"].str.startswith(start)]["loading"].to_numpy()
            expected = loading_matrix(model, TASK).flatten().numpy()
            assert_close(mine, expected, dtype=torch.float32)


def test_wiring_tables_add_up(spliced):
    (shown,) = wiring.show(Subject.of(spliced, alone=True, trigram=3))
    reads = shown.table["reads"]
    assert_close(reads.groupby("head")["attention"].sum().tolist(), [1] * 5)
    assert set(reads["head"]) == {f"L0H{h}" for h in range(5)}


OTHERS = {
    "conditional": (conditional_heads, 0),
    "ov-coherent": (coherent_head, 0),
    "two-sources": (two_readers, 0),
    "wide-content": (wide_pairs, 0),
    "repeated-tokens": (induction_model, 1),
    "two-layers": (marked_relay, 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_task_with_known_answers_is_drawn(name):
    build, layer = OTHERS[name]
    truth = build()
    model, task = truth.model, truth.task
    subject = Subject.of(model, layer, trigram=2, name=name)
    found = by_name(subject, "circuits")
    assert {"circuits", "circuit-summary", "loadings", "wiring", "attention"} <= set(found)
    example, heads = subject.after[0].example, subject.after[0].heads
    reads, writes = (found["wiring"].table[key] for key in ("reads", "writes"))
    assert reads["token"].iloc[-1] == example.tokens[example.position]
    assert reads.groupby("head")["attention"].sum().tolist() == pytest.approx([1] * len(heads))
    top = writes.groupby("output_token")["logit"].sum().idxmax()
    assert top == task.token_names[example.predicted]
    carried = loading_matrix(model, task, layer=layer).flatten().numpy()
    assert_close(found["loadings"].table["loading"].to_numpy(), carried, dtype=torch.float32)
    assert set(found["loadings"].table["representation"]) == set(task.cases.values())
    title = found["wiring"].figure.layout.title.text
    assert title.endswith(f"one example of {task.cases[2]}")
    assert set(found["circuits"].table["head"]) == set(heads)


def test_ablations_of_another_task_speak_of_its_cases():
    truth = conditional_heads()
    subject = Subject.of(truth.model, trigram=3)
    shown = next(ablation_view.show(subject))
    said = " ".join(a.text for a in shown.figure.layout.annotations)
    assert all(f"question {case}" in said for case in truth.task.cases.values())
    assert "trigram" not in said
    (values,) = shapley.show(subject)
    assert truth.task.cases[3] in values.figure.layout.title.text


def test_a_layer_that_is_read_by_another_has_no_wires_to_the_logits():
    truth = induction_model()
    subject = Subject.of(truth.model, 0)
    found = by_name(subject, "circuits")
    assert {"circuits", "attention", "composition", "induction"} <= set(found)
    assert not {"wiring", "loadings"} & set(found)
    example = subject.after[0].example
    assert example.trigram == 1
    assert example.effects is None
    # It is the head that attends to the position before.
    assert example.pattern[0, 2:].diagonal(1).min() > 0.99
    (values,) = shapley.show(subject)
    assert values.table["values"]["head"].tolist() == ["L0H0"]


def test_several_layers_have_names_of_their_own():
    truth = induction_model()
    found = {shown.name for shown in circuits.show(Subject.of(truth.model))}
    assert found == {"circuits-L0", "circuits-L1", "circuit-summary"}


def test_marks_are_the_answers_or_where_cases_share_them_their_names():
    assert marks_of({1: [5], 2: [0, 5], 3: []}, TASK) == {5: "C1 C2", 0: "C2"}
    task = wide_pairs().task
    assert marks_of({1: [], 2: [1]}, task) == {1: task.cases[2]}


def test_gates_are_seen_in_the_layer_that_has_them():
    truth = marked_relay()
    block = GatedAttention.from_attention(truth.model.blocks[1].attn)
    block.force_gates(0.25)
    model = splice(truth.model, 1, block)
    assert "opens" not in summary_of(model, 0)
    assert summary_of(model, 1)["gate"].tolist() == pytest.approx([0.25] * block.config.n_heads)
    entries = circuit_table(circuits_of(model, 1), truth.task.token_names)
    assert set(entries["circuit"]) == {"OV", "QK", "gate"}
    assert set(entries["head"]) == {f"L1H{h}" for h in range(block.config.n_heads)}
    (shown,) = loadings.show(Subject.of(model))
    assert set(shown.table["model"]) == {"before (toy)", "after (gated block)"}
