"""Effects of heads, against plain hooks on whole models, subset by subset."""

import dataclasses
import itertools
from math import factorial

import numpy as np
import pytest
import torch
from model_kinds import BASE, FAMILIES, N_CTX, TASK, Column, _fill
from refusals import refuses
from transformer_lens import HookedTransformerConfig

import gated_interp as gi
import gated_interp.analysis.effect_games as games
from gated_interp.analysis.head_effects import _where
from gated_interp.analysis.induction import repeats
from gated_interp.analysis.rest import Rest
from gated_interp.anatomy.batch import Batch
from gated_interp.metrics.intervals import mean_interval, ratio_interval
from gated_interp.models.toy import attention_only

COLUMNS = {
    "Llama": Column("Llama"),
    "Pythia": Column("Pythia"),
    "gated": Column("Gemma 2", block="gated"),
}
SEQUENCES = 4


def _tokens(seed: int = 5, n: int = SEQUENCES) -> torch.Tensor:
    half = torch.randint(1, TASK.d_vocab, (n, 6), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), half, half], 1)


@torch.no_grad()
def _losses(model, layer, tokens, fill, on, counts):
    """Loss per sequence where the heads in ``on`` stay: the whole model with plain hooks."""

    def hook(z, hook):
        return torch.stack(
            [
                z[:, :, h] if h in on else fill[:, :, h].expand_as(z[:, :, h])
                for h in range(z.shape[2])
            ],
            2,
        )

    name = f"blocks.{layer}.attn.hook_z"
    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, hook)]).double()
    lost = -logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    return torch.stack([row[c].mean() for row, c in zip(lost, counts[:, :-1], strict=True)])


@torch.no_grad()
def _independent(model, layer, tokens, method, counts):
    """Effects from the value of every subset, by the definition of a Shapley value."""
    name = f"blocks.{layer}.attn.hook_z"
    z = model.run_with_cache(tokens, names_filter=name)[1][name]
    fill = z.mean((0, 1), keepdim=True) if method == "mean" else torch.zeros_like(z[:1, :1])
    heads = range(z.shape[2])
    value = {
        frozenset(on): _losses(model, layer, tokens, fill, on, counts)
        for k in range(len(heads) + 1)
        for on in itertools.combinations(heads, k)
    }
    everyone, nobody = frozenset(heads), frozenset()
    n, shapley = len(heads), []
    for h in heads:
        total = 0
        for on in value:
            if h not in on:
                weight = factorial(len(on)) * factorial(n - len(on) - 1) / factorial(n)
                total = total + weight * (value[on] - value[on | {h}])
        shapley.append(total)
    return {
        "intact": value[everyone],
        "effect": value[nobody] - value[everyone],
        "off": torch.stack([value[everyone - {h}] - value[everyone] for h in heads], 1),
        "alone": torch.stack([value[nobody] - value[frozenset({h})] for h in heads], 1),
        "shapley": torch.stack(shapley, 1),
    }, value


@pytest.mark.parametrize("method", ["mean", "zero"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_every_number_is_that_of_plain_hooks(kind: str, method: str) -> None:
    model, tokens = COLUMNS[kind].build(), _tokens()
    counts = torch.arange(N_CTX) >= 7
    found = gi.head_effects(model, 0, tokens, positions=counts, method=method)
    expected, value = _independent(model, 0, tokens, method, counts.expand(tokens.shape))
    for name, numbers in expected.items():
        assert torch.allclose(getattr(found, name), numbers, atol=2e-5), name
    assert found.exact
    # Heads are added by Shapley value, those that help most first.
    sign = float(expected["effect"].mean().sign())
    order = sorted(
        range(found.off.shape[1]), key=lambda h: -sign * expected["shapley"][:, h].mean()
    )
    assert found.order == order
    for k in range(len(order) + 1):
        carried = value[frozenset()] - value[frozenset(order[:k])]
        assert torch.allclose(found.carried[:, k], carried, atol=2e-5)


def test_a_deep_llama_one_layer_in_the_middle() -> None:
    """Twelve layers; the Shapley values of sampled orders are those of all subsets on average."""
    flags = BASE | FAMILIES["Llama"] | {"n_layers": 12, "d_mlp": 19, "attn_only": False}
    model = attention_only(HookedTransformerConfig(**flags))
    _fill(dict(model.named_parameters()), 4)
    tokens = _tokens(6)
    expected, _ = _independent(model, 7, tokens, "mean", torch.ones_like(tokens).bool())
    found = gi.head_effects(model, 7, tokens)
    for name, numbers in expected.items():
        assert torch.allclose(getattr(found, name), numbers, atol=1e-4), name
    sampled = gi.head_effects(model, 7, tokens, permutations=400, seed=3)
    assert not sampled.exact
    assert torch.allclose(sampled.shapley.sum(1), sampled.effect, atol=1e-5)
    size = float(expected["shapley"].abs().max())
    assert torch.allclose(sampled.shapley, expected["shapley"], atol=0.15 * size)
    again = gi.head_effects(model, 7, tokens, permutations=4, seed=3)
    other = gi.head_effects(model, 7, tokens, permutations=4, seed=4)
    same = gi.head_effects(model, 7, tokens, permutations=4, seed=3)
    assert torch.equal(again.shapley, same.shapley)
    assert not torch.equal(again.shapley, other.shapley)


def test_two_orders_that_are_each_other_backwards() -> None:
    """Of two heads both orders are all there are, so sampled values are exact."""
    model, tokens = gi.load("2H3ST-toy"), gi.load("2H3ST-toy").task.sample(5, seed=0).tokens
    exact, sampled = (gi.head_effects(model, 0, tokens, permutations=p) for p in (None, 2))
    assert exact.exact
    assert not sampled.exact
    assert torch.allclose(exact.shapley, sampled.shapley, atol=1e-5)


def test_padding_is_not_counted() -> None:
    model, tokens = COLUMNS["Llama"].build(), _tokens()
    short = tokens[:, :9]
    mask = (torch.arange(N_CTX) < 9).long().expand(tokens.shape)
    padded = gi.head_effects(model, 1, tokens, attention_mask=mask)
    plain = gi.head_effects(model, 1, short)
    assert torch.allclose(padded.shapley, plain.shapley, atol=2e-5)
    assert torch.allclose(padded.off, plain.off, atol=2e-5)


def test_sequences_without_a_counted_position_are_left_out() -> None:
    model, tokens = COLUMNS["Llama"].build(), _tokens()
    counts = torch.ones_like(tokens).bool()
    counts[1] = False
    some = gi.head_effects(model, 1, tokens, positions=counts, permutations=4)
    assert len(some.effect) == SEQUENCES - 1
    rest = gi.head_effects(
        model, 1, tokens[[0, 2, 3]], reference_tokens=tokens, positions=counts[[0, 2, 3]]
    )
    assert torch.allclose(some.off, rest.off, atol=2e-5)
    assert torch.allclose(some.shapley.sum(1), rest.effect, atol=2e-5)


def test_metrics_of_positions_sequences_and_all_together() -> None:
    model, tokens = COLUMNS["Llama"].build(), _tokens()

    def loss(logits, tokens):
        lost = -logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
        return torch.nn.functional.pad(lost, (0, 1))

    where = torch.arange(N_CTX) < N_CTX - 1
    own = gi.head_effects(model, 0, tokens)
    for metric, seen in (
        (loss, where),
        (lambda logits, tokens: loss(logits, tokens)[:, :-1].mean(1), None),
    ):
        found = gi.head_effects(model, 0, tokens, metric, seen)
        assert torch.allclose(found.shapley, own.shapley, atol=2e-5)
        assert torch.allclose(found.off, own.off, atol=2e-5)
        sampled = gi.head_effects(model, 0, tokens, metric, seen, permutations=6, seed=1)
        by_loss = gi.head_effects(model, 0, tokens, permutations=6, seed=1)
        assert torch.allclose(sampled.shapley, by_loss.shapley, atol=2e-5)

    def whole(logits, tokens):
        return loss(logits, tokens)[:, :-1].mean()

    one = gi.head_effects(model, 0, tokens, whole)
    assert one.metric == "whole"
    assert one.shapley.shape == (1, 4)
    assert torch.allclose(one.shapley[0], own.shapley.mean(0), atol=2e-5)
    some = gi.head_effects(model, 0, tokens, whole, permutations=6)
    assert torch.allclose(some.shapley.sum(1), one.effect, atol=2e-5)
    assert one.table()["off_low"].isna().all()


def test_resample_takes_z_of_other_sequences() -> None:
    model, tokens = COLUMNS["Llama"].build(), _tokens()[:2]  # two: each gets the other's
    found = gi.head_effects(model, 0, tokens, method="resample")
    name = "blocks.0.attn.hook_z"
    z = model.run_with_cache(tokens, names_filter=name)[1][name]
    everywhere = torch.ones_like(tokens).bool()
    for h in range(4):
        lost = _losses(model, 0, tokens, z.flip(0), {0, 1, 2, 3} - {h}, everywhere)
        assert torch.allclose(found.off[:, h], lost - found.intact, atol=2e-5)
    with refuses("nothing-to-resample"):
        gi.head_effects(model, 0, tokens[:1], method="resample")


def test_heads_that_never_change_need_no_evaluation(monkeypatch) -> None:
    model, tokens = COLUMNS["gated"].build(), _tokens()
    with torch.no_grad():
        attn = model.blocks[0].attn
        attn.W_gate_Q[1:4], attn.b_gate_Q[1:4], attn.b_gate_K[1:4] = 0, -9.0, 9.0
    asked = []
    losses = games.LayerGame._losses

    def spy(self, pairs):
        asked.extend(map(tuple, pairs.tolist()))
        return losses(self, pairs)

    monkeypatch.setattr(games.LayerGame, "_losses", spy)
    found = gi.head_effects(model, 0, tokens, method="zero")
    assert (found.shapley[:, 1:4] == 0).all()
    assert (found.off[:, [0, 4]] != 0).any()
    # Two live heads: each subset once for each sequence.
    assert len(asked) == len(set(asked)) == 4 * SEQUENCES


def test_intervals_shares_and_the_row_of_the_layer() -> None:
    model, tokens = COLUMNS["Llama"].build(), _tokens(n=8)
    found = gi.head_effects(model, 0, tokens)
    table = found.table().set_index("head")
    assert list(table.index) == ["L0H0", "L0H1", "L0H2", "L0H3", "all"]
    each = found.off[:, 2].numpy()
    assert (table.loc["L0H2", "off_low"], table.loc["L0H2", "off_high"]) == mean_interval(each)
    assert table.loc["all", "off"] == pytest.approx(float(found.effect.mean()))
    assert set(table["n"]) == {8}
    certain = dataclasses.replace(
        found, effect=torch.full((8,), 2.0), shapley=_rows([1.5, 0.7, -0.2, 0])
    )
    shares = certain.table().set_index("head")["share"]
    assert shares.tolist() == pytest.approx([0.75, 0.35, -0.1, 0, 1])
    assert certain.spread == pytest.approx(2.2**2 / (1.5**2 + 0.7**2))


def _rows(values, n=8):
    return torch.tensor(values).repeat(n, 1)


def test_carriers_by_hand() -> None:
    model, tokens = COLUMNS["Llama"].build(), _tokens(n=8)
    found = gi.head_effects(model, 0, tokens)
    # The layer takes 2 nats away; its first head 1.2, two 1.9, three 1.7, all 2.
    certain = dataclasses.replace(
        found,
        effect=torch.full((8,), -2.0),
        carried=_rows([0, -1.2, -1.9, -1.7, -2]),
        order=[2, 0, 1, 3],
    )
    assert [certain.carriers(s) for s in (0.5, 0.6, 0.61, 0.9, 0.96, 1.0)] == [1, 1, 2, 2, 4, 4]
    table = certain.carriers_table()
    assert table["added"].tolist() == ["", "L0H2", "L0H0", "L0H1", "L0H3"]
    with refuses("not-a-share-of-effect"):
        certain.carriers(1.5)


def test_an_order_chosen_on_other_tokens() -> None:
    model = COLUMNS["Llama"].build()
    found = gi.head_effects(model, 0, _tokens(), order=[3, 1, 0, 2])
    assert found.order == [3, 1, 0, 2]
    assert torch.allclose(found.carried[:, 1], found.alone[:, 3], atol=2e-5)
    with refuses("bad-order"):
        gi.head_effects(model, 0, _tokens(), order=[0, 0, 1, 2])


def test_shares_of_nothing_are_refused() -> None:
    model, tokens = COLUMNS["Llama"].build(), _tokens(n=6)
    found = gi.head_effects(model, 0, tokens)
    noise = dataclasses.replace(found, effect=torch.tensor([1.0, -1.0, 0.5, -0.4, 0.1, -0.1]))
    assert not noise.matters
    assert noise.table()["share"].isna().all()
    assert set(noise.summary()) == {"effect", "effect_low", "effect_high"}
    for refused in (noise.carriers, noise.carriers_table, lambda: noise.spread):
        with refuses("layer-hardly-matters", layer=0):
            refused()


def test_a_layer_that_does_nothing_is_within_noise() -> None:
    model = COLUMNS["Llama"].build()
    with torch.no_grad():
        model.blocks[1].attn.W_O.zero_()
    assert not gi.head_effects(model, 1, _tokens()).matters


def test_repeated_tokens_by_themselves() -> None:
    """Without tokens: random ones, repeated; only pairs that came before count."""
    model = COLUMNS["Llama"].build()
    found = gi.head_effects(model, 0, bos=0)
    assert len(found.effect) == 32
    by_hand = torch.tensor([[0, 1, 2, 3, 1, 2, 4, 1, 2, 4]])
    expected = [[False, False, False, False, True, False, False, True, True, False]]
    assert repeats(Batch(by_hand)).tolist() == expected
    real = torch.tensor([[False, False, True, True, True, True, True, True, True, True]])
    expected = [[False, False, False, False, False, False, False, True, True, False]]
    assert repeats(Batch(by_hand, real)).tolist() == expected
    with refuses("no-first-token"):
        gi.head_effects(model, 0)
    with refuses("nothing-repeats"):
        gi.head_effects(model, 0, [[0, 1, 2, 3]], positions="repeats")


def test_refusals() -> None:
    model, tokens = COLUMNS["Llama"].build(), _tokens()
    with refuses("not-one-of"):
        rest = Rest(model, 0, tokens)
        games.game_for(rest, "optimal", None, None, torch.Generator(), None, None)
    with refuses("not-one-of"):
        _where(rest.batch, "all")
    with refuses("bad-mask"):
        gi.head_effects(model, 0, tokens, positions=torch.ones(2).bool())
    with refuses("no-positions-to-measure"):
        gi.head_effects(model, 0, tokens, positions=torch.arange(N_CTX) == N_CTX - 1)
    with refuses("which-layer-of-heads"):
        gi.head_effects(model, tokens=tokens)
    with refuses("reference-too-short"):
        gi.head_effects(model, 0, tokens, method="resample", reference_tokens=tokens[:, :4])


def test_ratio_interval_covers() -> None:
    """In 95% of samples the interval of a ratio holds the true one, within four deviations."""
    source = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        whole = source.normal(3, 1, 40)
        ratio, low, high = ratio_interval(0.4 * whole + source.normal(0, 0.5, 40), whole)
        assert low < ratio < high
        inside += low <= 0.4 <= high
    assert inside / 400 == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 400) ** 0.5)
