"""What functions do with the odd cases of their input: tokens, vocabularies, dtypes, hooks."""

import contextlib
import weakref

import numpy as np
import pytest
import torch
from attention_models import fill
from refusals import refuses
from test_padding import LAYER, N_CTX, last_tokens, model_of, numbers, rows_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformer_lens import HookedTransformerConfig

import gated_interp as gi
from gated_interp.analysis.faithfulness import dead_heads
from gated_interp.analysis.heads import intervened
from gated_interp.analysis.sparsity import sparsity, switching_on
from gated_interp.anatomy import batch
from gated_interp.metrics import predictions
from gated_interp.models.toy import attention_only
from gated_interp.training.capture import attention_io

STEPS = {"steps": 2, "batch_size": 4, "progress": False}
TAKES_TOKENS = {
    "ablate": lambda m, t: gi.ablate(m, t, [(0, 1)]),
    "ablate by mean": lambda m, t: gi.ablate(m, t, [(0, 1)], "mean", reference_tokens=t),
    "ablate by resampling": lambda m, t: gi.ablate(
        m, t, [(0, 1)], "resample", reference_tokens=t, seed=0
    ),
    "activation_patch": lambda m, t: gi.activation_patch(m, t, t, "blocks.0.attn.hook_z"),
    "path_patch": lambda m, t: gi.path_patch(m, t, t, (0, 0), "blocks.1.attn.hook_q"),
    "patch_effects": lambda m, t: gi.patch_effects(
        m, t, t, ["blocks.0.attn.hook_z"], position=2, target=3
    ),
    "sparsity": lambda m, t: sparsity(m, LAYER, t),
    "dead_heads": lambda m, t: [-1, *dead_heads(m, LAYER, t)],
    "text_holders": lambda m, t: gi.text_holders(m, LAYER, t).share,
    "logit_attribution": lambda m, t: (
        gi.logit_attribution(m, t, *last_tokens(torch.as_tensor(np.asarray(t)).long(), None)).values
    ),
    "source_attribution": lambda m, t: gi.source_attribution(
        m, t, *last_tokens(torch.as_tensor(np.asarray(t)).long(), None)
    ),
    "induction_scores": lambda m, t: gi.induction_scores(m, t),
    "subset_values by a metric": lambda m, t: dict(
        gi.subset_values(m, t, heads=["L0H0"], metric=lambda logits, _: logits[..., 1]).values
    ),
    "switching_on": lambda m, t: switching_on(m, LAYER, t, seed=0, steps=1),
    "attention_io": lambda m, t: attention_io(m, LAYER, t).output,
    "HeadExplorer": lambda m, t: [
        gi.HeadExplorer(m, tokens=t).session.examples.tokens[0],
    ],
    "fit_gated": lambda m, t: gi.fit_gated(gi.unsplice(m), LAYER, t, **STEPS).history,
}
NEEDS_A_LOSS = {
    "faithfulness": lambda m, t: gi.faithfulness(m, t).measures(),
    "loss_recovered": lambda m, t: gi.loss_recovered(m, t),
    "decomposition": lambda m, t: gi.block_measures(m, LAYER, t),
    "read_heads": lambda m, t: gi.read_heads(m, LAYER, t).table,
    "subset_values": lambda m, t: dict(gi.subset_values(m, t, heads=["L0H0"]).values),
    "train_model": lambda m, t: gi.train_model(
        gi.unsplice(m), gi.TrainConfig.toy(steps=2, batch_size=4, n_sequences=4), data=t,
        progress=False,
    ).history,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return model_of(layer="gated")


@pytest.mark.parametrize("name", TAKES_TOKENS | NEEDS_A_LOSS)
def test_tokens_of_any_kind_are_tokens(model, name):
    function = (TAKES_TOKENS | NEEDS_A_LOSS)[name]
    rows = rows_of(6)
    wanted = numbers(function(model, rows))
    for given in (
        rows.tolist(),
        rows.numpy(),
        rows.numpy().astype(np.uint16),
        rows.to(torch.int32),
        rows.to(torch.uint8),
    ):
        np.testing.assert_array_equal(numbers(function(model, given)), wanted)


BAD = {
    "yes and no": (rows_of(6) > 3, "tokens-wrong-shape"),
    "numbers with a point": (rows_of(6).float(), "tokens-wrong-shape"),
    "one sequence": (rows_of(6)[0], "tokens-wrong-shape"),
    "nothing": (torch.zeros(0, 5, dtype=torch.long), "tokens-wrong-shape"),
    "no positions": (torch.zeros(5, 0, dtype=torch.long), "tokens-wrong-shape"),
    "too large": (rows_of(6) + 9, "token-outside-vocabulary"),
    "negative": (rows_of(6) - 2, "token-outside-vocabulary"),
    "too long": (torch.zeros(2, N_CTX + 1, dtype=torch.long), "sequence-too-long"),
    "words": ([["a", "b"]], "tokens-not-a-table"),
    "rows of several lengths": ([[1, 2, 3], [1, 2]], "tokens-not-a-table"),
}


@pytest.mark.parametrize("name", TAKES_TOKENS | NEEDS_A_LOSS)
@pytest.mark.parametrize("bad", BAD)
def test_what_are_no_tokens_is_refused_in_a_sentence(model, name, bad):
    function = (TAKES_TOKENS | NEEDS_A_LOSS)[name]
    tokens, code = BAD[bad]
    if "attribution" in name and bad in ("words", "rows of several lengths", "one sequence"):
        function = TAKES_TOKENS["sparsity"]  # the test's own choice of places would fail
    if "attribution" in name and bad in ("nothing", "no positions"):
        function = TAKES_TOKENS["sparsity"]
    with refuses(code):
        function(model, tokens)


@pytest.mark.parametrize("name", TAKES_TOKENS)
def test_outputs_that_are_no_tokens(name):
    model = spliced_reader()
    found = numbers(TAKES_TOKENS[name](model, rows_of(6)))
    assert len(found)
    assert np.isfinite(found[~np.isnan(found)]).all()


@pytest.mark.parametrize("name", NEEDS_A_LOSS)
def test_there_is_no_loss_where_outputs_are_no_tokens(name):
    with refuses("no-next-token"):
        NEEDS_A_LOSS[name](spliced_reader(), rows_of(6))


def reader(**extras):
    """A model that reads 13 tokens and says one of 5 things."""
    config = {
        "n_layers": 2, "d_model": 10, "d_vocab": 13, "d_vocab_out": 5, "n_ctx": N_CTX, "d_head": 4,
        "n_heads": 2, "attn_only": True, "normalization_type": "LN", "act_fn": "relu",
        "device": "cpu",
    }  # fmt: skip
    return fill(attention_only(HookedTransformerConfig(**config | extras)), 3, 0.5)


def spliced_reader():
    model = reader()
    return gi.splice(model, LAYER, gi.GatedAttention.from_attention(model.blocks[LAYER].attn))


def test_ablation_of_outputs_that_are_no_tokens_leaves_the_loss_out():
    table = gi.ablate(spliced_reader(), rows_of(6))
    assert table["metric"].unique().tolist() == ["kl"]


def test_an_unembedding_without_a_bias():
    model = reader(d_vocab_out=13, normalization_type=None, n_layers=1)
    tokens, places = rows_of(4), last_tokens(rows_of(4), None)
    model.unembed.b_U.data.zero_()
    wanted = gi.logit_attribution(model, tokens, *places)
    model.unembed.b_U = None
    found = gi.logit_attribution(model, tokens, *places)
    torch.testing.assert_close(found.values, wanted.values)
    torch.testing.assert_close(
        found.values.sum(1), model(tokens)[places[0], places[1], places[2]], atol=1e-5, rtol=1e-4
    )
    model.pos_embed.W_pos.data.zero_()
    torch.testing.assert_close(
        gi.predict_from_circuits(model, tokens), model(tokens), rtol=1e-4, atol=1e-4
    )


def test_tied_weights_are_saved_under_both_names(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question.\n" * 100)
    task = gi.text.TextTask(text, n_positions=8, vocab=260, folder=tmp_path)
    model = gi.text.build_language_model(
        gi.text.LanguageModelConfig(d_vocab=task.d_vocab, n_ctx=8, d_model=task.d_vocab, n_heads=2),
        task,
    )
    model.unembed.W_U = model.embed.W_E
    gi.save(model, tmp_path / "tied.safetensors")
    again = gi.load(tmp_path / "tied.safetensors")
    tokens = torch.arange(16).view(2, 8)
    assert torch.equal(again(tokens), model(tokens))


# Interventions prove that they happened.


@pytest.mark.slow
def test_a_compiled_model_is_not_said_to_need_no_heads():
    """Compiled and used before anything is measured, its graph has no hooks in it."""
    model, tokens = model_of(), rows_of(3)
    model.compile(backend="eager")
    model(tokens)
    for measure in (
        lambda: gi.ablate(model, tokens),
        lambda: gi.ablate(model, tokens, method="mean", reference_tokens=tokens),
        lambda: gi.subset_values(model, tokens, heads=["L0H0"]),
        lambda: gi.activation_patch(model, tokens, tokens.flip(0), "blocks.0.attn.hook_z"),
        lambda: gi.text_holders(model, 0, tokens),
        lambda: attention_io(model, 0, tokens, logits=True),
    ):
        with refuses("hook-not-reached"):
            measure()


def test_a_hook_point_that_is_never_reached_is_not_an_edit_without_effect():
    model, tokens = model_of(), rows_of(3)
    for name, run in (
        ("blocks.1.attn.hook_z", lambda: model(tokens, stop_at_layer=1)),
        ("blocks.1.attn.hook_result", lambda: model(tokens)),
    ):
        with (
            refuses("hook-not-reached"),
            intervened(model, {name: torch.zeros_like}),
        ):
            run()
    with (
        refuses("no-such-hook", close="blocks.1.attn.hook_z"),
        intervened(model, {"blocks.1.attn.hook_zz": torch.zeros_like}),
    ):
        pass


def test_a_model_that_leaves_its_hook_points_out():
    """Its class renamed them, say: what it calls instead is not what the names say."""
    model, tokens = model_of(), rows_of(8)
    attn, there = model.blocks[LAYER].attn, model.blocks[LAYER].attn.hook_z
    del attn._modules["hook_z"]
    object.__setattr__(attn, "hook_z", torch.nn.Identity())
    assert model.hook_dict[f"blocks.{LAYER}.attn.hook_z"] is there
    for measure in (
        lambda: gi.ablate(model, tokens),
        lambda: gi.text_holders(model, LAYER, tokens),
        lambda: gi.subset_values(model, tokens, layer=LAYER),
    ):
        with refuses("hook-not-reached"):
            measure()


# Effects of models in half precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_effects_of_half_precision_are_those_of_its_logits(dtype):
    """Logits in 16 bits, effects from them in float64: within 1% (rounded they are 3x as large)."""
    model, tokens = model_of(), rows_of(8, 9)
    with torch.no_grad():  # a head that hardly matters
        model.blocks[LAYER].attn.W_O[1] *= 0.02
        model.blocks[LAYER].attn.b_O.zero_()
    model = model.to(dtype)
    name = f"blocks.{LAYER}.attn.hook_z"

    def without(z):
        z = z.clone()
        z[:, :, 1] = 0
        return z

    with torch.no_grad():
        intact = model(tokens).double()
        with intervened(model, {name: without}):
            edited = model(tokens).double()
    log_p, log_q = intact.log_softmax(-1), edited.log_softmax(-1)
    kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    following = tokens[:, 1:, None]
    loss = float((log_p - log_q)[:, :-1].gather(-1, following).mean())
    table = gi.ablate(model, tokens, [(LAYER, 1)]).query("kind == 'head'").set_index("metric")
    assert 0 < kl < 0.01
    assert table["change"]["kl"] == pytest.approx(kl, rel=0.01)
    assert table["change"]["loss"] == pytest.approx(loss, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["text_holders", "ablate by mean", "subset_values by a metric"])
def test_other_dtypes_are_read(dtype, name):
    model, tokens = model_of(layer="own"), rows_of(4)
    wanted = numbers(TAKES_TOKENS[name](model, tokens))
    found = numbers(TAKES_TOKENS[name](model.to(dtype), tokens))
    np.testing.assert_allclose(found, wanted, rtol=0.1, atol=0.3)


# Memory: tensors of the size of the logits.


class Alive(TorchDispatchMode):
    """How many bytes of new tensors were alive at once, at most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor.untyped_storage())
        return out

    def see(self, storage):
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.known.discard(key)
        self.now -= size


def wide_reader(positions):
    config = {"n_ctx": positions, "d_vocab": 6001, "d_vocab_out": 6001, "d_model": 8, "n_heads": 3}
    return reader(**config, n_layers=1, d_head=2)


@pytest.mark.parametrize("shape", [(1, 256), (64, 4)])
@pytest.mark.parametrize(
    ("metric", "least", "most"), [(None, 1.5, 3), (lambda logits, tokens: logits[..., 7], 1, 1.5)]
)
def test_an_ablation_holds_three_tensors_of_logits_at_most(shape, metric, least, most):
    model = wide_reader(shape[1])
    tokens = torch.randint(6001, shape, generator=torch.Generator().manual_seed(0))
    gi.ablate(model, tokens[:1, :2], metric=metric)
    logits = tokens.numel() * 6001 * 4
    with Alive() as alive:
        gi.ablate(model, tokens, metric=metric)
    assert least * logits < alive.most < most * logits


@contextlib.contextmanager
def passes(model):
    """The forward passes of ``model``, each by its number of sequences."""
    seen = []
    handle = model.hook_embed.register_forward_hook(lambda _m, _i, out: seen.append(len(out)))
    yield seen
    handle.remove()


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_the_intact_model_and_the_reference_are_read_once(method):
    model, tokens = model_of(), rows_of(5)
    with passes(model) as seen:
        gi.ablate(model, tokens, None, method, reference_tokens=rows_of(3), seed=0)
    heads = 4
    reference = [3] if method != "zero" else []
    assert sorted(seen) == sorted([5] * (1 + heads + 1) + reference)


PARTS = {
    "ablate": lambda m, t: gi.ablate(m, t),
    "faithfulness": lambda m, t: gi.faithfulness(m, t).measures(),
    "loss_recovered": lambda m, t: gi.loss_recovered(m, t),
    "subset_values": lambda m, t: dict(gi.subset_values(m, t, heads=["L0H0", "L1H2"]).values),
    "switching_on": lambda m, t: switching_on(m, LAYER, t, seed=0, steps=1),
}


@pytest.mark.parametrize("name", PARTS)
def test_large_logits_are_made_in_parts(model, name, monkeypatch):
    """With room for the logits of two sequences: the same numbers, and no pass of more."""
    rows = rows_of(9)
    wanted = numbers(PARTS[name](model, rows))
    room = 2 * rows.shape[1] * 13
    monkeypatch.setattr(batch, "AT_ONCE", room)
    monkeypatch.setattr(batch, "FEW", 1)
    sizes, logits_of = [], batch.Batch.logits

    def noted(self, *args, **kwargs):
        sizes.append(len(self))
        return logits_of(self, *args, **kwargs)

    monkeypatch.setattr(batch.Batch, "logits", noted)
    found = numbers(PARTS[name](model, rows))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert max(sizes) <= 2


def test_losses_in_parts_are_those_of_the_whole(monkeypatch):
    logits, tokens = torch.randn(3, 9, 50), torch.randint(50, (3, 9))
    other = torch.randn(3, 9, 50)
    whole = (
        predictions.losses_by_position(logits, tokens),
        predictions.kl_by_position(logits, other),
    )
    monkeypatch.setattr(predictions, "AT_ONCE", 8 * 120)
    with torch.no_grad():
        parts = (
            predictions.losses_by_position(logits, tokens),
            predictions.kl_by_position(logits, other),
        )
    for one, two in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
