"""The store of captured activations, and training from it."""

import dataclasses
import json

import pytest
import torch
from torch.testing import assert_close

import gated_interp as gi
from gated_interp.anatomy.batch import Batch
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.tasks.mixture import Mixture, RandomRepeats
from gated_interp.training import activations
from gated_interp.training.activations import ActivationStore, capture
from gated_interp.training.capture import attention_io
from gated_interp.training.config import TrainConfig
from gated_interp.training.loop import train_gated
from gated_interp.training.objectives import Imitate
from gated_interp.training.processes import Group
from tests.refusals import refuses


@pytest.fixture(scope="module")
def model():
    return gi.load("austen-2l")


@pytest.fixture(scope="module")
def data(model):
    return RandomRepeats(model.cfg.d_vocab, 24)


@pytest.fixture(scope="module")
def store(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return capture(model, None, folder, data=data, sequences=20, progress=False)


def rows(store):
    return store.batch(torch.arange(store.sequences))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_store_holds_what_the_layers_receive_and_write(model, data, tmp_path, precision):
    store = capture(
        model, [1], tmp_path, data, sequences=10, seed=3, precision=precision, progress=False
    )
    batch = store.batch(torch.tensor([7, 2]))
    there, found = attention_io(model, 1, batch.tokens), store.read(1, batch)
    near = {"float16": 2e-3, "bfloat16": 2e-2}[precision]
    for mine, theirs in zip(found.inputs, there.inputs, strict=True):
        assert_close(mine, theirs, rtol=near, atol=near)
    assert_close(found.output, there.output, rtol=near, atol=near)


def test_the_same_call_goes_on_where_it_was_stopped(model, data, store, tmp_path, monkeypatch):
    calls, captured = [], activations._captured

    def stops(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return captured(*args)

    monkeypatch.setattr(activations, "_captured", stops)
    with pytest.raises(KeyboardInterrupt):
        capture(model, None, tmp_path, data=data, sequences=20, progress=False)
    with refuses("capture-unfinished", CheckpointError, done=8):
        ActivationStore.open(tmp_path)
    found = capture(model, None, tmp_path, data=data, sequences=20, progress=False)
    assert len(calls) == 2 + 2  # 8 were done
    for layer in (0, 1):
        mine, theirs = (s.read(layer, rows(s)).output for s in (found, store))
        assert_close(mine, theirs, rtol=0, atol=0)
    capture(model, None, tmp_path, data=data, sequences=20, progress=False)
    assert len(calls) == 4  # finished: only opened


def test_padding_is_kept(model, tmp_path):
    tokens = torch.arange(1, 13).view(2, 6)
    mask = torch.ones(2, 6).long()
    mask[0, 4:] = 0
    store = capture(model, 0, tmp_path, (tokens, mask), sequences=8, progress=False)
    batch = rows(store)
    short = batch.tokens[:, 0] == 1
    assert bool((batch.counted.sum(1)[short] == 4).all())
    assert bool(short.any())
    found = store.read(0, batch).output[short][0, :4]
    assert_close(found, attention_io(model, 0, tokens[:1, :4]).output[0], rtol=2e-3, atol=2e-3)


def test_every_sequence_is_seen_once_before_any_is_seen_again(store):
    of_step = store.shuffled(5, seed=1)
    first = torch.cat([of_step(i).rows for i in range(4)])
    second = torch.cat([of_step(i).rows for i in range(4, 8)])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(20))
    assert first.tolist() != second.tolist()
    assert of_step(2).rows.tolist() == store.shuffled(5, seed=1)(2).rows.tolist()


def test_training_from_a_store_is_training_from_the_model(model, data, store):
    config = TrainConfig.pretrained(steps=8, log_every=1, precision="float32", batch_size=5)

    def trained(source):
        attn = model.blocks[1].attn
        block = GatedAttention.from_attention(attn, 2, init="duplicate", d_gate=4)
        return train_gated(model, block, config, layer=1, data=source, progress=False)

    class Same:
        """The store's sequences, run through the model."""

        identity = "the same"

        def sample(self, n, seed):
            return Batch(store.sample(n, seed).tokens)

        def shuffled(self, size, seed):
            order = store.shuffled(size, seed)
            return lambda step: Batch(order(step).tokens)

    mine, theirs = trained(store).history, trained(Same()).history
    for name in ("loss", "fvu", "first_position", "overlap", "l0"):
        assert mine[name].tolist() == pytest.approx(theirs[name].tolist(), rel=0.05, abs=1e-3)


def test_a_store_of_another_model_is_refused(model, store, data):
    other = gi.load("austen-2l")
    with torch.no_grad():
        other.blocks[0].attn.W_O[0, 0, 0] += 1
    block = GatedAttention.from_attention(other.blocks[1].attn, 2, init="duplicate")
    with refuses("activations-of-another-model"):
        train_gated(other, block, TrainConfig(steps=1), layer=1, data=store, progress=False)
    with refuses("other-activations", CheckpointError):
        capture(other, None, store.folder, data=data, sequences=20, progress=False)


def test_bad_stores_are_refused_in_a_sentence(model, data, store, tmp_path, monkeypatch):
    with refuses("no-activations", CheckpointError):
        ActivationStore.open(tmp_path)
    with refuses("layer-not-captured"):
        store.read(5, rows(store))
    with refuses("nothing-to-capture"):
        capture(model, [], tmp_path, data)
    with refuses("store-smaller-than-batch"):
        store.shuffled(21, 0)
    capture(model, 0, tmp_path / "a", data, sequences=8, progress=False)
    with open(tmp_path / "a" / "L0.bin", "r+b") as file:
        file.truncate(100)
    with refuses("activations-damaged", CheckpointError):
        ActivationStore.open(tmp_path / "a")
    (tmp_path / "a" / "activations.json").write_text("{")
    with refuses("activations-damaged", CheckpointError):
        ActivationStore.open(tmp_path / "a")


def test_a_disk_that_is_full_leaves_what_was_finished(model, data, tmp_path, monkeypatch):
    said = []
    free = activations.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(activations.shutil, "disk_usage", lambda _: free)
    with refuses("no-room-for-activations"):
        capture(model, 0, tmp_path / "a", data, sequences=8, progress=False, say=said.append)
    assert not (tmp_path / "a").exists()
    assert not said
    monkeypatch.undo()

    opened = activations._opened

    class Full:
        """A file that takes the first 8 sequences."""

        def __init__(self, file):
            self.file, self.writes = file, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def flush(self):
            self.file.flush()

        def write(self, data):
            self.writes += 1
            if self.writes > 1:
                raise OSError(28, "No space left on device")
            self.file.write(data)

    monkeypatch.setattr(activations, "_opened", lambda *args: Full(opened(*args)))
    with refuses("disk-full"):
        capture(model, 0, tmp_path / "b", data, sequences=20, progress=False)
    assert json.loads((tmp_path / "b" / "activations.json").read_text())["done"] == 8
    monkeypatch.undo()
    capture(model, 0, tmp_path / "b", data, sequences=20, progress=False, say=said.append)
    assert said
    assert "GB" in said[0]


def test_a_mixture_draws_from_each_source_by_its_share(model):
    mixed = Mixture((RandomRepeats(9, 7, bos=1), RandomRepeats(9, 7, bos=2)), (1, 3))
    tokens = mixed.sample(400, seed=0).tokens
    assert 0.15 < (tokens[:, 0] == 1).float().mean() < 0.35
    assert tokens.equal(mixed.sample(400, seed=0).tokens)
    assert bool((tokens[:, 1:4] == tokens[:, 4:7]).all())
    with refuses("bad-shares"):
        Mixture((RandomRepeats(9, 7),), (1, 2))
    with refuses("mixture-of-lengths"):
        Mixture((RandomRepeats(9, 7), RandomRepeats(9, 9)), (1, 1)).sample(20, seed=0)


def test_text_with_repeats_has_three_kinds_of_sequences(model):
    tokens = gi.text.with_repeats(model.task).sample(200, seed=0).tokens
    half = (model.task.n_positions - 1) // 2
    once, again = tokens[:, 1 : 1 + half], tokens[:, -half:]
    assert tokens.shape == (200, model.task.n_positions)
    assert 0.1 < (once == again).all(1).float().mean() < 0.5


def test_numbers_that_half_precision_does_not_hold_are_refused(model, data, tmp_path):
    large = gi.load("austen-2l")
    with torch.no_grad():
        large.blocks[0].attn.W_O *= 1e9
    with refuses("activations-too-large"):
        capture(large, 0, tmp_path, data, sequences=8, progress=False)
    assert capture(large, 0, tmp_path, data, sequences=8, precision="bfloat16", progress=False)
    assert issubclass(CheckpointError, GatedInterpError)


def test_unit_scales_change_units_and_nothing_else(model, data):
    """A layer that writes eight times as much, its block's penalties in the layer's variance."""
    histories = []
    for scale in (1, 8):
        large = gi.load("austen-2l")
        with torch.no_grad():
            large.blocks[1].attn.W_O *= scale
        block = GatedAttention.from_attention(
            large.blocks[1].attn, 2, init="duplicate", noise=0.0, d_gate=4
        )
        config = TrainConfig.pretrained(steps=6, log_every=1, precision="float32", lr=3e-3)
        before = block.W_O.abs().mean().item()
        result = train_gated(large, block, config, layer=1, data=data, progress=False)
        histories.append(result.history["fvu"].tolist())
        assert block.W_O.abs().mean().item() == pytest.approx(before, rel=0.2)
    assert histories[0][-1] > 1e-6  # it moved
    assert histories[1][1:] == pytest.approx(histories[0][1:], rel=0.3)


def test_the_overlap_relative_to_a_write_by_hand():
    block = GatedAttention(gi.GatedConfig(d_model=2, n_heads=2, normalize_weights=False))
    with torch.no_grad():
        block.raw_W_O[:] = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    z = torch.tensor([[[[3.0], [1.0]], [[0.5], [0.0]], [[1.0], [1.0]]]])
    written = torch.tensor([[12.0, 3.0, 0.0]])
    # 2 * 3 * 1 = 6 of 12; nothing of 3; 2 * 1 * 1 of a tenth of the mean 5
    wanted = (6 / 12 + 0 + 2 / 0.5) / 3
    assert_close(block.overlap_penalty(z, 1.0, written=written), torch.tensor(wanted))
    real = torch.tensor([[True, True, False]])
    assert_close(block.overlap_penalty(z, 2.0, 1.0, real, written), torch.tensor(2 * 0.5 / 2))


def test_the_first_position_is_weighed_apart(model):
    from gated_interp.training.losses import first_position_error, reconstruction_error

    target = torch.tensor([[[8.0, 0.0], [1.0, 1.0], [2.0, 0.0]]])
    output = torch.tensor([[[4.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    later = torch.tensor([[False, True, True]])
    size = target[:, 0].square().mean()
    share = first_position_error(output, target, ~later, size)
    error = reconstruction_error(output, target, later) + 0.5 * 3 * share
    assert_close(share, torch.tensor(0.25))  # 4^2 of 8^2
    assert_close(error, torch.tensor(0.25 + 0.5 * 3 * 0.25))


def test_repeated_positions_are_marked_and_kept(model, tmp_path):
    """A position is marked if its token and all before it, back to a copy, were said before."""
    random = RandomRepeats(model.cfg.d_vocab, 12)
    drawn = random.sample(3, seed=0)
    assert drawn.focus.tolist() == [[False] * 7 + [True] * 5] * 3
    mixed = gi.text.with_repeats(model.task)
    batch = mixed.sample(60, seed=1)
    for tokens, focus in zip(batch.tokens, batch.focus, strict=True):
        if bool(focus.any()):
            period = int(focus.long().argmax()) - 1
            assert bool(focus[period + 1 :].all())
            assert bool((tokens[period + 1 :] == tokens[1:-period]).all())
    assert 0.3 < batch.focus.any(1).float().mean() < 0.8  # four of seven sequences repeat
    store = capture(model, 0, tmp_path, mixed, sequences=16, progress=False)
    first = mixed.sample(8, activations.derive(0, activations.Stream.CAPTURED, 0))
    kept = store.batch(torch.arange(16))
    assert bool((kept.tokens[:8] == first.tokens).all())
    assert bool((kept.focus[:8] == first.focus).all())
    assert bool((kept[torch.tensor([5])].focus == first.focus[5]).all())


def test_a_focus_weighs_the_error_of_the_marked_positions(model, data):
    block = GatedAttention.from_attention(model.blocks[1].attn, 2, init="random", d_gate=4)
    config = TrainConfig.pretrained(precision="float32", focus_weight=5.0, alpha=0.0, overlap=0.0)
    config = config.replace(sink_weight=None, unit_scales=False)
    objective = Imitate(block, model, 1, config, data, Group(config))
    source = data.sample(6, seed=3)
    batch = dataclasses.replace(Batch.of(model, source.tokens), focus=source.focus)
    seen = attention_io(model, 1, batch)
    objective.begin(0)
    found = objective.loss(batch).detach()
    with torch.no_grad():
        errors = (block(*seen.inputs) - seen.output).square().mean(-1)
    marked = source.focus.float()  # the second time that 12 of 24 positions say something
    wanted = (errors * (1 + 4 * marked)).sum() / (1 + 4 * marked).sum()
    assert_close(found, wanted, rtol=1e-4, atol=0)
    assert not torch.allclose(found, errors.mean(), rtol=0.01)
    with refuses("nothing-in-focus", weight=5.0):
        objective.loss(Batch.of(model, source.tokens))
