"""Tables and figures of one model's heads say what the model does."""

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from attention_models import gated, toy
from closeness import assert_close

from gated_interp.analysis import writes
from gated_interp.analysis.superposition import loading_matrix
from gated_interp.analysis.verdict import EXAMPLES, verdict
from gated_interp.analysis.writes import head_writes, writes_kept
from gated_interp.core.errors import GatedInterpError
from gated_interp.experiments.figures import GALLERY, pictures_of
from gated_interp.experiments.inspect_figures import (
    ablation_figures,
    circuit_figures,
    gallery_figures,
    marks_of,
    save_under,
    wiring_figure,
)
from gated_interp.experiments.inspect_tables import (
    METHODS,
    ablations,
    circuit_summary,
    circuit_table,
    example_of,
    head_names,
    shapley_table,
)
from gated_interp.models.analytic import coherent_head, manual_model, two_readers
from gated_interp.models.analytic_tasks import (
    conditional_heads,
    induction_model,
    marked_relay,
    wide_pairs,
)
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(3)


@pytest.fixture(scope="module")
def manual():
    """Heads 0 and 1 own trigrams 1 and 2 and hold trigram 3 together."""
    return manual_model(2, 3).model


@pytest.fixture(scope="module")
def spliced():
    return gated(TASK, n_heads=5)


def test_ablations_have_every_head_by_every_method(manual):
    effects = ablations(manual, TASK, n=120, n_reference=20)
    assert effects["method"].unique().tolist() == list(METHODS)
    assert effects["heads"].unique().tolist() == ["L0H0", "L0H1", "all heads"]
    zero = effects[(effects["method"] == "zero") & (effects["metric"] == "accuracy")]
    lost = zero.pivot(index="heads", columns="trigram", values="change")
    assert lost.loc["L0H0"].tolist() == [-1, 0, -1]
    assert lost.loc["L0H1"].tolist() == [0, -1, -1]


def test_ablations_are_the_same_each_time(manual):
    first, second = (ablations(manual, TASK, n=60, n_reference=11) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


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
    assert example_of(manual, TASK).trigram == 3
    assert example_of(manual, TASK, 1).trigram == 1
    assert example_of(manual, TASK).predicted == TASK.completion(3)
    assert example_of(manual, TASK).gate is None
    with pytest.raises(GatedInterpError, match="no trigram 4; the task has 1 to 3"):
        example_of(manual, TASK, 4)


def test_circuit_tables_hold_every_entry(spliced):
    table = circuit_table(spliced, TASK)
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
    summary = circuit_summary(manual, TASK).set_index("head")
    # From A head 0 writes 2 to C1 and 1 to C3 (and less elsewhere); its B1 attends to A.
    assert summary.loc["L0H0", "writes"] == "A → C1"
    assert_close(summary.loc["L0H0", "logit"], 2)
    assert summary.loc["L0H1", "writes"] == "A → C2"
    assert summary.loc["L0H0", "looks"] == "B1 → A"
    assert_close(summary.loc["L0H0", "attention"], 1)
    assert "opens" not in summary


def test_a_gate_that_never_opens_is_named_so(spliced):
    spliced = gated(TASK, n_heads=5)
    spliced.blocks[0].attn.force_gates(0)
    summary = circuit_summary(spliced, TASK)
    assert summary["opens"].unique().tolist() == ["never"]
    assert summary["open_pairs"].unique().tolist() == [0]


def test_shapley_values_are_sampled_beyond_sixteen_heads():
    table = shapley_table(toy(TASK, n_heads=17), TASK)
    assert not table["exact"].any()
    assert shapley_table(toy(TASK, n_heads=2), TASK)["exact"].all()


def test_figures_come_with_the_table_they_were_drawn_from(spliced):
    figures = circuit_figures(spliced, TASK, "model", trigram=1)
    assert list(figures) == ["circuits", "loadings", "wiring", "attention"]
    figures |= ablation_figures(
        spliced, TASK, "model", effects=ablations(spliced, TASK, n=60, n_reference=10)
    )
    assert list(figures)[4:] == ["ablation", "shapley"]
    for fig, data in figures.values():
        assert isinstance(fig, go.Figure)
        for frame in [data] if isinstance(data, pd.DataFrame) else data.values():
            assert len(frame)
    loadings = figures["loadings"][1]
    after = loadings[loadings["model"].str.startswith("after")]["loading"].to_numpy()
    expected = loading_matrix(spliced, TASK).flatten().numpy()
    assert_close(after, expected, dtype=torch.float32)
    before = loadings[loadings["model"].str.startswith("before")]["loading"].to_numpy()
    expected = loading_matrix(unsplice(spliced), TASK).flatten().numpy()
    assert_close(before, expected, dtype=torch.float32)


def test_wiring_tables_add_up(spliced):
    reads = circuit_figures(spliced, TASK, "model", trigram=3)["wiring"][1]["reads"]
    assert_close(reads.groupby("head")["attention"].sum().tolist(), [1] * 5)
    assert set(reads["head"]) == set(head_names(spliced))


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
    found = circuit_figures(model, task, name, trigram=2, layer=layer)
    assert list(found) == ["circuits", "loadings", "wiring", "attention"]
    example = example_of(model, task, 2, layer)
    reads, writes = (found["wiring"][1][key] for key in ("reads", "writes"))
    assert reads["token"].iloc[-1] == example.tokens[example.position]
    assert reads.groupby("head")["attention"].sum().tolist() == pytest.approx(
        [1] * len(head_names(model, layer))
    )
    top = writes.groupby("output_token")["logit"].sum().idxmax()
    assert top == task.token_names[example.predicted]
    carried = loading_matrix(model, task, layer=layer).flatten().numpy()
    assert_close(found["loadings"][1]["loading"].to_numpy(), carried, dtype=torch.float32)
    assert set(found["loadings"][1]["representation"]) == set(task.cases.values())
    assert found["wiring"][0].layout.title.text.endswith(f"one example of {task.cases[2]}")
    assert set(found["circuits"][1]["head"]) == set(head_names(model, layer))


def test_ablation_figures_of_another_task_speak_of_its_cases():
    truth = conditional_heads()
    effects = ablations(truth.model, truth.task, n=60, n_reference=10)
    found = ablation_figures(truth.model, truth.task, "model", effects=effects, trigram=3)
    assert list(found) == ["ablation", "shapley"]
    said = " ".join(a.text for a in found["ablation"][0].layout.annotations)
    assert all(f"question {case}" in said for case in truth.task.cases.values())
    assert "trigram" not in said
    assert truth.task.cases[3] in found["shapley"][0].layout.title.text


def test_a_layer_that_is_read_by_another_has_no_wires_to_the_logits():
    truth = induction_model()
    found = circuit_figures(truth.model, truth.task, "model", trigram=1, layer=0)
    assert list(found) == ["circuits", "attention"]
    example = example_of(truth.model, truth.task, layer=0)
    assert example.trigram == 1
    assert example.effects is None
    # It is the head that attends to the position before.
    assert example.pattern[0, 2:].diagonal(1).min() > 0.99
    with pytest.raises(GatedInterpError, match="heads of layer 0 write does not add up"):
        wiring_figure(truth.model, truth.task, "model", example, 0)
    with pytest.raises(GatedInterpError, match="say which layer"):
        circuit_figures(truth.model, truth.task, "model")
    drawn = ablation_figures(
        truth.model, truth.task, "model", layer=0, trigram=1,
        effects=ablations(truth.model, truth.task, n=40, n_reference=10),
    )  # fmt: skip
    assert drawn["shapley"][1]["values"]["head"].tolist() == ["L0H0"]


def test_marks_are_the_answers_or_where_cases_share_them_their_names():
    assert marks_of({1: [5], 2: [0, 5], 3: []}, TASK) == {5: "C1 C2", 0: "C2"}
    task = wide_pairs().task
    assert marks_of({1: [], 2: [1]}, task) == {1: task.cases[2]}


def test_gates_are_seen_in_the_layer_that_has_them():
    truth = marked_relay()
    block = GatedAttention.from_attention(truth.model.blocks[1].attn)
    block.force_gates(0.25)
    model = splice(truth.model, 1, block)
    assert "opens" not in circuit_summary(model, truth.task, 0)
    both = circuit_summary(model, truth.task)
    assert both["open_pairs"].isna().tolist() == [True] + [False] * block.config.n_heads
    assert both["gate"].dropna().tolist() == pytest.approx([0.25] * block.config.n_heads)
    entries = circuit_table(model, truth.task, 1)
    assert set(entries["circuit"]) == {"OV", "QK", "gate"}
    assert set(entries["head"]) == set(head_names(model, 1))
    loadings = circuit_figures(model, truth.task, "model", trigram=1, layer=1)["loadings"][1]
    assert set(loadings["model"]) == {"before (toy)", "after (gated block)"}


@pytest.mark.slow
def test_what_heads_write_is_measured_once_for_all_pictures_of_a_run(spliced, monkeypatch):
    measured = []

    def counted(model, tokens, rows, *where, **how):
        measured.append(len(rows))
        return head_writes(model, tokens, rows, *where, **how)

    monkeypatch.setattr(writes, "head_writes", counted)
    first = pictures_of(spliced, TASK, GALLERY)
    assert measured == [EXAMPLES, EXAMPLES]  # the toy's and the block's
    second = pictures_of(spliced, TASK, GALLERY)
    assert len(measured) == 4  # nothing is kept once they are drawn
    assert list(first) == list(second)
    with writes_kept(), writes_kept():
        verdict(spliced, TASK)
    verdict(spliced, TASK)
    assert len(measured) == 6


@pytest.mark.slow
def test_the_gallery_shows_the_model_and_its_original(spliced, manual, tmp_path):
    stems = set(gallery_figures(spliced, TASK, "2H3ST"))
    assert {"2H3ST-wiring", "2H3ST-toy-wiring", "2H3ST-toy-shapley"} <= stems
    alone = set(gallery_figures(manual, TASK, "manual"))
    assert "manual-shapley" in alone
    assert not any("toy" in stem for stem in alone)
    files = save_under(gallery_figures(manual, TASK, "manual"), tmp_path, ("html",))
    assert set(files) == set(tmp_path.iterdir())
    assert {p.stem for p in files if p.suffix == ".html"} == alone


def test_saving_refuses_a_format_that_does_not_exist(manual, tmp_path):
    with pytest.raises(GatedInterpError, match="gif"):
        save_under({}, tmp_path, ("gif",))
