"""A folder with a finished run, asked for other settings: every study refuses, nothing changes."""

import json

import pytest
from commands import cli, one_sentence
from refusals import says
from test_full_disk import one_run, one_toy

from gated_interp.experiments import originals, paper

TINY = ["--seeds", 1, "--steps", 1, "--workers", 1]
SHORT = [*TINY, "--toy-steps", 1, "--format", "html"]
DECOMPOSE = ["decompose", "2H3ST-toy", *TINY, "--sequences", 8]
# Each study as short as can be, and what is changed about it afterwards.
STUDIES = {
    "reproduce": (["reproduce", "--only", "2H3ST", *TINY, "--format", "html"],
                  ["--steps 2", "--seeds 2", "--first-seed 3", "--recipe reference",
                   "--only 3H4ST"]),
    "benchmarks": (["reproduce", "--only", "conditional", *TINY, "--format", "html"],
                   ["--steps 2", "--seeds 2", "--first-seed 3"]),
    "sweep": (["sweep", "--heads", 1, "--trigrams", 2, *SHORT],
              ["--steps 2", "--heads 2", "--seeds 2", "--first-seed 3", "--recipe reference"]),
    "reliability": (["reliability", "--only", "2H3ST", "--only", "reliable", *SHORT],
                    ["--steps 2", "--seeds 2", "--first-seed 3", "--toy-steps 2"]),
    "phase": (["phase", "--heads", 1, "--trigrams", 2, *SHORT],
              ["--steps 2", "--seeds 2", "--first-seed 3", "--toy-steps 2"]),
    "repeats": (["repeats", "--only", "2H3ST", "--repeats", 1, *SHORT[:-2]],
                ["--steps 2", "--seeds 2", "--toy-steps 2"]),
    "frontier": (["frontier", "--task", "2H3ST", "--method", "ungated", *SHORT],
                 ["--steps 2", "--seeds 2", "--first-seed 3", "--toy-steps 2"]),
    "width": (["frontier", "--width", "--task", "2H3ST", "--method", "ungated", *SHORT],
              ["--steps 2", "--seeds 2", "--first-seed 3"]),
    "decompose": (DECOMPOSE, ["--steps 2", "--fvu 0.1", "--alpha 0.2", "--heads 3",
                              "--sequences 9", "--spare 0.1", "--method topk"]),
}  # fmt: skip


def state(folder):
    found = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}
    return {p: s for p, s in found.items() if p.suffix != ".lock"}


@pytest.mark.parametrize("study", STUDIES)
def test_other_settings_are_refused_and_nothing_is_touched(study, tmp_path, monkeypatch):
    if study == "reproduce":  # whose toys must have learnt
        monkeypatch.setattr(originals, "train_toy_seeds", one_toy)
        monkeypatch.setattr(paper, "train_gated_seeds", one_run)
    command, changes = STUDIES[study]
    done = tmp_path / "done"
    code = 1 if study in ("reproduce", "repeats") else 0  # the shown run is not clean
    cli(*command, "--out", done, code=code)
    before = state(done)
    assert before
    for change in changes:
        name, value = change.split()
        changed = [*command, name, value]
        if name in command:
            at = command.index(name) + 1
            changed = [*command[:at], value, *command[at + 1 :]]
        said = one_sentence(cli(*changed, "--out", done, code=1))
        assert "another folder" in said, (change, said)
        assert state(done) == before, change


def test_a_run_that_stopped_is_not_taken_for_another(tmp_path, monkeypatch):
    """What has finished of an interrupted run is work too."""
    monkeypatch.setattr(originals, "train_toy_seeds", one_toy)

    def stopping(task, *rest):
        if task.n_trigrams == 3:
            raise KeyboardInterrupt
        return one_run(task, *rest)

    monkeypatch.setattr(paper, "train_gated_seeds", stopping)
    run = ["reproduce", "--seeds", 1, "--workers", 1, "--format", "html", "--out", tmp_path]
    cli(*run, code=130)
    before = state(tmp_path)
    assert any("parts" in str(p) for p in before)
    said = one_sentence(cli(*run, "--steps", 7, code=1))
    assert says("results-of-another-run", said)
    assert state(tmp_path) == before


@pytest.mark.parametrize("command", [["reproduce", "--only", "2H3ST", *TINY], DECOMPOSE])
@pytest.mark.parametrize("said", [{}, {"config.json": {"seeds": -1}}, {"config.json": []}])
def test_results_of_who_knows_what_stay(command, said, tmp_path):
    for name, content in ({"results.json": {"mine": 1}} | said).items():
        (tmp_path / name).write_text(json.dumps(content))
    before = state(tmp_path)
    assert says("table-without-settings", one_sentence(cli(*command, "--out", tmp_path, code=1)))
    assert state(tmp_path) == before


def test_methods_at_another_layer_go_to_another_folder(tmp_path):
    (tmp_path / "methods-runs.csv").write_text("method,layer\ngated,1\n")
    before = state(tmp_path)
    command = [*DECOMPOSE, "--method", "all", "--out", tmp_path]
    assert says("methods-at-another-layer", one_sentence(cli(*command, code=1)))
    assert state(tmp_path) == before
