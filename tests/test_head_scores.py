"""The published scores of heads: models whose answer is known, and each number by a slow way."""

import attention_models as models
import pytest
import torch
from closeness import assert_close
from refusals import refuses
from transformer_lens import FactoredMatrix

import gated_interp as gi
from gated_interp.analysis.circuits import composition_scores, copying_scores, random_composition
from gated_interp.analysis.head_scores import activation_copying
from gated_interp.analysis.induction import different_tokens
from gated_interp.models.analytic_tasks import induction_model
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(3)
TEXT = TASK.sample(30, seed=0).tokens


@pytest.fixture(scope="module")
def truth():
    return induction_model()


def test_the_two_heads_of_induction(truth):
    text = truth.task.sample(40, seed=1).tokens
    found = gi.head_scores(truth.model, text, n=20, bos=0)
    assert found[["layer", "head"]].values.tolist() == [[0, 0], [1, 0]]
    previous, induction = found.to_dict("records")
    assert previous["previous_token"] > 0.99
    assert induction["prefix_matching"] > 0.99
    assert induction["copying"] == pytest.approx(1)
    assert induction["ov_copying"] > 0.99
    assert induction["k_sender"] == "L0H0"
    assert induction["k_composition"] > 0.05
    assert max(induction["q_composition"], induction["v_composition"]) < 0
    assert previous["k_composition"] != previous["k_composition"]  # layer 0 reads no head


def test_only_the_path_to_the_keys_carries_induction(truth):
    found = gi.induction_paths(truth.model, n=6, bos=0)
    assert found[["sender", "receiver"]].drop_duplicates().values.tolist() == [["L0H0", "L1H0"]]
    by_input = found.set_index("input")
    assert by_input.loc["K", "low"] > 0.3
    assert by_input.loc[["Q", "V"], "effect"].abs().max() < 1e-5
    assert by_input.loc["K", "n"] == 6
    named = gi.induction_paths(truth.model, (1, 0), [(0, 0)], n=6, bos=0)
    assert named.equals(found)


@torch.no_grad()
@pytest.mark.parametrize("make", [models.two_layers, models.gated_layer])
def test_scores_of_original_and_gated_heads(make):
    """Previous token, prefix matching, copying and composition are those of the parts."""
    model = make(TASK)
    found = gi.head_scores(model, TEXT, n=5, seed=2, bos=7)
    heads = [(layer, h) for layer, b in enumerate(model.blocks) for h in range(len(b.attn.W_O))]
    assert list(zip(found["layer"], found["head"], strict=True)) == heads
    repeated = gi.text.repeated_random_tokens(model, 5, seed=2, bos=7)
    scores = gi.induction_scores(model, repeated)
    assert found["prefix_matching"].equals(scores["prefix_matching"])
    previous = gi.induction_scores(model, TEXT)["previous_token"]
    assert found["previous_token"].equals(previous)
    assert found["ov_copying"].equals(copying_scores(model)["copying_score"])
    table = composition_scores(model)
    for row in found[found["layer"] == 1].to_dict("records"):
        for kind in "QKV":
            mine = table[(table["receiver_head"] == row["head"]) & (table["kind"] == kind)]
            excess = mine["score"] - mine["expected"]
            assert row[f"{kind.lower()}_composition"] == excess.max()
            sender = mine.loc[excess.idxmax(), "sender_head"]
            assert row[f"{kind.lower()}_sender"] == f"L0H{sender}"


@torch.no_grad()
@pytest.mark.parametrize("make", [models.two_layers, models.gated_layer])
def test_copying_one_key_at_a_time(make):
    model = make(TASK)
    got = activation_copying(model, 4, seed=6, bos=7)
    drawn = different_tokens(model, 4, 7, 6, 7)
    tokens = torch.cat([torch.full((4, 1), 7), drawn], 1)
    assert sorted(drawn[0].tolist()) == [0, 1, 2, 3, 4, 5, 6]
    _, cache = model.run_with_cache(tokens)
    for row in got.to_dict("records"):
        prefix, h = f"blocks.{row['layer']}.attn.", row["head"]
        gated = prefix + "hook_gated_pattern"
        pattern = cache[gated if gated in cache else prefix + "hook_pattern"]
        own = whole = 0.0
        for b in range(4):
            for q in range(1, 8):
                for k in range(1, q + 1):
                    write = cache[prefix + "hook_v"][b, k, h] * pattern[b, h, q, k]
                    write = write @ model.blocks[row["layer"]].attn.W_O[h]
                    write = (write - write.mean()) / cache["ln_final.hook_scale"][b, q]
                    logits = (write * model.ln_final.w) @ model.unembed.W_U[:, drawn[b]]
                    up = (logits - logits.mean()).clamp(min=0)
                    own, whole = own + up[k - 1], whole + up.sum()
        assert_close(row["copying"], 2 * own / whole - 1, scale=1, roundings=200)


def test_heads_that_copy_and_that_never_do():
    model = models.toy(TASK, n_heads=2, d_head=8)
    attn = model.blocks[0].attn
    with torch.no_grad():
        for weight in (attn.W_Q, attn.W_K, attn.b_V, attn.b_O):
            weight.zero_()
        attn.W_V.copy_(torch.eye(8).expand(2, 8, 8))
        attn.W_O[0], attn.W_O[1] = torch.eye(8), -torch.eye(8)
    found = activation_copying(model, 5, bos=7)["copying"].tolist()
    assert found == pytest.approx([1, -1])
    narrow = models.toy(TASK, n_heads=2, d_head=1)
    assert gi.head_scores(narrow, TEXT, n=3, bos=7)["ov_copying"].isna().all()


def test_what_random_heads_compose_to():
    """Against TransformerLens' own factored matrices, and the size that it must have."""
    for d, s, r in ((13, 2, 5), (40, 7, 7), (40, 1, 1)):
        source = torch.Generator().manual_seed(9)
        scores = []
        for _ in range(100):
            V, R = (torch.randn(d, k, generator=source) for k in (s, r))
            out, S = (torch.randn(k, d, generator=source) for k in (s, r))
            one, two = FactoredMatrix(V, out), FactoredMatrix(R, S)
            scores.append(float((one @ two).norm() / (one.norm() * two.norm())))
        mean, error = torch.tensor(scores).mean(), torch.tensor(scores).std() / 100**0.5
        assert abs(random_composition(d, s, r) - mean) < 5 * error
        assert random_composition(d, s, r) == pytest.approx(d**-0.5, rel=0.3)
    table = composition_scores(models.gated_layer(TASK))
    assert table["expected"].unique().tolist() == [random_composition(13, 5, 7)]


def test_a_gated_receiver_has_a_path_to_its_gates():
    model = models.gated_layer(TASK)
    found = gi.induction_paths(model, (1, 4), n=3, bos=7)
    assert set(found["input"]) == {"K", "Q", "V", "gate"}
    assert set(found["sender"]) == {"L0H0", "L0H1", "L0H2"}
    assert found["effect"].is_monotonic_decreasing
    assert found["effect"].abs().min() < found["effect"].abs().max()


def test_bad_input_in_one_sentence(truth):
    model = models.two_layers(TASK)
    for call, code in (
        (lambda: gi.head_scores(model, bos=7), "no-text"),
        (lambda: gi.head_scores(model, TEXT), "no-first-token"),
        (lambda: gi.induction_paths(models.toy(TASK), bos=7), "one-layer-only"),
        (lambda: gi.induction_paths(model, (1, 9), bos=7), "no-such-head"),
        (lambda: gi.induction_paths(model, (1, 0), [(1, 1)], bos=7), "sender-not-earlier"),
        (lambda: gi.induction_paths(model, (0, 0), bos=7), "sender-not-earlier"),
    ):
        with refuses(code):
            call()
