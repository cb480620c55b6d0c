"""The command line: what it prints, what it writes, and how it ends."""

import builtins
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from commands import cli, one_sentence
from refusals import refuses, says
from safetensors.torch import save_file

from gated_interp import explorer_server
from gated_interp.analysis.verdict import verdict
from gated_interp.checkpoints.checkpoint import load, read_info, save
from gated_interp.cli import options as cli_options
from gated_interp.cli.app import _stopped
from gated_interp.cli.imports import quick_imports
from gated_interp.experiments import figures, paper, single
from gated_interp.models.analytic import manual_model
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice
from gated_interp.training.interrupt import TrainingInterrupted

COMMAND = [sys.executable, "-m", "gated_interp.cli"]
COMMANDS = ["reproduce", "figures", "train-toy", "train-gated", "train-lm", "verdict", "info",
            "ablate", "circuits", "report", "sweep", "reliability", "phase", "repeats", "frontier",
            "explore"]  # fmt: skip
# Trained in a second: what matters is what is written.
SHORT = ["--steps", "4", "--log-every", "2", "--batch-size", "5", "--data", "fresh"]


@pytest.fixture(scope="module")
def manual(tmp_path_factory):
    """The published manual model by its rule: heads 0 and 1 own trigrams 1 and 2 and share 3."""
    path = tmp_path_factory.mktemp("models") / "manual.safetensors"
    save(manual_model(2, 3).model, path, notes={"made": "by rule"})
    return path


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """An untrained gated block of 3 heads, spliced into the manual model."""
    path = tmp_path_factory.mktemp("models") / "block.safetensors"
    toy = manual_model(2, 3).model
    block = GatedAttention.from_attention(toy.blocks[0].attn, 1.5, gate_bias_init=0.7, seed=3)
    save(splice(toy, 0, block), path)
    return path


def test_help_comes_without_the_heavy_imports():
    code = (
        "import sys, gated_interp.cli\n"
        "print([m for m in ('torch', 'transformer_lens', 'pandas', 'numpy', 'scipy', 'plotly',"
        " 'joblib', 'tqdm') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_verdict_brings_nothing_heavy_but_transformer_lens():
    code = (
        "import sys, transformer_lens\n"
        "before = set(sys.modules)\n"
        "from gated_interp.cli import run\n"
        "run(['verdict', '2H3ST-gated', '--json'])\n"
        "mine = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(mine & {'plotly', 'matplotlib', 'joblib', 'scipy', 'tqdm',"
        " 'IPython', 'ipywidgets', 'dask', 'pyarrow'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("on", [True, False])
def test_imports_make_no_garbage_to_look_for(on):
    before = gc.isenabled()
    try:
        gc.enable() if on else gc.disable()
        with contextlib.suppress(ImportError), quick_imports():
            seen = gc.isenabled()
            raise ImportError
        assert (seen, gc.isenabled()) == (False, on)
    finally:
        gc.enable() if before else gc.disable()


def test_commands_import_with_the_collector_off(monkeypatch, manual):
    seen = []

    def watched(name, *rest):
        if name == "gated_interp.checkpoints.checkpoint":
            seen.append(gc.isenabled())
        return imported(name, *rest)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", watched)
    cli("info", manual)
    assert seen[:1] == [False]


def test_help_lists_every_command_and_each_has_its_own():
    listed = cli("--help").stdout
    for command in COMMANDS:
        assert command in listed
        assert f"gated-interp {command}" in cli(command, "--help").stdout.replace(
            "root ", "gated-interp "
        )


def test_version():
    from gated_interp import __version__

    assert cli("--version").stdout.strip() == f"gated-interp {__version__}"


def test_verdict_as_json_is_the_published_line(manual):
    printed = cli("verdict", manual, "--json").stdout
    assert printed == (
        '{"learnt": [1, 2, 3], "holders": {"1": [], "2": [], "3": []}, "clean": false, '
        '"owners": {"1": [0], "2": [1], "3": []}, '
        '"distributed": [3], "not_learnt": []}\n'
    )


def test_verdict_as_a_table(manual):
    lines = cli("verdict", manual).stdout.splitlines()
    assert lines[0] == "manual: 0 of 3 trigrams held by one head alone (not clean)"
    shared = "none: not specific: without L0H{} also 3 suffer"
    whys = [shared.format(0), shared.format(1), "none: no head is sufficient"]
    owners = ("L0H0", "L0H1", "-")
    for case, (line, why, owner) in enumerate(zip(lines[2:5], whys, owners, strict=True), 1):
        words = line.split()
        assert words[0] == f"A…B{case}→C{case}"
        assert why in line
        assert words[-2:] == [owner, "100.0%"]


def test_a_verdict_says_what_heads_write_for_and_what_is_left():
    lines = cli("verdict", "2H3ST-gated").stdout.splitlines()
    words = {line.split()[0]: line.split() for line in lines if line.strip()}
    model = load("2H3ST-gated")
    holders = verdict(model, model.task).holders
    for b, (head,) in holders.items():
        assert words[f"L0H{head}"][1] == f"A…B{b}→C{b}"
        assert words[f"L0H{head}"][3].endswith("%")
    free = next(h for h in range(8) if [h] not in holders.values())
    assert [words[f"L0H{free}"][i] for i in (1, 3, 6)] == ["-"] * 3
    assert words["holders"][1] == "3"
    assert words["others"][1] == "5"
    assert words["others"][-1] == "100.0%"


def test_the_published_format_is_read_too(tmp_path):
    attn = manual_model(2, 3).model.blocks[0].attn
    tensors = {f"attn.{n}": getattr(attn, n).detach().clone() for n in
               ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")}  # fmt: skip
    save_file({**tensors, "attn.IGNORE": torch.tensor(-1e5)}, tmp_path / "published.st")
    printed = cli("verdict", tmp_path / "published.st", "--json").stdout
    assert json.loads(printed)["distributed"] == [3]


def test_info_says_what_the_file_says(gated, manual):
    found = json.loads(cli("info", gated, "--json").stdout)
    info = read_info(gated)
    assert found == {**info.to_json(), "n_parameters": info.n_parameters}
    assert found["gated_config"]["n_heads"] == 3
    words = cli("info", manual).stdout
    assert "ToyConfig" in words
    assert "n_heads=2" in words
    assert "by rule" in words


@pytest.mark.parametrize("command", ["verdict", "info", "ablate", "circuits", "train-gated"])
def test_a_file_that_is_not_there_is_one_sentence(command, tmp_path):
    sentence = one_sentence(cli(command, tmp_path / "no.safetensors", code=1))
    assert "no.safetensors" in sentence


def test_a_name_that_is_not_shipped_is_one_sentence():
    assert says("no-such-model", one_sentence(cli("verdict", "nobody", code=1)))


def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint")
    assert "bad.safetensors" in one_sentence(cli("verdict", tmp_path / "bad.safetensors", code=1))


@pytest.mark.parametrize(
    "args",
    [
        ["nothing-like-it"],
        ["verdict"],
        ["verdict", "a", "b"],
        ["reproduce", "--seeds", "0"],
        ["reproduce", "--seeds", "many"],
        ["reproduce", "--only", "9H9ST"],
        ["reproduce", "--recipe", "hope"],
        ["reproduce", "--format", "gif"],
        ["figures", "run", "--format", ","],
        ["train-toy", "--heads", "two"],
        ["train-gated", "toy", "--gate", "shut"],
        ["circuits", "model", "--trigram", "0"],
        ["sweep", "--heads", "4:2"],
        ["sweep", "--alpha", "much"],
        ["sweep", "--workers", "127.0.0.1:8786"],
        ["explore", "--port", "65536"],
    ],
)
def test_wrong_usage_ends_with_2(args):
    result = cli(*args, code=2)
    assert result.stdout == ""
    assert "Error" in result.stderr


def test_a_sweep_whose_cluster_does_not_answer_makes_no_folder(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("gated_interp.experiments.backends.CONNECT", 1)
    address = "tcp://127.0.0.1:1"
    result = cli("sweep", "--workers", address, "--out", tmp_path / "s", code=1)
    assert says("no-scheduler", one_sentence(result))
    assert not (tmp_path / "s").exists()


def test_without_a_command_the_help_is_shown_as_wrong_usage():
    assert "verdict" in cli(code=2).output


def test_an_operating_system_error_is_one_sentence(monkeypatch, manual):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr("gated_interp.subject.Subject.of", fail)
    assert one_sentence(cli("verdict", manual, code=1)) == "Error: somewhere: Permission denied."


def test_a_shown_run_that_is_not_clean_is_said_and_no_figure_is_touched(monkeypatch, tmp_path):
    faulty = json.loads(json.dumps({"experiments": {"2H3ST": ENTRY, "3H4ST": ENTRY}}))
    found = {"holders": {"1": [5], "2": [], "3": [0, 1]}, "clean": False, "not_learnt": []}
    faulty["experiments"]["2H3ST"]["gated"] |= found
    monkeypatch.setattr(paper, "run_paper", lambda *args, **rest: faulty)
    monkeypatch.setattr(figures, "draw_run", lambda *args, **rest: pytest.fail("drawn"))
    monkeypatch.chdir(tmp_path)
    shown = cli("reproduce", "--figures", "figures", code=1)
    said = " ".join(shown.stderr.split())
    assert says("shown-run-not-clean", said)
    assert "the run shown for 2H3ST (seed 7) is not clean" in said
    assert "no head holds trigram 2, 2 heads hold trigram 3" in said
    assert "3H4ST" not in said
    assert not (tmp_path / "figures").exists()


def test_what_reproduce_asks_for(monkeypatch, tmp_path):
    asked = []
    results = json.loads(json.dumps({"experiments": {"2H3ST": ENTRY}}))
    monkeypatch.setattr(
        paper, "run_paper", lambda config, out, **rest: asked.append((config, out, rest)) or results
    )
    monkeypatch.setattr(figures, "draw_run", lambda *args, **rest: asked.append(args) or [])
    monkeypatch.chdir(tmp_path)

    printed = cli("reproduce").stdout
    config, out, _ = asked[0]
    assert (config.seeds, config.only, config.recipe) == (64, None, "reliable")
    assert str(out) == "runs/paper"
    assert [str(a) for a in asked[1][:2]] == ["runs/paper", "runs/paper/figures"]
    assert asked[1][2] == ["svg", "png"]
    assert "in the toy 1 of 3 trigrams are held by exactly one head" in printed
    assert "in the gated block 3 of 3 trigrams are held by exactly one head." in printed
    rows = {line.split("  ")[0]: line.split()[-3:] for line in printed.splitlines()}
    assert rows["clean"] == ["58", "of", "64"]
    assert rows["success (the post's)"] == ["60", "of", "64"]
    assert rows["shown FVU"][-1] == "0.0180"

    asked.clear()
    cli("reproduce", "--quick", "--recipe", "reference", "--only", "3H4ST", "--steps", "7",
        "--workers", "2", "--format", "html")  # fmt: skip
    config, out, rest = asked[0]
    assert (config.seeds, config.only, config.recipe) == (6, "3H4ST", "reference")
    assert config.steps == 7
    assert rest["workers"] == 2
    folder = "runs/reference-quick"
    assert [str(a) for a in asked[1][:2]] == [folder, f"{folder}/figures"]
    assert asked[1][2] == ["html"]

    asked.clear()
    cli("reproduce", "--quick", "--seeds", "3", "--out", "here", "--figures", "there")
    assert asked[0][0].seeds == 3
    assert [str(a) for a in asked[1][:2]] == ["here", "there"]


ENTRY = {
    "toy": {"learnt": [1, 2, 3], "holders": {"1": [0], "2": [], "3": []}, "clean": False,
            "owners": {}, "distributed": [2], "not_learnt": []},
    "gated": {"learnt": [1, 2, 3], "holders": {"1": [5], "2": [0], "3": [1]}, "clean": True,
              "owners": {}, "distributed": [], "not_learnt": []},
    "clean": 58, "clean_interval": [0.8, 0.96], "toys_used": 40, "selected_seed": 7,
    "recipe": "reliable", "heads": 2, "gated_heads": 8, "trigrams": 3, "seeds": 64,
    "successes": 60, "success_interval": [0.85, 0.975], "toys_trained": 64, "toys_learnt": 44,
    "fvu_selected": 0.018, "fvu_median": 0.018, "l0_selected": 0.6,
}  # fmt: skip


def test_what_explore_asks_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        explorer_server, "explore", lambda *args, **rest: asked.append((args, rest))
    )
    cli("explore")
    cli("explore", "model.safetensors", "--port", 8123, "--no-browser")
    assert asked[0][0] == ("2H3ST-gated",)
    assert asked[0][1]["open_browser"] is True
    assert asked[1][0] == ("model.safetensors",)
    assert (asked[1][1]["port"], asked[1][1]["open_browser"]) == (8123, False)


def test_experiments_named_in_the_help_are_those_there_are():
    from typing import get_args

    from gated_interp.cli.paper import Experiment
    from gated_interp.experiments.originals import BENCHMARKS

    known = [*(paper.PUBLISHED | paper.LARGER), *BENCHMARKS, "benchmarks"]
    assert list(get_args(Experiment)) == known


def test_figures_refuses_a_folder_without_a_run(tmp_path):
    assert says("not-a-finished-run", one_sentence(cli("figures", tmp_path, code=1)))


def test_training_writes_a_model_and_its_history(tmp_path):
    toy_file, gated_file = tmp_path / "toy.safetensors", tmp_path / "gated.safetensors"
    printed = cli("train-toy", *SHORT, "--heads", 3, "--trigrams", 2, "--lr", 0.01, "--seed", 5,
                  "--out", toy_file).stdout  # fmt: skip
    toy = load(toy_file)
    assert toy.toy_config.name == "3H2ST"
    assert str(toy_file) in printed
    assert toy.notes["training"]["lr"] == 0.01
    assert toy.notes["training"]["steps"] == 4
    history = pd.read_csv(tmp_path / "toy-history.csv")
    assert history["step"].tolist() == [0, 2, 3]
    assert not single.state_of(toy_file).exists()

    printed = cli("train-gated", toy_file, *SHORT, "--heads", 5, "--gate", "relu", "--d-gate", 2,
                  "--value-bias", "--fvu-target", 0, "--penalty-p", 0.5, "--output-scale", 2.5,
                  "--init", "duplicate", "--out", gated_file).stdout  # fmt: skip
    model = load(gated_file)
    block = model.info.gated_config
    assert (block.n_heads, block.gate, block.d_gate, block.value_bias) == (5, "relu", 2, True)
    assert (block.penalty_p, block.output_scale) == (0.5, 2.5)
    assert model.notes["training"]["fvu_target"] is None
    assert "fvu" in printed
    assert (
        json.loads(cli("verdict", gated_file, "--json").stdout)
        == verdict(model, model.task).to_json()
    )


def test_settings_that_are_not_given_are_the_recipes():
    toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
    run = single.gated_settings(toy, toy.toy_config.task, 7)
    same = single.gated_settings(toy, toy.toy_config.task, 7, alpha=None, n_heads=None)
    assert run.config == same.config
    assert run.block.config == same.block.config
    assert run.block.config.n_heads == 8
    reference = single.gated_settings(toy, toy.toy_config.task, 7, recipe="reference")
    assert reference.config.alpha == 0.5
    assert reference.block.config.n_heads == 4
    asked = {"clip_norm": 1.0, "accumulate": 2, "precision": "bfloat16", "evaluate_every": 300}
    changed = single.gated_settings(toy, toy.toy_config.task, 7, **asked).config
    assert changed == run.config.replace(**asked)
    with refuses("no-such-recipe-setting", name="color"):
        single.gated_settings(toy, toy.toy_config.task, color="red")


def test_a_gated_model_is_no_toy_to_train_on(gated):
    assert says("already-gated", one_sentence(cli("train-gated", gated, code=1)))


def test_bad_settings_are_one_sentence_before_any_training(tmp_path):
    out = tmp_path / "toy.safetensors"
    sentence = one_sentence(cli("train-toy", "--lr", "-1", "--out", out, code=1))
    assert "lr is -1.0" in sentence
    assert list(tmp_path.iterdir()) == []


def test_resuming_needs_a_state_and_a_state_is_not_overwritten(tmp_path):
    out = tmp_path / "toy.safetensors"
    assert says(
        "no-state-to-resume", one_sentence(cli("train-toy", "--resume", "--out", out, code=1))
    )
    single.state_of(out).write_bytes(b"an interrupted training")
    sentence = one_sentence(cli("train-toy", *SHORT, "--out", out, code=1))
    assert "--resume" in sentence
    assert single.state_of(out).read_bytes() == b"an interrupted training"


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(monkeypatch, tmp_path):
    def interrupted(*_, checkpoint, **__):
        raise TrainingInterrupted(3, 9, checkpoint)

    monkeypatch.setattr(single, "train_model", interrupted)
    monkeypatch.setattr(sys, "argv", ["gated-interp", "train-toy", "--out", "a b.safetensors"])
    result = cli("train-toy", "--out", tmp_path / "toy.safetensors", code=130)
    assert result.stdout == ""
    assert result.stderr == (
        "Interrupted after 3 steps; to go on: "
        "gated-interp train-toy --out 'a b.safetensors' --resume\n"
    )
    monkeypatch.setattr(sys, "argv", ["gated-interp", "reproduce", "--quick"])
    assert _stopped("reproduce", KeyboardInterrupt()).endswith(": gated-interp reproduce --quick")
    assert _stopped("verdict", KeyboardInterrupt()) == "Interrupted."


def without_reader(*command):
    """Run a command whose stdout nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        return subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_leaves_stops_nothing_and_is_not_mentioned():
    # Files may still have to be written after the first table.
    code = (
        "import sys\n"
        "from gated_interp.cli.console import say, say_exactly, show, tell\n"
        "say('a'); say_exactly('b'); show('c', ['d'], [['e']]); tell('reached')"
    )
    gone = without_reader(sys.executable, "-c", code)
    assert (gone.returncode, gone.stderr) == (0, "reached\n")
    assert without_reader(*COMMAND, "--help").stderr == ""


def test_output_into_a_pipe_is_plain_and_what_cannot_be_encoded_is_replaced():
    code = (
        "import sys\n"
        "from gated_interp.cli.app import unicode_everywhere\n"
        "from gated_interp.cli.console import progress, show, show_facts\n"
        "unicode_everywhere()\n"
        "with progress('working', 'things') as update: update(1, 2)\n"
        "show('[bold]A…B[/]', ['x', 'much'], [['[red]y', 1.23456], ['a', float('nan')]])\n"
        "show_facts('facts', [('name', 'v' * 300)])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "TERM": "xterm-256color"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, check=True
    )
    assert found.stderr == b""
    assert found.stdout.decode("ascii").splitlines() == [
        "[bold]A?B[/]",
        "x        much",
        "[red]y  1.235",
        "a           -",
        "",
        "facts",
        f"name  {'v' * 300}",
        "",
    ]


@pytest.mark.parametrize("command", ["ablate", "circuits"])
def test_pages_come_with_the_figures_unless_other_formats_are_asked_for(
    command, manual, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        "gated_interp.views.shown.write_all", lambda shown, kinds, say: asked.append(kinds) or []
    )
    cli(command, manual, "--out", tmp_path)
    cli(command, manual, "--out", tmp_path, "--format", "pdf")
    assert asked == [["svg", "png", "html"], ["pdf"]]


def test_ablate_prints_what_each_head_is_worth_and_writes_figures(manual, tmp_path):
    result = cli("ablate", manual, "--out", tmp_path, "--format", "html")
    lines = [line.split() for line in result.stdout.splitlines()]
    # The manual model: head 0 writes 2 for trigram 1 and 1 for trigram 3, head 1 mirrors it.
    start = next(
        i for i, line in enumerate(lines) if line[1:6] == ["Change", "in", "the", "logit", "of"]
    )
    minus = str.maketrans({"−": "-"})
    numbers = [[v.translate(minus) for v in line] for line in lines[start + 2 : start + 5]]
    table = {line[0]: [float(v) for v in line[-3:]] for line in numbers}
    assert table["L0H0"][0] == table["all"][0]
    assert table["L0H0"][0] + 0 == pytest.approx(-2, abs=0.01)
    assert table["L0H1"][1] == pytest.approx(-2, abs=0.01)
    assert table["L0H0"][2] == table["L0H1"][2] == pytest.approx(-1, abs=0.01)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "manual-ablation.html", "manual-ablation.csv", "manual-ablation-loss.csv",
        "manual-ablation-kl.csv", "manual-ablation-accuracy.csv", "manual-shapley.html",
        "manual-shapley-values.csv", "manual-shapley-interactions.csv",
    }  # fmt: skip


def test_circuits_prints_circuits_and_measures_and_writes_figures(gated, tmp_path):
    result = cli("circuits", gated, "--out", tmp_path, "--format", "html", "--trigram", 2)
    for words in ("copying score", "open pairs", "participation ratio", "superposed", "fvu"):
        assert words in result.stdout
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "block-circuits.html", "block-circuits.csv", "block-loadings.html", "block-loadings.csv",
        "block-wiring.html", "block-wiring-reads.csv", "block-wiring-writes.csv",
        "block-attention.html", "block-attention.csv", "block-gates.html", "block-gates.csv",
        "block-circuit-summary.csv", "block-superposition.csv", "block-superposition-model.csv",
    }  # fmt: skip


def test_a_trigram_that_is_not_there_is_one_sentence(manual):
    for command in ("ablate", "circuits"):
        sentence = one_sentence(cli(command, manual, "--trigram", 4, code=1))
        assert "no trigram 4" in sentence


def test_lists_and_ranges():
    assert cli_options.whole_numbers("2:4", "--heads") == [2, 3, 4]
    assert cli_options.whole_numbers("5,2:3,2", "--heads") == [2, 3, 5]
    assert cli_options.numbers("0.05,0.2", "--alpha") == [0.05, 0.2]
    assert cli_options.formats_of("SVG, png") == ["svg", "png"]
    for bad in ("4:2", "", "a", "1.5", "0", "-1:2"):
        with pytest.raises(cli_options.WrongUsage):
            cli_options.whole_numbers(bad, "--heads")
    for bad in ("", "x", "1,,2"):
        with pytest.raises(cli_options.WrongUsage):
            cli_options.numbers(bad, "--alpha")


@pytest.mark.slow
def test_a_real_ctrl_c_and_resuming_give_the_same_as_no_stop(tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    command = [*COMMAND, "train-toy", "--steps", "300", "--batch-size", "50", "--device", "cpu",
               "--checkpoint-every", "1", "--out"]  # fmt: skip
    subprocess.run([*command, whole], check=True, capture_output=True)
    with subprocess.Popen([*command, parts], stderr=subprocess.PIPE, text=True) as stopped:
        try:
            deadline = time.monotonic() + 120
            while not single.state_of(parts).exists():
                assert time.monotonic() < deadline
                assert stopped.poll() is None
                time.sleep(0.02)
            stopped.send_signal(signal.SIGINT)
            _, said = stopped.communicate(timeout=60)
        finally:
            stopped.kill()
    assert stopped.returncode == 130, said
    assert said.startswith("Interrupted after ")
    assert said.endswith(" --resume\n")
    assert not parts.exists()
    subprocess.run([*command, parts, "--resume"], check=True, capture_output=True)
    a, b = load(whole), load(parts)
    for name, weight in a.state_dict().items():
        assert torch.equal(weight, b.state_dict()[name]), name


@pytest.mark.slow
def test_sweep_writes_a_table_and_figures_and_goes_on(tmp_path):
    grid = ["sweep", "--heads", "2", "--trigrams", "1:2", "--alpha", "0.05,0.2", "--seeds", 2,
            "--steps", 30, "--toy-steps", 300, "--sequences", 500, "--workers", 1,
            "--format", "html", "--out", tmp_path]  # fmt: skip
    printed = cli(*grid).stdout
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert len(table) == 4
    assert "2 seeds in each of 4 cells" in printed
    drawn = {p.name for p in (tmp_path / "figures").iterdir()}
    assert {"sweep-phase-0.05.html", "sweep-phase-0.2.html", "sweep-phase-0.2.csv"} <= drawn
    assert "4 of 4 cells are there already" in cli(*grid).stderr
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "sweep.csv"), table)
    again = cli("figures", tmp_path, "--format", "html", "--out", tmp_path / "again")
    assert f"{len(drawn)} files" in again.stdout
    sentence = one_sentence(cli("sweep", "--heads", "3", "--out", tmp_path, code=1))
    assert says("results-of-another-run", sentence)


@pytest.mark.slow
def test_reproduce_end_to_end(tmp_path):
    run, drawn = tmp_path / "run", tmp_path / "drawn"
    printed = cli("reproduce", "--only", "2H3ST", "--seeds", 3, "--steps", 60, "--workers", 1,
                  "--out", run, "--format", "html").stdout  # fmt: skip
    entry = paper.read_results(run)["experiments"]["2H3ST"]
    assert f"{entry['successes']} of 3" in printed
    stems = {p.stem for p in (run / "figures").glob("*.html")}
    assert {
        "2H3ST-before-after",
        "2H3ST-gates",
        "2H3ST-training",
        "2H3ST-roles",
        "reliability",
    } <= stems
    assert {"2H3ST-wiring", "2H3ST-toy-wiring", "2H3ST-circuits", "2H3ST-loadings"} <= stems
    assert "2H3ST-roles" in stems
    for stem in stems:
        assert list((run / "figures").glob(f"{stem}*.csv")), stem
    cli("figures", run, "--out", drawn, "--format", "html")
    assert {p.name for p in drawn.iterdir()} == {p.name for p in (run / "figures").iterdir()}
