"""What every kind of task does alike: samples, probes, foils, checkpoints, sentences."""

import dataclasses

import pytest
import torch
from refusals import refuses

import gated_interp as gi
from gated_interp.analysis.foils import false_alarms
from gated_interp.analysis.holders import holders
from gated_interp.core.errors import CheckpointError
from gated_interp.models.analytic import coherent_head, manual_model, two_readers
from gated_interp.models.analytic_tasks import (
    conditional_heads,
    induction_model,
    marked_relay,
    wide_pairs,
)
from gated_interp.tasks.kinds import TASK_KINDS
from gated_interp.tasks.task import ProbedTask

MODELS = {
    "skip_trigrams": lambda: manual_model(2, 3),
    "ov_coherent": coherent_head,
    "two_sources": two_readers,
    "repeated_tokens": induction_model,
    "two_layers": marked_relay,
    "wide_content": wide_pairs,
    "conditional": conditional_heads,
}
NEW = [name for name in MODELS if name != "skip_trigrams"]
SMALLER = {
    "ov_coherent": {"n_signals": 2, "n_noise": 1, "n_positions": 4},
    "two_sources": {"n_cases": 1, "n_noise": 1, "n_positions": 5},
    "repeated_tokens": {"n_tokens": 3, "shortest": 2, "longest": 2, "n_positions": 5},
    "two_layers": {"n_signals": 2, "n_noise": 1, "n_positions": 6},
    "wide_content": {"n_cases": 2, "n_contents": 3, "n_noise": 1, "n_positions": 5},
    "conditional": {"n_cases": 1, "n_noise": 1, "n_positions": 4},
}


def test_every_kind_has_a_model_of_known_answers():
    assert set(MODELS) == set(TASK_KINDS) - {"text", "program"}  # of which a model is no formula
    for name, make in MODELS.items():
        task = make().task
        assert type(task) is TASK_KINDS[name]
        assert isinstance(task, ProbedTask)
        assert len(task.token_names) == len(set(task.token_names)) == task.d_vocab
        assert list(task.cases) == list(range(1, len(task.cases) + 1))


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("smallest", [False, True])
def test_probes_are_what_comes_next_and_foils_are_not(name, smallest):
    task = TASK_KINDS[name](**(SMALLER[name] if smallest else {}))
    state = torch.get_rng_state()
    batch, again = task.sample(400, seed=3), task.sample(400, seed=3)
    assert torch.equal(batch.tokens, again.tokens)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(batch.tokens, task.sample(400, seed=4).tokens)
    assert batch.tokens.shape == (400, task.n_positions)
    assert batch.tokens.min() >= 0
    assert batch.tokens.max() < task.d_vocab
    answered, probes = task.answered(batch), task.probes(400, seed=3)
    row, position = answered[:, :-1].nonzero(as_tuple=True)
    assert torch.equal(probes.row, row)
    assert torch.equal(probes.position, position)
    assert torch.equal(probes.case, answered[row, position])
    assert torch.equal(probes.target, batch.tokens[row, position + 1])
    foils = task.foils(400, seed=3)
    assert set(probes.cases) == set(foils.cases) == set(task.cases)
    if name != "repeated_tokens":
        assert (foils.target != foils.tokens[foils.row, foils.position + 1]).all()


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("smallest", [False, True])
def test_the_model_answers_its_probes_and_no_foil(name, smallest):
    task = TASK_KINDS[name](**(SMALLER[name] if smallest else {}))
    truth = MODELS[name](task)
    found = gi.verdict(truth.model, truth.task, layer=truth.layer, n=400)
    assert found.learnt == list(task.cases)
    assert found.owners == truth.owners
    assert found.distributed == truth.distributed
    assert set(false_alarms(truth.model, task).values()) == {0.0}
    spread = [b for b, why in holders(truth.model, task, layer=truth.layer, n=400).why_not().items()
              if why.startswith("spread")]  # fmt: skip
    assert spread == truth.spread


@pytest.mark.parametrize("name", NEW)
def test_models_come_back_from_their_file(name, tmp_path):
    truth = MODELS[name]()
    path = gi.save(truth.model, tmp_path / f"{name}.safetensors", notes={"made": "by rule"})
    back = gi.load(path)
    assert (back.task, back.notes, back.model_name) == (truth.task, {"made": "by rule"}, name)
    assert type(back) is type(truth.model)
    for (n, mine), (m, theirs) in zip(
        truth.model.named_parameters(), back.named_parameters(), strict=True
    ):
        assert n == m
        assert torch.equal(mine, theirs)
        assert mine.requires_grad == theirs.requires_grad
    assert gi.save(back, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_gated_block_in_a_second_layer_comes_back_with_its_model(tmp_path):
    truth = marked_relay()
    block = gi.GatedAttention.from_attention(truth.model.blocks[1].attn, 2, d_head=3, seed=4)
    path = gi.save(gi.splice(truth.model, 1, block), tmp_path / "spliced.safetensors")
    back = gi.load(path)
    assert back.info.kind == "gated"
    assert list(back.info.replacements) == [1]
    tokens = truth.task.sample(5, seed=1).tokens
    assert torch.equal(back(tokens), gi.splice(truth.model, 1, block)(tokens))
    assert torch.equal(gi.unsplice(back)(tokens), truth.model(tokens))


def test_what_a_file_cannot_hold_is_one_sentence(tmp_path):
    truth = conditional_heads()
    truth.model.blocks[0].attn.b_O.data[0] = 1
    with refuses("model-differs-from-config"):
        gi.save(truth.model, tmp_path / "m.safetensors")
    task = gi.tasks.ConditionalTask()
    nobodys = gi.build_attention(gi.AttentionConfig.of(task, n_heads=2))
    with refuses("model-without-task"):
        gi.save(nobodys, tmp_path / "m.safetensors")
    nobodys.task = dataclasses.replace(task, n_positions=9)
    with refuses("stored-config-contradicts-task", CheckpointError):
        gi.save(nobodys, tmp_path / "m.safetensors")
    deep = gi.build_attention(gi.AttentionConfig.of(task, n_layers=9, n_heads=1), task)
    with refuses("number-beyond-limit", CheckpointError, name="n_layers", value=9, most=8):
        gi.save(deep, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_configs_that_fit_no_model_are_sentences():
    task = gi.tasks.TwoLayersTask()
    with refuses("config-not-square", d_vocab=13):
        gi.AttentionConfig.of(task, n_heads=1, d_model=20)
    with refuses("config-contradicts-task"):
        gi.build_attention(gi.AttentionConfig(d_vocab=5, n_positions=9, n_heads=1), task)
    with refuses("config-not-positive", field="n_layers", value=0):
        gi.AttentionConfig.of(task, n_heads=1, n_layers=0)
    with refuses("no-training-data"):
        gi.train_model(gi.build_attention(gi.AttentionConfig.of(task, n_heads=1)), progress=False)


@pytest.mark.parametrize(("embedding", "d_model"), [("identity", 0), ("learned", 20)])
def test_a_model_of_two_layers_trains_on_its_task(embedding, d_model):
    task = gi.tasks.TwoLayersTask()
    config = gi.AttentionConfig.of(
        task, n_layers=2, n_heads=2, d_head=4, embedding=embedding, d_model=d_model, seed=3
    )
    model, same = (gi.build_attention(config, task) for _ in range(2))
    still = model.embed.W_E.detach().clone()
    assert torch.equal(still, same.embed.W_E)
    how = gi.TrainConfig.toy(steps=30, batch_size=50, device="cpu")
    history = gi.train_model(model, how, progress=False).history
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert torch.equal(model.embed.W_E, still) == (embedding == "identity")


@pytest.mark.parametrize(
    ("kind", "wrong", "code"),
    [
        ("repeated_tokens", {"n_tokens": 8}, "bad-periods"),
        ("repeated_tokens", {"shortest": 9}, "bad-periods"),
        (
            "repeated_tokens",
            {"shortest": 1},
            "not-a-whole-number",
        ),
        ("repeated_tokens", {"n_positions": 10}, "not-a-whole-number"),
        ("two_layers", {"n_signals": 1}, "not-a-whole-number"),
        ("two_layers", {"n_positions": 5}, "not-a-whole-number"),
        ("wide_content", {"n_cases": 1}, "not-a-whole-number"),
        ("wide_content", {"n_contents": 2}, "not-a-whole-number"),
        ("wide_content", {"n_cases": 4, "n_positions": 6}, "not-a-whole-number"),
        ("conditional", {"n_noise": True}, "not-a-whole-number"),
        ("conditional", {"n_positions": 3}, "not-a-whole-number"),
    ],
)
def test_impossible_tasks_are_sentences(kind, wrong, code):
    with refuses(code):
        TASK_KINDS[kind](**wrong)


@pytest.mark.parametrize("name", NEW)
def test_no_sequence_is_a_sentence(name):
    with refuses("not-a-whole-number", name="n", value=0):
        TASK_KINDS[name]().sample(0, seed=1)
    with refuses("bad-seed", seed=-1):
        TASK_KINDS[name]().sample(5, seed=-1)
