"""Known circuits: their truth holds by interchange, computed here with hooks of its own."""

import json
import shutil

import pytest
import torch

import gated_interp as gi
from gated_interp.analysis.interchange import edge_effects, receivers_of
from gated_interp.anatomy.nodes import nodes_of
from gated_interp.core.shipped import located
from gated_interp.experiments.plant import plant_settings, run_plant
from gated_interp.models.program_model import build_program
from gated_interp.tasks.programs import PLANTED, PROGRAMS
from gated_interp.training.interchange import Interchange

NAMES = gi.known_circuits()


@torch.no_grad()
def moved_by(circuit, nodes, pairs):
    """Mean change of the metric with the corrupted prompts' outputs of ``nodes``, as a share."""
    model = circuit.model
    corrupted, cache = model.run_with_cache(pairs.corrupted)
    clean = pairs.metric(model(pairs.clean))

    def hook(name):
        def patch(value, hook):
            value = value.clone()
            for node in nodes:
                layer, _, head = node[1:].partition("H")
                if head and name == f"blocks.{layer}.attn.hook_z":
                    value[:, :, int(head)] = cache[name][:, :, int(head)]
                if not head and name == f"blocks.{node[1:].split()[0]}.hook_mlp_out":
                    value = cache[name]
            return value

        return name, patch

    layers = range(model.cfg.n_layers)
    hooks = [hook(f"blocks.{i}.attn.hook_z") for i in layers]
    if not model.cfg.attn_only:
        hooks += [hook(f"blocks.{i}.hook_mlp_out") for i in layers]
    patched = pairs.metric(model.run_with_hooks(pairs.clean, fwd_hooks=hooks))
    return ((patched - clean).abs().mean() / (clean - pairs.metric(corrupted)).mean()).item()


def test_there_are_enough_and_they_are_small():
    compiled = [name for name in NAMES if name.startswith("compiled-")]
    planted = [name for name in NAMES if name.startswith("planted-")]
    assert len(compiled) >= 6
    assert len(planted) >= 6
    size = 0
    for name in NAMES:
        with located(name) as (path, _):
            size += path.stat().st_size + path.with_suffix(".json").stat().st_size
    assert size < 2 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_true_nodes_matter_and_the_others_do_not(name):
    circuit = gi.known_circuit(name)
    pairs = circuit.pairs(200, seed=5)
    others = [node for node in nodes_of(circuit.model) if node not in circuit.nodes]
    assert others
    for node in circuit.nodes:
        assert moved_by(circuit, [node], pairs) > 0.3, node
    for node in others:
        assert moved_by(circuit, [node], pairs) < 0.06, node
    assert moved_by(circuit, others, pairs) < 0.09


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_right(name):
    circuit = gi.known_circuit(name)
    batch = circuit.task.sample(300, seed=9)
    with torch.no_grad():
        right = circuit.model(batch.tokens)[:, -1].argmax(-1) == batch.answer
    assert right.float().mean() > 0.99
    assert circuit.record.measured["accuracy"] > 0.99
    assert circuit.record.measured.get("strict_accuracy", 1.0) > 0.98


@pytest.mark.parametrize("name", NAMES)
def test_edges_are_of_the_circuit_and_lead_to_the_logits(name):
    circuit = gi.known_circuit(name)
    receivers = receivers_of(circuit.model)
    built_nodes, built_edges = circuit.by_construction
    assert set(circuit.nodes) <= set(built_nodes)
    assert all(receiver in receivers for _, receiver in [*circuit.edges, *built_edges])
    reading = {receiver.partition(".")[0] for _, receiver in circuit.edges}
    assert set(circuit.nodes) | {"logits"} <= reading
    assert {sender for sender, _ in circuit.edges} >= set(circuit.nodes)


def test_edge_effects_add_up_to_the_nodes_where_there_is_one_path():
    circuit = gi.known_circuit("planted-induction-0")
    pairs = circuit.pairs(50, seed=1)
    edges = edge_effects(circuit.model, pairs).set_index(["sender", "receiver"])["effect"]
    by_node = moved_by(circuit, ["L0H1"], pairs)
    assert edges["L0H1", "L1H2.k"] == pytest.approx(by_node, abs=0.1)
    assert not circuit.model.cfg.use_split_qkv_input


def test_pairs_are_of_their_seed_and_their_answers_differ():
    task = gi.known_circuit(NAMES[0]).task
    one, again, other = task.pairs(20, 3), task.pairs(20, 3), task.pairs(20, 4)
    assert torch.equal(one.clean, again.clean)
    assert not torch.equal(one.clean, other.clean)
    assert (one.right != one.wrong).all()
    assert one.metric(torch.zeros(20, 6, 10)).shape == (20,)


@pytest.mark.parametrize("program", [*PROGRAMS])
def test_probes_and_foils_agree_with_the_program(program):
    task = gi.tasks.ProgramTask(program)
    probes, foils = task.probes(400, 0), task.foils(400, 0)
    assert probes.cases == foils.cases == [*task.cases]
    answers = PROGRAMS[program].answers(probes.tokens)[:, -1]
    assert torch.equal(answers, probes.target)
    assert (foils.target != answers).all()


def test_an_interchanged_variable_changes_the_answer_as_the_program_says():
    program = PLANTED["induction"]
    base, source = torch.tensor([[1, 2, 5, 1]]), torch.tensor([[3, 1, 1, 4]])
    assert program.answers(base)[0, -1] == 2
    previous = program.run(source)["previous"]  # [-1, 3, 1, 1]: 1 came before places 2 and 3
    assert program.answers(base, {"previous": previous})[0, -1] == -1  # followed by 5 and by 1


def test_a_planted_program_is_written_with_its_truth(tmp_path):
    run = plant_settings(
        "marker", 1, variables={"previous": "L0H1", "read": "L1H1"}, steps=3, n_heads=2,
        d_mlp=0, normalization="none", batch_size=8,
    )  # fmt: skip
    circuit = run_plant(run, tmp_path / "own.safetensors")
    again = gi.known_circuit(tmp_path / "own.safetensors")
    assert again.record == circuit.record
    assert again.by_construction[0] == ["L0H1", "L1H1"]
    assert ("L0H1", "L1H1.v") in again.by_construction[1]
    assert isinstance(gi.open_model(tmp_path / "own.safetensors"), gi.types.ProgramTransformer)


@pytest.mark.slow
def test_strict_interchange_training_plants_a_program():
    run = plant_settings("marker", 5, steps=300, d_mlp=0, normalization="none", n_heads=2,
                         variables={"read": "L1H0", "previous": "L0H1"})  # fmt: skip
    model = build_program(run.model)
    objective = Interchange(model, run.variables, run.config)
    rows = gi.train_model(model, run.config, objective=objective, progress=False).history
    assert rows["interchange_accuracy"].iloc[-1] > 0.95


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"previous": "L9H1"}, "no-such-node"),
        ({"nothing": "L0H1"}, "no-such-variable"),
        ({"previous": "L1H2"}, "two-variables-in-one-node"),
        ({"previous": "L0 mlp"}, "wrong-kind-of-node"),
        ({"previous": "L1H0"}, "variable-read-before"),
    ],
)
def test_places_that_cannot_be_are_refused(variables, code):
    with pytest.raises(gi.GatedInterpError) as error:
        plant_settings("induction", variables=variables)
    assert error.value.code == code


def test_the_truth_of_another_model_is_refused(tmp_path):
    first, second = gi.known_circuit(NAMES[0]), gi.known_circuit(NAMES[1])
    with pytest.raises(gi.GatedInterpError) as error:
        first.require_model(second.model)
    assert error.value.code == "circuit-of-another-model"
    with located(NAMES[0]) as (one, _), located(NAMES[1]) as (two, _):
        shutil.copy(one, tmp_path / "model.safetensors")
        with pytest.raises(gi.CheckpointError) as error:
            gi.known_circuit(tmp_path)
        assert error.value.code == "model-without-truth"
        shutil.copy(two.with_suffix(".json"), tmp_path / "model.json")
        with pytest.raises(gi.GatedInterpError) as error:
            gi.known_circuit(tmp_path)
        assert error.value.code == "circuit-of-another-model"
        (tmp_path / "model.json").write_text(json.dumps({"model": "x"}))
        with pytest.raises(gi.CheckpointError) as error:
            gi.known_circuit(tmp_path)
        assert error.value.code == "missing-key"
