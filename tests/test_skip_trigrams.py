"""Skip trigrams: known answers, and every number once more through the model itself."""

import functools

import attention_models as models
import pytest
import torch
from closeness import assert_close
from refusals import refuses

import gated_interp as gi
from gated_interp.analysis.skip_trigrams import skip_trigrams
from gated_interp.analysis.text_pairs import seen_pairs
from gated_interp.models.analytic import manual_model
from gated_interp.replacements.replacement import kind_named
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

A, B1, B2, B3, C1, C2, C3, BOS = range(8)
IDS = ["head", "source_id", "destination_id", "out_id"]
TASK = SkipTrigramTask(3)


@pytest.fixture(scope="module")
def truth():
    return manual_model(2, 3)  # trigram 1 is held by head 0, 2 by head 1, 3 by both


@pytest.fixture(scope="module")
def text(truth):
    return truth.task.sample(400, seed=3).tokens


def language_model(normalization="LNPre", positions="standard", n_layers=1):
    shape = {"d_vocab": 23, "n_ctx": 13, "n_layers": n_layers, "d_model": 12, "n_heads": 3}
    config = gi.text.LanguageModelConfig(
        **shape, normalization=normalization, positions=positions, seed=5
    )
    made = gi.text.build_language_model(config)
    with torch.no_grad():
        source = torch.Generator().manual_seed(2)
        for block in made.blocks:
            block.attn.W_O *= 5
            if normalization == "LN":
                block.ln1.b += 0.2 * torch.randn(block.ln1.b.shape, generator=source)
            for bias in (block.attn.b_Q, block.attn.b_K, block.attn.b_V):
                bias += torch.randn(bias.shape, generator=source)
    return made


WORDS = torch.randint(1, 23, (150, 13), generator=torch.Generator().manual_seed(1))
WORDS[:, 0] = 0


def test_a_model_whose_trigrams_are_known(truth, text):
    found = skip_trigrams(truth.model, tokens=text, sources=1)
    assert found["source_id"].unique().tolist() == [A]
    for head, b, c in ((0, {B1, B3}, {C1, C3}), (1, {B2, B3}, {C2, C3})):
        mine = found[found["head"] == head]
        assert set(mine["out_id"]) == c
        assert set(mine["destination_id"][:4]) == b
        sure = mine[mine["destination_id"].isin(b)]
        assert len(sure) == 4
        # A key is drawn as often as A comes; with a score of 1 against -100 it wins against it all.
        share = float((text == A).double().mean())
        odds = 1 / share / (text.shape[1] / 2 - 0.5)
        assert_close(sure["attention"].tolist(), [odds / (1 + odds)] * 4)
        write = {C1: 2, C2: 2, C3: 1}  # and -2 to the C that the head does not hold
        mean = (2 + 1 - 2) / 8
        assert_close(sure["ov"].tolist(), [write[c] - mean for c in sure["out_id"]])
        assert_close(sure["strength"].tolist(), (sure["attention"] * sure["ov"]).tolist())
        assert sure["gate"].eq(1).all()
    assert found["source"].unique().tolist() == ["A"]


@pytest.mark.parametrize("positions", ["standard", "shortformer"])
@pytest.mark.parametrize("normalization", ["LNPre", "LN", "none"])
@pytest.mark.parametrize("spliced", [False, True])
@torch.no_grad()
def test_the_circuits_are_those_of_the_model_at_a_frozen_scale(normalization, positions, spliced):
    """Its own layer is run on one token and one position, norms held at their means by hooks."""
    model = language_model(normalization, positions)
    if spliced:
        config = gi.GatedConfig(d_model=12, n_heads=4, d_head=5, d_gate=2, normalize_weights=False)
        model = gi.splice(model, 0, models.fill(gi.GatedAttention(config), 3, scale=0.4))
    attn, block = model.blocks[0].attn, model.blocks[0]
    _, cache = model.run_with_cache(WORDS)
    got = skip_trigrams(model, tokens=WORDS, sources=3, top=3, least=2)
    assert set(got["head"]) == set(range(4 if spliced else 3))
    mean_position = model.pos_embed.W_pos.mean(0)
    final = 1.0
    if normalization != "none":
        final = float(cache["ln_final.hook_scale"].mean())

    chance = WORDS.flatten().bincount(minlength=23) / WORDS.numel()

    @functools.cache
    def read(token, with_position):
        x = model.embed.W_E[token]
        if with_position and positions == "standard":
            x = x + mean_position
        if normalization != "none":
            # TransformerLens shows one call of the norm; for shortformer all three are alike.
            scale = cache["blocks.0.ln1.hook_scale"][token == WORDS].mean()
            handle = block.ln1.hook_scale.register_forward_hook(lambda *_: scale.view(1, 1, 1))
            x = block.ln1(x[None, None])[0, 0]
            handle.remove()
        return x + mean_position if with_position and positions == "shortformer" else x

    for row in got.sample(6, random_state=0).to_dict("records"):
        s, d, h = (row[c] for c in ("source_id", "destination_id", "head"))

        def score(key, h=h, d=d):
            q = read(d, True) @ attn.W_Q[h] + attn.b_Q[h]
            return q @ (read(key, True) @ attn.W_K[h] + attn.b_K[h]) / attn.attn_scale

        assert_close(row["qk"], score(s), scale=3)
        others = (torch.stack([score(t).exp() for t in range(23)]) * chance).sum()
        odds = score(s).exp() / others / (13 + 1 - 2) * 2
        assert_close(row["attention"], odds / (1 + odds), roundings=200)
        write = read(s, False) @ attn.W_V[h] @ attn.W_O[h]
        if normalization != "none":
            write = write - write.mean()
        if normalization == "LN":
            write = write * model.ln_final.w
        logits = write / final @ model.unembed.W_U
        assert_close(row["ov"], logits[row["out_id"]] - logits.mean(), roundings=200)
        gate = 1.0
        if spliced:
            gate_q = read(d, True) @ attn.W_gate_Q[h] + attn.b_gate_Q[h]
            gate_k = read(s, True) @ attn.W_gate_K[h] + attn.b_gate_K[h]
            gate = float((gate_q @ gate_k).clamp(0, 1))
        assert_close(row["gate"], gate, scale=1, roundings=200)
    assert not spliced or got["gate"].nunique() > 3


def test_rows_are_the_strongest_of_pairs_that_are_there():
    model = language_model()
    pairs = seen_pairs(WORDS, torch.arange(23))
    got = skip_trigrams(model, tokens=WORDS, sources=23, top=23, least=30)
    assert (pairs[got["source_id"], got["destination_id"]] >= 30).all()
    assert 0 not in got["source_id"].tolist()  # every sequence begins with it
    assert got["ov"].gt(0).all()
    few = skip_trigrams(model, tokens=WORDS, sources=2, top=1, least=30)
    for head, mine in few.groupby("head"):
        every = got[got["head"] == head]
        best = every.loc[every.groupby("source_id")["strength"].idxmax()]
        best = best.sort_values("strength", ascending=False)[:2]
        assert mine[IDS].values.tolist() == best[IDS].values.tolist()
    assert skip_trigrams(model, tokens=WORDS, heads=[2])["head"].unique().tolist() == [2]


def test_pairs_by_hand():
    tokens = torch.tensor([[7, 1, 2, 1, 3], [7, 2, 1, 3, 1], [7, 2, 2, 2, 2]])
    assert seen_pairs(tokens, torch.tensor([1, 2, 3])).tolist() == [[2, 1, 2], [2, 1, 2], [1, 0, 0]]


def test_without_tokens_the_circuits_are_read_with_the_models_own_text(tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat on the mat again.\n" * 400)
    task = gi.text.TextTask(tmp_path / "text.txt", 9, vocab=262, folder=tmp_path)
    config = gi.text.LanguageModelConfig(d_vocab=262, n_ctx=9, d_model=8, n_heads=2)
    model = gi.text.build_language_model(config, task)
    given = task.part("train").sample(1000, 0).tokens
    assert skip_trigrams(model, sources=2).equals(skip_trigrams(model, 0, given, sources=2))
    batch = next(task.part("test").in_order(20))[:, 1:].flatten()
    assert batch.tolist() == task.part("test").ids[: len(batch)].tolist()


def test_bad_input_in_one_sentence(truth, text):
    model = truth.model
    for call, code in (
        (lambda: skip_trigrams(model), "no-text"),
        (lambda: skip_trigrams(model, 3, text), "no-such-layer"),
        (
            lambda: skip_trigrams(model, tokens=text, top=0),
            "too-small",
        ),
        (lambda: skip_trigrams(model, tokens=text, heads=[2]), "no-such-head"),
        (
            lambda: skip_trigrams(model, tokens=text[:2], least=99),
            "tokens-too-rare",
        ),
        (
            lambda: skip_trigrams(model, tokens=text, names=["x"]),
            "too-few-names",
        ),
    ):
        with refuses(code):
            call()
    kind = kind_named("sae")
    config = kind.config_type(d_model=8, n_heads=4)
    sae = gi.splice(model, 0, kind.from_config(config, model.blocks[0].attn))
    with refuses("layer-without-circuits"):
        skip_trigrams(sae, tokens=text)
