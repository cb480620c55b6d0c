"""Every kind of replacement: its formula in plain loops, its stacked form, its training."""

import math
from typing import ClassVar

import attention_models
import pytest
import torch
from closeness import assert_close, twin
from refusals import refuses
from torch import nn
from transformer_lens.hook_points import HookPoint

import gated_interp as gi
from gated_interp.core.seeds import generator
from gated_interp.replacements import heads
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.gates import expected_open, gate_activation, logistic_noise
from gated_interp.replacements.heads import HeadsConfig
from gated_interp.replacements.replacement import (
    KINDS,
    Replacement,
    active,
    kind_named,
    register,
)
from gated_interp.replacements.sae import OutputAutoencoder, SAEConfig
from gated_interp.replacements.topk import TopKAttention, TopKConfig, k_at
from gated_interp.tasks.contexts import contexts_of
from gated_interp.training.stacked.blocks import STACKED, StackedAttention
from gated_interp.training.stacked.data import batch_of
from gated_interp.training.stacked.losses import cross_entropy as stacked_cross_entropy

TASK = gi.SkipTrigramTask(n_trigrams=3, n_positions=7)
V, ROWS, RUNS = TASK.d_vocab, 13, 3
GRADIENT = 4 * ROWS * TASK.n_positions


def one_hot(tokens, dtype=torch.float32):
    return nn.functional.one_hot(tokens, V).to(dtype)


def toy(seed=0, d_head=1):
    return attention_models.toy(TASK, n_heads=2, d_head=d_head, seed=seed)


def made(kind, seed, n_heads=5):
    """A replacement with every weight drawn, and a scale of its own."""
    scale = 1.0 + seed
    if kind.startswith("topk"):
        config = TopKConfig(
            d_model=V, n_heads=6, k=2, n_circuits=3, output_scale=scale,
            normalize_weights=kind == "topk",
        )  # fmt: skip
        block = TopKAttention(config)
    elif kind == "sae":
        config = SAEConfig(d_model=V, n_heads=n_heads, k=2, output_scale=scale)
        block = OutputAutoencoder(config, toy(seed).blocks[0].attn)
    else:
        options = {
            "open": {"gate": "open"},
            "bernoulli": {"gate": "bernoulli", "penalty": "expected", "d_gate": 2},
            "hard_concrete": {"gate": "hard_concrete", "penalty": "expected"},
            "per head": {"gate": "hard_concrete", "gate_per": "head", "penalty": "expected"},
        }
        config = GatedConfig(d_model=V, n_heads=n_heads, output_scale=scale, **options[kind])
        block = GatedAttention(config)
    source = generator(10 + seed)
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=source))
    return block


MADE = ["topk", "topk, any length", "sae", "open", "bernoulli", "hard_concrete", "per head"]


# ---- the formulas


def test_the_k_heads_that_write_most_write_and_no_other():
    layer = made("topk", seed=1)
    layer.k_now = 6
    x = one_hot(TASK.sample(ROWS, seed=3).tokens)
    seen = {}
    layer.hook_z.add_hook(lambda z, hook: seen.__setitem__("z", z.detach()))
    layer(x)
    everything = seen["z"]
    layer.settle()
    layer(x)
    kept = seen["z"]
    for row in range(ROWS):
        for pos in range(TASK.n_positions):
            lengths = [
                float((everything[row, pos, h, :, None] * layer.W_O[h].detach()).sum(0).norm())
                for h in range(6)
            ]
            largest = sorted(range(6), key=lambda h: -lengths[h])[:2]
            for h in range(6):
                expected = everything[row, pos, h] if h in largest else torch.zeros(1)
                assert torch.equal(kept[row, pos, h], expected)


def test_k_falls_from_all_heads_over_the_first_tenth():
    config = TopKConfig(d_model=8, n_heads=10, k=2)
    assert [k_at(f, config) for f in (0.0, 0.025, 0.05, 0.0999, 0.1, 0.5)] == [10, 8, 6, 2, 2, 2]
    layer = TopKAttention(config)
    layer.prepare(0.05, seed=0)
    assert layer.k_now == 6
    layer.settle()
    assert layer.k_now == 2


def test_heads_share_circuits_and_start_as_the_originals():
    original = toy(d_head=3).blocks[0].attn
    layer = TopKAttention.from_attention(original, expansion=4, noise=0.0, k=2, seed=5)
    assert layer.raw_W_Q.shape == (2, V, 3)
    for h in range(8):
        assert torch.equal(layer.W_Q[h], original.W_Q[h % 2])
        assert torch.equal(layer.b_K[h], original.b_K[h % 2])
        # What a head reads and writes lies in what its original head reads and writes.
        for mine, theirs in (
            (layer.W_V[h], original.W_V[h % 2]),
            (layer.W_O[h].T, original.W_O[h % 2].T),
        ):
            inside = theirs @ torch.linalg.lstsq(theirs, mine).solution
            assert_close(inside, mine, roundings=256)


def test_the_noise_of_copied_circuits_has_the_size_asked_for():
    original = toy(d_head=3).blocks[0].attn
    plain, noisy = (
        TopKAttention.from_attention(original, expansion=8, noise=noise, k=2, seed=5)
        for noise in (0.0, 0.1)
    )
    for name in ("raw_W_V", "raw_W_O"):
        noise = noisy.get_parameter(name) - plain.get_parameter(name)
        assert noise.std().item() == pytest.approx(0.1, rel=0.15)
        assert noise.abs().max() < 0.6


def test_an_autoencoder_has_twice_the_layers_heads_unless_told():
    assert OutputAutoencoder.from_attention(toy().blocks[0].attn).config.n_heads == 4


def test_features_of_the_layers_output_in_plain_loops():
    block = made("sae", seed=2)
    x = one_hot(TASK.sample(2, seed=3).tokens, torch.float64)
    exact = twin(block)
    wrote = exact.original(x, x, x)
    output = block(x.float())
    c = block.config
    for row in range(2):
        for pos in range(TASK.n_positions):
            u = (wrote[row, pos] - exact.b_O) / c.output_scale
            z = [max(0.0, (u @ exact.W_E[h] + exact.b_E[h]).item()) for h in range(5)]
            largest = sorted(range(5), key=lambda h: -z[h])[:2]
            expected = exact.b_O + sum(z[h] * exact.W_O[h, 0] for h in largest)
            assert_close(output[row, pos], expected, roundings=256)


def test_drawn_gates_open_as_often_as_expected():
    scores = torch.tensor([-3.0, -0.5, 0.0, 1.0, 2.5])
    n = 40_000
    noise = logistic_noise((n, 5), generator(4))
    for kind in ("bernoulli", "hard_concrete"):
        gate = gate_activation(scores.expand(n, 5), kind, noise)
        chance = expected_open(scores, kind)
        sigma = (chance * (1 - chance) / n).sqrt()
        assert (((gate > 0).float().mean(0) - chance).abs() < 5 * sigma).all()
    assert_close(expected_open(scores, "bernoulli"), torch.sigmoid(scores.double()))
    shift = 2 / 3 * math.log(0.1 / 1.1)
    assert_close(expected_open(scores, "hard_concrete"), torch.sigmoid(scores.double() - shift))


def test_a_bernoulli_gate_has_the_sigmoids_gradient():
    scores = torch.tensor([-1.0, 0.5], requires_grad=True)
    gate = gate_activation(scores, "bernoulli")
    assert gate.tolist() == [0.0, 1.0]
    gate.sum().backward()
    chance = torch.sigmoid(scores.detach().double())
    assert_close(scores.grad, chance * (1 - chance))


def test_a_gate_per_head_is_the_same_everywhere():
    block = made("per head", seed=0)
    seen = []
    block.hook_gate.add_hook(lambda gate, hook: seen.append(gate))
    block(one_hot(TASK.sample(2, seed=3).tokens))
    assert torch.equal(seen[0], seen[0][:1, :, :1, :1].expand_as(seen[0]))
    block.prepare(0.5, seed=3)
    block(one_hot(TASK.sample(2, seed=3).tokens))
    drawn = seen[1]
    assert torch.equal(drawn, drawn[:, :, :1, :1].expand_as(drawn))
    assert not torch.equal(drawn, seen[0])


def test_open_gates_are_one_and_nothing_of_them_trains():
    block = made("open", seed=0)
    assert not any(p.requires_grad for n, p in block.named_parameters() if "gate" in n)
    plain = GatedAttention(block.config.replace(gate="clamp"))
    plain.load_state_dict(block.state_dict())
    plain.force_gates(1)
    x = one_hot(TASK.sample(2, seed=3).tokens)
    assert torch.equal(block(x), plain(x))


def test_a_head_is_active_where_it_writes():
    z = torch.tensor([[[[1.0], [0.0], [1e-6]], [[0.0], [2.0], [0.0]]]])
    W_O = torch.ones(3, 1, 4)
    assert active(z, W_O).tolist() == [[[True, False, False], [False, True, False]]]


# ---- some query positions at a time


ROWWISE = {
    "clamp": {},
    "relu": {"gate": "relu", "penalty_p": 1.0},
    "expected": {"gate": "bernoulli", "penalty": "expected"},
    "per head": {"gate": "hard_concrete", "penalty": "expected", "gate_per": "head"},
    "open": {"gate": "open"},
}


@pytest.mark.parametrize(
    ("again", "by_sequence"),
    [(False, False), (True, False), (False, True)],
    ids=["kept", "made again", "by sequence"],
)
@pytest.mark.parametrize("case", ROWWISE)
def test_rows_at_a_time_are_the_whole_values_penalties_and_gradients(
    case, again, by_sequence, monkeypatch
):
    monkeypatch.setattr(heads, "AT_ONCE", 0)
    monkeypatch.setattr(heads, "ROWS", 3)
    monkeypatch.setattr(heads, "KEPT", 0 if again else 10**9)
    monkeypatch.setattr(heads, "WHOLE", 2**19 if by_sequence else 0)
    calls = []
    real = GatedAttention._rows
    monkeypatch.setattr(GatedAttention, "_rows", lambda *a: calls.append(1) or real(*a))
    block = GatedAttention(GatedConfig(d_model=V, n_heads=5, d_head=2, d_gate=2, **ROWWISE[case]))
    with torch.no_grad():
        for i, parameter in enumerate(block.parameters()):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator(i)))
    x = torch.randn(4, 8, V, generator=generator(99))

    def run(module, inputs, whole):
        handle = module.hook_gate.register_forward_hook(lambda *_: None) if whole else None
        found = module.terms(inputs, inputs, inputs)
        loss = found.output.square().mean() + 0.3 * found.penalty + found.z.mean()
        loss.backward()
        if handle is not None:
            handle.remove()
        return found

    exact = twin(block)
    whole = run(exact, x.double(), whole=True)
    assert len(calls) == 1
    pieces = run(block, x, whole=False)
    # 8 positions, 3 at a time; or each of 4 sequences.
    assert len(calls) == 1 + (4 if by_sequence else 6 if again else 3)
    assert_close(pieces.output, whole.output)
    assert_close(pieces.z, whole.z)
    if case == "open":
        assert pieces.penalty == whole.penalty == 0
    else:
        assert_close(pieces.penalty, whole.penalty)
    assert pieces.measures()["l0"] == pytest.approx(whole.measures()["l0"])
    largest = max(p.grad.abs().max() for p in exact.parameters() if p.grad is not None)
    for name, parameter in exact.named_parameters():
        if parameter.grad is not None:
            mine = block.get_parameter(name).grad
            # A norm of power below 1 is the steeper the less a gate is open.
            assert_close(mine, parameter.grad, scale=largest, roundings=512)


@pytest.mark.parametrize("why", ["penalty_pairs", "pair hook", "block hook"])
def test_each_reason_to_work_in_one_piece_does_alone(why, monkeypatch):
    monkeypatch.setattr(heads, "AT_ONCE", 0)
    monkeypatch.setattr(heads, "ROWS", 3)
    pairs = "all" if why == "penalty_pairs" else "causal"
    block = GatedAttention(GatedConfig(d_model=V, n_heads=5, penalty_pairs=pairs))
    calls = []
    point = {"penalty_pairs": None, "pair hook": block.hook_gate, "block hook": block}[why]
    if point is not None:
        point.register_forward_hook(lambda _, inputs, output: calls.append(output.shape))
    x = torch.randn(4, 8, V, generator=generator(99))
    found = block.terms(x, x, x)
    assert len(calls) == (point is not None)
    gate = []
    block.hook_gate.register_forward_hook(lambda _, inputs, output: gate.append(output))
    block(x)
    assert_close(found.penalty, block.gate_penalty(gate[0]))
    if point is not None:
        assert calls[0] == ((4, 5, 8, 8) if why == "pair hook" else (4, 8, V))


def test_whoever_looks_sees_the_whole(monkeypatch):
    monkeypatch.setattr(heads, "AT_ONCE", 0)
    monkeypatch.setattr(heads, "ROWS", 3)
    spliced = gi.splice(toy(), 0, GatedAttention(GatedConfig(d_model=V, n_heads=5)))
    tokens = TASK.sample(4, seed=1).tokens
    seen, cache = spliced.run_with_cache(tokens)
    for name in ("attn_scores", "pattern", "gate_scores", "gate", "gated_pattern"):
        assert cache[f"blocks.0.attn.hook_{name}"].shape == (4, 5, 7, 7)
    assert_close(spliced(tokens), seen)


# ---- stacked and hooked are the same


def test_the_stacked_cross_entropy_has_autograds_gradients_at_any_weight():
    source, shape = generator(3), (3, 7, 4, 5)
    z = torch.randn(shape, generator=source, dtype=torch.double, requires_grad=True)
    W_O = torch.randn(3, 1, 5, 7, generator=source, dtype=torch.double, requires_grad=True)
    bias = torch.randn(3, 7, generator=source, dtype=torch.double, requires_grad=True)
    target = torch.randint(7, shape[:3], generator=source)
    weight = torch.rand(shape[:3], generator=source, dtype=torch.double)
    factor = torch.tensor([0.5, 2.0, -3.0], dtype=torch.double)

    def by_hand():
        logits = torch.einsum("rqch,rhv->rqcv", z, W_O[:, 0]) + bias[:, None, None]
        logits = logits + torch.eye(7, dtype=torch.double)[:, None]
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 2), target.flatten(), reduction="none"
        )
        return (losses.view(shape[:3]) * weight).sum((1, 2))

    wanted, found = by_hand(), stacked_cross_entropy(z, W_O, bias, target, weight)
    assert_close(found, wanted)
    for mine, theirs in zip(
        torch.autograd.grad((found * factor).sum(), (z, W_O, bias)),
        torch.autograd.grad((wanted * factor).sum(), (z, W_O, bias)),
        strict=True,
    ):
        assert_close(mine, theirs, scale=1)


@pytest.mark.parametrize("kind", MADE)
def test_the_stacked_form_equals_the_hooked_module(kind):
    blocks = [made(kind, seed) for seed in range(RUNS)]
    tokens = [TASK.sample(ROWS, seed=run).tokens for run in range(RUNS)]
    batch = batch_of([contexts_of(t, V) for t in tokens], TASK.n_positions)
    original = StackedAttention([toy(seed).blocks[0].attn for seed in range(RUNS)])
    stack = STACKED[blocks[0].kind](blocks, original)
    written = stack.written(batch.counts)
    output = torch.matmul(written.z, stack.W_O) + stack.weights["b_O"][:, None, None]
    loss = (output.square().mean(-1) * batch.weight).sum((1, 2))
    cost = torch.zeros(RUNS)
    if written.cost is not None:
        cost = (written.cost * batch.pairs).sum((1, 2))
    stack.weights.backward((loss + 0.3 * cost).sum())

    for run, block in enumerate(blocks):
        exact = twin(block)
        seen = {}
        for name in ("hook_z", *exact.watched):
            exact.get_submodule(name).add_hook(
                lambda x, hook, name=name, seen=seen: seen.__setitem__(name, x)
            )
        hooked = exact(one_hot(tokens[run], torch.float64)).square().mean()
        penalty = exact.penalty(seen)
        assert_close(loss[run], hooked, roundings=256)
        if written.cost is not None:
            assert_close(cost[run], penalty)
        (hooked + 0.3 * penalty).backward()
        largest = max(p.grad.abs().max() for p in exact.parameters() if p.grad is not None)
        compared = 0
        for name in stack.weights.spans:
            gradient = exact.get_parameter(name).grad
            if gradient is not None:
                mine = stack.weights.grad_of(name)[run]
                assert_close(mine, gradient, scale=largest, roundings=GRADIENT)
                compared += 1
        assert compared >= 4


@pytest.mark.parametrize("kind", MADE)
def test_training_lowers_the_loss_in_both_loops(kind):
    config = gi.TrainConfig.plain(
        steps=60, batch_size=20, data="fixed", n_sequences=200, lr=0.02, alpha=0.0, device="cpu"
    )
    original = toy(seed=1)
    for train in (
        lambda block: gi.train_gated(original, block, config, data=TASK, progress=False),
        lambda block: gi.studies.train_gated_runs(
            [gi.studies.GatedRun(original, block, config, TASK)],
            progress=False,
            say=lambda sentence: pytest.fail(sentence),
        )[0],
    ):
        block = made(kind, seed=1)
        fvu = train(block).history["fvu"]
        assert fvu.tail(3).mean() < 0.7 * fvu.head(3).mean()
        assert getattr(block, "noise_generator", None) is None


@pytest.mark.parametrize("kind", MADE)
def test_every_kind_is_spliced_judged_ablated_and_taken_out(kind):
    original = toy(seed=1)
    block = made(kind, seed=1)
    spliced = gi.splice(original, 0, block)
    n = block.W_O.shape[0]
    tokens = TASK.sample(40, seed=2).tokens
    without = gi.ablate(spliced, TASK.sample(40, seed=2), [(0, n - 1)])
    assert len(without) > 0
    assert gi.verdict(spliced, TASK, n=200).learnt == gi.verdict(spliced, TASK, n=200).learnt
    split = gi.logit_attribution(spliced, tokens[:1], *torch.tensor([[0], [3], [4]]))
    assert len([c for c in split.components if c.startswith("L0H")]) == n
    assert torch.equal(gi.unsplice(spliced)(tokens), original(tokens))


# ---- the registry


def test_a_kind_from_outside_the_package_is_trained_spliced_and_named(monkeypatch):
    monkeypatch.setattr("gated_interp.replacements.replacement.KINDS", dict(KINDS))

    @register
    class Averages(Replacement):
        """Each head writes its own direction times a linear function of the mean so far."""

        kind: ClassVar[str] = "averages"
        config_type = HeadsConfig

        def __init__(self, config):
            super().__init__()
            self.config = config
            self.read = nn.Parameter(
                torch.randn(config.n_heads, config.d_model, generator=generator(1))
            )
            self.write = nn.Parameter(
                torch.randn(config.n_heads, 1, config.d_model, generator=generator(2))
            )
            self.b_O = nn.Parameter(torch.zeros(config.d_model))
            self.hook_z = HookPoint()

        @property
        def W_O(self):
            return self.write

        def forward(self, query_input, key_input=None, value_input=None, **unsupported):
            far = torch.arange(1, query_input.shape[1] + 1)[:, None]
            mean = query_input.cumsum(1) / far
            z = self.hook_z((mean @ self.read.T)[..., None])
            return torch.einsum("bphd,hdm->bpm", z, self.W_O) + self.b_O

    block = kind_named("averages")(HeadsConfig(d_model=V, n_heads=4))
    original = toy(seed=1)
    config = gi.TrainConfig.plain(steps=40, batch_size=20, alpha=0.1, overlap=0.1, device="cpu")
    fvu = gi.train_gated(original, block, config, data=TASK, progress=False).history["fvu"]
    assert fvu.iloc[-1] < fvu.iloc[0]
    assert len(gi.verdict(gi.splice(original, 0, block), TASK, n=200).accuracy) == 3
    with refuses("kind-taken"):
        register(type("Another", (Averages,), {}))


def test_an_unknown_kind_is_a_sentence():
    with refuses("no-such-kind"):
        kind_named("magic")


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (lambda: TopKConfig(d_model=8, n_heads=4, k=5), "config-k-too-large"),
        (lambda: TopKConfig(d_model=8, n_heads=4, n_circuits=3), "config-circuits-do-not-divide"),
        (lambda: SAEConfig(d_model=8, n_heads=4, k=5), "config-k-too-large"),
        (
            lambda: GatedConfig(d_model=8, n_heads=4, penalty="expected"),
            "config-penalty-needs-drawn-gates",
        ),
    ],
)
def test_impossible_configs_are_sentences(config, code):
    with refuses(code):
        config()
