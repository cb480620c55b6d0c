"""What a training command writes can be opened, whatever its options; each of them is tried."""

import pytest
import torch
from commands import cli, options_of
from refusals import refuses

from gated_interp.checkpoints import checkpoint
from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.core.errors import CheckpointError
from gated_interp.experiments import decompose, single
from gated_interp.experiments.originals import BENCHMARKS
from gated_interp.models.analytic import manual_model
from gated_interp.models.toy import ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.tasks.tokenizers import trained_tokenizer
from gated_interp.training.methods import METHODS

TEXT = "".join(f"line {i} of a text, in which {i % 11} is said once more\n" for i in range(200))
# Where a model goes and how it is computed is no part of what is written.
ELSEWHERE = {"help", "resume", "device", "checkpoint_every", "cache", "workers", "tracker"}
FEW = "--steps 2 --log-every 1 --evaluate-every 2 --batch-size 5"
SMALL = f"{FEW} --d-model 12 --heads 3 --context 10"
# Between them, every option of each command, away from its default.
RUNS = {
    "train-toy": [
        f"{FEW} --heads 3 --trigrams 2 --positions 7 --d-head 2 --output-bias --seed 5 --lr 0.02",
        f"{FEW} --no-output-bias --lr-decay 0.5 --accumulate 2 --clip-norm 0.3 --data fresh "
        "--precision bfloat16",
        f"{FEW} --data fixed --sequences 30 --warmup 0.4 --weight-decay 0.1 --decay-shape cosine "
        "--n-held-out 20",
    ],
    "train-gated": [
        f"TOY {FEW} --recipe reference --expansion 3 --gate tanh --d-gate 3 --normalize --seed 2",
        f"TOY {FEW} --heads 5 --gate hard_concrete --init duplicate --noise 0.2 --no-normalize",
        f"TOY {FEW} --no-unit-scales --no-value-bias --output-scale 3 "
        "--alpha 0.3 --alpha-unit absolute --gate relu",
        f"TOY {FEW} --value-bias --overlap 0.3 --penalty-p 0.5 --penalty-pairs all --gate binary",
        f"TOY {FEW} --penalty-off 0.1 --penalty-ramp 0.2 --gate-bias 0.4 --fvu-target 0.1",
        f"TOY {FEW} --lr 0.02 --lr-decay 0.5 --accumulate 2 --clip-norm 0.3 --data fresh "
        "--precision bfloat16 --fvu-target 0",
        f"TOY {FEW} --data fixed --sequences 30 --no-scale-output --output-bias --d-head 2",
        f"TOY {FEW} --overlap 0.3 --overlap-power 1 --overlap-unit write --sink-weight 0.1 "
        "--unit-scales --fvu-target 0.1 --factor-start 0.2 --focus-weight 1 --anneal-from 0.2 "
        "--anneal-to 0.6",
        f"TOY {FEW} --scale-output --no-output-bias --gate-per head --penalty expected "
        "--gate bernoulli --overlap-power 2 --downstream 0.3 --fvu-rate 0.1 --fvu-from 0.1 "
        "--opened-share 0.5 --opened-weight 2 --opened-steps 1 "
        "--factor-floor 0.1 --warmup 0.4 --weight-decay 0.1 --decay-shape cosine --n-held-out 20",
    ],
    "train-lm": [
        f"TEXT {SMALL} --tokenizer TOKENIZER --layers 2 --d-head 5 --norm LN",
        f"TEXT {SMALL} --vocab 262 --norm none --positions shortformer --repeat 0.4 --seed 3",
        f"TEXT TEXT {SMALL} --tokenizer TOKENIZER --vocab 271 --norm LNPre --lr 0.01 "
        "--warmup 0.4 --weight-decay 0.3",
        f"TEXT {SMALL} --vocab 262 --accumulate 2 --clip-norm 0.3 --precision bfloat16 "
        "--decay-shape linear --n-held-out 20",
    ],
}  # fmt: skip
ALL = [(command, options) for command, runs in RUNS.items() for options in runs]


@pytest.fixture
def places(tmp_path):
    text, tokenizer = tmp_path / "text.txt", tmp_path / "tokenizer.json"
    text.write_text(TEXT)
    tokenizer.write_text(trained_tokenizer([TEXT.upper()], 271))
    toy = save(build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=7)), tmp_path / "toy.safetensors")
    return {"TEXT": text, "TOKENIZER": tokenizer, "TOY": toy}


@pytest.mark.parametrize("command", RUNS)
def test_every_option_of_a_training_command_is_tried(command):
    said = " ".join(RUNS[command]).split()
    for name, options in options_of(command).items():
        if name not in ELSEWHERE | {"out"}:
            assert {*options} <= {*said}, name


@pytest.mark.parametrize(("command", "options"), ALL)
def test_what_was_trained_is_what_is_opened(command, options, places, tmp_path, monkeypatch):
    trained, out = [], tmp_path / "m.safetensors"
    monkeypatch.setattr(single, "save", lambda m, *a, **k: (trained.append(m), save(m, *a, **k)))
    said = cli(command, *(places.get(word, word) for word in options.split()), "--device", "cpu",
               "--out", out).stdout  # fmt: skip
    assert f"The model is in {out}." in said
    model = load(out)
    tokens = torch.arange(12).view(2, 6) % model.cfg.d_vocab
    with torch.no_grad():
        assert torch.equal(model(tokens), trained[0](tokens))
    cli("info", out)
    if command == "train-lm":
        assert model.task.sample(2, 0).tokens.shape == (2, 10)  # its text is found again


@pytest.mark.parametrize("method", METHODS)
def test_what_decompose_writes_is_opened(method, tmp_path):
    model = BENCHMARKS["two-layers"].example()
    found = decompose.decompose(model, tmp_path, layers=[1], method=method, steps=2, seeds=1,
                                sequences=10, workers=1, pages=False)  # fmt: skip
    assert type(found.median(1).blocks[1].attn).__name__ != "Attention"


def test_what_cannot_be_read_back_is_not_written(tmp_path, monkeypatch):
    path = save(manual_model(2, 3).model, tmp_path / "m.safetensors")
    before = path.read_bytes()
    encode = checkpoint.encode
    monkeypatch.setattr(checkpoint, "encode", lambda i: encode(i).replace('"notes"', '"nodes"'))
    with refuses("missing-key", CheckpointError):
        save(manual_model(3, 4).model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_cannot_be_read_back_is_not_written(tmp_path, monkeypatch):
    block = GatedAttention(GatedConfig(d_model=8, n_heads=3))
    monkeypatch.setattr(block, "kind", "of another kind", raising=False)
    with refuses("no-such-kind"):
        block.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
