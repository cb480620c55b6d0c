"""A block that starts as a copy of a layer *is* the layer, and knows which layer that was."""

import copy
import dataclasses
import functools
import json
import pickle

import pytest
import safetensors.torch
import torch
from attention_models import fill, two_layers
from closeness import assert_close
from model_kinds import FAMILIES, Column
from refusals import refuses
from safetensors import safe_open
from transformer_lens import HookedTransformerConfig

import gated_interp as gi
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.seeds import generator
from gated_interp.metrics.reconstruction import fvu
from gated_interp.models.toy import ToyConfig, attention_only, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.gates import OPEN_SCORE
from gated_interp.replacements.layer_sketch import layer_sketch, same_layer
from gated_interp.replacements.pruning import with_heads
from gated_interp.replacements.sae import OutputAutoencoder
from gated_interp.replacements.splice import originals, splice, unsplice
from gated_interp.replacements.topk import TopKAttention
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.training.methods import METHODS

TASK = SkipTrigramTask(3)
TOKENS = TASK.sample(6, seed=1).tokens
COPY = {"init": "duplicate", "noise": 0}


def layer(dtype=torch.float32, n_heads=3, d_head=5, seed=7, **extras):
    """An attention layer with every weight and bias drawn, and something to give it."""
    config = HookedTransformerConfig(
        n_layers=1, d_model=11, d_vocab=2, n_ctx=13, d_head=d_head, n_heads=n_heads,
        attn_only=True, act_fn="relu", device="cpu", **extras,
    )  # fmt: skip
    attn = fill(attention_only(config), seed).blocks[0].attn.to(dtype)
    x = torch.randn(4, 13, 11, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return attn, x


def off_by(block, attn, x):
    return fvu(block(x).double(), attn(x, x, x).double()).item()


# What is exact.


@pytest.mark.parametrize("gate_per", ["pair", "head"])
@pytest.mark.parametrize("gate", list(OPEN_SCORE))
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-11), (torch.float64, 1e-28)])
def test_a_copy_writes_what_its_layer_writes_gates_included(gate, gate_per, dtype, most):
    attn, x = layer(dtype)
    fields = {"gate": gate, "gate_per": gate_per, "d_gate": 3}
    assert off_by(GatedAttention.from_attention(attn, 2, **COPY, **fields), attn, x) < most


@pytest.mark.parametrize(
    "fields",
    [{}, {"d_head": 7}, {"output_scale": 3.0}, {"value_bias": False}, {"d_gate": 8, "seed": 5},
     {"value_bias": False, "d_head": 6, "output_scale": 0.2}],
)  # fmt: skip
@pytest.mark.parametrize("expansion", [1, 2, 7 / 3])
def test_a_copy_of_any_shape_is_exact(expansion, fields):
    attn, x = layer()
    block = GatedAttention.from_attention(attn, expansion, **COPY, **fields)
    assert off_by(block, attn, x) < 1e-11
    assert block.hook_gate is not None
    assert (block.b_V == 0).all().item() is (not block.config.value_bias)


@pytest.mark.parametrize(
    "fields",
    [{}, {"d_head": 1}, {"d_head": 3, "value_bias": False}, {"n_circuits": 6, "d_head": 2},
     {"d_head": 8, "d_qk": 9}],
)  # fmt: skip
def test_a_copy_of_topk_heads_is_exact_while_all_write(fields):
    attn, x = layer(use_attn_scale=False)
    assert off_by(TopKAttention.from_attention(attn, 6, **COPY, **fields), attn, x) < 1e-11
    few = TopKAttention.from_attention(attn, 6, **COPY, **fields, k=2)
    assert off_by(few, attn, x) > 0.01
    few.prepare(0.0, seed=0)  # the first step of a training
    assert off_by(few, attn, x) < 1e-11


@pytest.mark.parametrize("gate", ["clamp", "relu", "tanh", "binary", "hard_concrete", "bernoulli"])
@pytest.mark.parametrize("d_gate", [1, 3])
def test_gates_that_start_open_learn_to_shut(gate, d_gate):
    """One step reaches what multiplies the biases; then every gate weight has a gradient."""
    attn, x = layer()
    block = GatedAttention.from_attention(attn, 2, init="duplicate", gate=gate, d_gate=d_gate)
    gates = {n: p for n, p in block.named_parameters() if "gate" in n}
    optimizer = torch.optim.SGD(gates.values(), lr=1e-2)
    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for step in range(3):
        optimizer.zero_grad()
        (block(x) * probe).sum().backward()
        reached = {n for n, p in gates.items() if p.grad.flatten(1).any(1).all()}
        assert "W_gate_K" in reached or step
        optimizer.step()
    assert reached == set(gates)
    before = block.terms(x, x, x).penalty
    optimizer = torch.optim.Adam(gates.values(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        block.terms(x, x, x).penalty.backward()
        optimizer.step()
    assert block.terms(x, x, x).penalty < 0.9 * before


def test_what_a_copy_cannot_say_is_refused():
    attn, _ = layer()
    for code, fields in {
        "cannot-copy-normalised": {"normalize_weights": True},
        "cannot-copy-output-bias": {"output_bias": False},
        "cannot-copy-narrow-heads": {"d_head": 4},
    }.items():
        with refuses(code):
            GatedAttention.from_attention(attn, 2, **COPY, **fields)
    with torch.no_grad():
        attn.b_O.zero_()
    GatedAttention.from_attention(attn, 2, **COPY, output_bias=False)
    with refuses("cannot-copy-output-bias"):
        GatedAttention.from_attention(attn, 2, **COPY, output_bias=False, value_bias=False)
    with refuses("cannot-copy-into-few-heads", heads=6, d_head=2, n=3, d=5):
        TopKAttention.from_attention(attn, 2, **COPY, d_head=2)
    with refuses("cannot-copy-into-circuits", heads=3):
        TopKAttention.from_attention(attn, 4, **COPY, n_circuits=4)


def test_the_value_bias_goes_into_the_output_bias():
    attn, x = layer()
    folded = attn.b_O + torch.einsum("hd,hdm->m", attn.b_V, attn.W_O)
    block = GatedAttention.from_attention(attn, 2, **COPY, value_bias=False)
    assert_close(block.b_O, folded)
    lorsa = TopKAttention.from_attention(attn, 2, value_bias=False)
    assert_close(lorsa.b_O, folded)
    assert_close(TopKAttention.from_attention(attn, 2).b_O, attn.b_O)
    assert attn(x, x, x).var() > 0


# Every flag of TransformerLens: a copy is exact, or there is none.

NOT_OF_ATTENTION = """
    d_model d_head n_layers n_ctx n_heads d_mlp d_vocab device default_prepend_bos attn_only
    gated_mlp eps layer_norm_folding act_fn num_experts experts_per_token model_name
    use_hook_mlp_in from_checkpoint checkpoint_index checkpoint_label_type checkpoint_value
    tokenizer_name init_mode n_devices seed initializer_range init_weights d_vocab_out n_params
    use_hook_tokens tokenizer_prepends_bos trust_remote_code quantization_method
    decoder_start_token_id tie_word_embeddings output_logits_soft_cap norm_topk_prob
"""
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
LOCAL = {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "local"]}
RELATIVE = {"relative_attention_max_distance": 4, "relative_attention_num_buckets": 4}
FLAGS = {
    "use_attn_result": [{"use_attn_result": True}],
    "use_split_qkv_input": [{"use_split_qkv_input": True}],
    "positional_embedding_type": [
        ROTARY,
        *({"positional_embedding_type": kind} for kind in ("shortformer", "alibi")),
        {"positional_embedding_type": "relative_positional_bias", **RELATIVE},
    ],
    "n_key_value_heads": [{"n_key_value_heads": n} for n in (1, 2, 4)],
    "uses_rms_norm": [{"uses_rms_norm": True, "normalization_type": "RMS"}],
    "normalization_type": [{"normalization_type": t} for t in (None, "LNPre", "RMSPre")],
    "final_rms": [{"final_rms": True}],
    "dtype": [{"dtype": t} for t in (torch.float64, torch.bfloat16, torch.float16)],
    "use_attn_scale": [{"use_attn_scale": False}],
    "attn_scale": [{"attn_scale": 5.0}],
    "use_attn_in": [{"use_attn_in": True}],
    "use_qk_norm": [{"use_qk_norm": True}],
    "clip_qkv": [{"clip_qkv": 0.5}],
    "use_logn_attn": [{"use_logn_attn": True, "train_seq_length": 3}],
    "train_seq_length": [{"train_seq_length": 3}],
    "use_dynamic_ntk_rope": [ROTARY | {"use_dynamic_ntk_rope": True}],
    "use_local_attn": [LOCAL],
    "ungroup_grouped_query_attention": [
        {"ungroup_grouped_query_attention": True, "n_key_value_heads": 2}
    ],
    "original_architecture": [{"original_architecture": f"{a}ForCausalLM"} for a in ("Olmo2", "X")],
    "window_size": [LOCAL | {"window_size": 2}],
    "attn_types": [LOCAL | {"attn_types": ["global", t]} for t in ("global", "local")],
    "attention_dir": [{"attention_dir": "bidirectional"}],
    "scale_attn_by_inverse_layer_idx": [{"scale_attn_by_inverse_layer_idx": True}],
    "parallel_attn_mlp": [{"parallel_attn_mlp": True, "attn_only": False, "d_mlp": 3}],
    "rotary_dim": [ROTARY | {"rotary_dim": 2}],
    "post_embedding_ln": [{"post_embedding_ln": True}],
    "use_normalization_before_and_after": [
        {"use_normalization_before_and_after": True, "normalization_type": "RMS"}
    ],
    "attn_scores_soft_cap": [{"attn_scores_soft_cap": 0.5}],
    "use_attention_sinks": [{"use_attention_sinks": True}],
    **{
        name: [ROTARY | {name: value}]
        for name, value in {
            "rotary_base": 9, "rotary_base_local": 9, "rotary_scaling_factor": 2.0,
            "rotary_adjacent_pairs": True, "use_NTK_by_parts_rope": True,
            "NTK_by_parts_low_freq_factor": 2.0, "NTK_by_parts_high_freq_factor": 3.0,
            "NTK_by_parts_factor": 4.0, "NTK_original_ctx_len": 9, "use_yarn_rope": True,
            "yarn_factor": 2.0, "yarn_attention_factor": 2.0, "yarn_beta_fast": 8.0,
            "yarn_beta_slow": 2.0, "yarn_original_max_position_embeddings": 9,
            "yarn_truncate": False, "yarn_global_attn_only": True,
        }.items()
    },
    **{name: [{"positional_embedding_type": "relative_positional_bias", **RELATIVE}]
       for name in RELATIVE},
}  # fmt: skip


def test_every_flag_of_transformer_lens_is_looked_at():
    fields = {field.name for field in dataclasses.fields(HookedTransformerConfig)}
    assert fields - set(NOT_OF_ATTENTION.split()) - set(FLAGS) == {"load_in_4bit"}


@pytest.mark.parametrize(
    "flags", [pytest.param(f, id=f"{n}-{i}") for n in FLAGS for i, f in enumerate(FLAGS[n])]
)
def test_a_flag_leaves_a_copy_exact_or_there_is_no_copy(flags):
    fields = {
        "n_layers": 2, "d_model": 16, "d_vocab": 8, "n_ctx": 11, "d_head": 4, "n_heads": 4,
        "attn_only": True, "act_fn": "relu", "device": "cpu", "normalization_type": "LN",
    }  # fmt: skip
    model = attention_only(HookedTransformerConfig(**fields | flags)).eval()
    fill(model, seed=3)
    exact = 1e-2 if model.cfg.dtype in (torch.bfloat16, torch.float16) else 1e-8
    for kind in (GatedAttention, TopKAttention):
        try:
            block = kind.from_attention(model.blocks[1].attn, 2, **COPY)
            copied = splice(model, 1, block)(TOKENS)
        except GatedInterpError:
            continue
        known = model(TOKENS)
        assert copied.dtype == known.dtype
        assert fvu(copied.double(), known.double()) < exact, flags
        silent = model.run_with_hooks(
            TOKENS, fwd_hooks=[("blocks.1.hook_attn_out", lambda out, hook: 0 * out)]
        )
        assert fvu(silent.double(), known.double()) > 100 * exact  # the layer says something


def test_weights_in_four_bits_are_refused():
    attn, _ = layer()
    attn.cfg.load_in_4bit = True  # to load them takes a library and a GPU
    with refuses("layer-beyond-replacements", name="load_in_4bit"):
        GatedAttention.from_attention(attn, **COPY)


# Types and devices.


def fitted(model, method):
    shape = {"expansion": 3} if METHODS[method].expansion > 10 else {}
    fast = {"steps": 2, "log_every": 1, "batch_size": 4, "progress": False}
    return gi.fit_replacement(model, 1, TASK, method=method, **fast, **shape)


@functools.cache
def first_fvu(method):
    return fitted(two_layers(TASK), method).history["fvu"].iloc[0]


DTYPES = [torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [GatedAttention, TopKAttention, OutputAutoencoder])
def test_a_block_takes_its_layers_type(kind, dtype):
    model = two_layers(TASK).to(dtype, print_details=False)
    block = kind.from_attention(model.blocks[0].attn, 2)
    assert {p.dtype for p in block.parameters()} == {dtype}
    spliced = splice(model, 0, block)
    assert spliced(TOKENS).dtype == dtype
    assert spliced(TOKENS).isfinite().all()
    with refuses("block-of-another-type", block="torch.float32"):
        splice(model, 0, block.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("move", ["to", "own"])
def test_a_spliced_model_moves_as_a_whole(dtype, move):
    # TransformerLens' norms look at its config, which .half() and its like leave as it was.
    model = two_layers(TASK, normalization_type="LN" if move == "to" else None)
    spliced = splice(model, 1, GatedAttention.from_attention(model.blocks[1].attn, 2))
    if move == "to":
        spliced.to(dtype, print_details=False)
    else:
        name = {torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "half"}[dtype]
        getattr(spliced, name)()
    restored = unsplice(spliced)
    assert {p.dtype for p in restored.parameters()} == {dtype}
    assert restored(TOKENS).dtype == spliced(TOKENS).dtype == dtype
    assert model(TOKENS).dtype == torch.float32
    spliced.to(torch.float32, print_details=False)
    assert gi.faithfulness(spliced, TOKENS).measures()["fvu"] > 0


def test_what_was_replaced_moves_with_the_model_and_is_no_part_of_it():
    model = two_layers(TASK)
    spliced = splice(model, 1, GatedAttention.from_attention(model.blocks[1].attn, 2))
    kept = originals(spliced)[1]
    assert {id(p) for p in kept.parameters()}.isdisjoint(map(id, spliced.parameters()))
    assert not any("original" in name for name in spliced.state_dict())
    assert not any("original" in name for name in spliced.hook_dict)
    for copied in (copy.deepcopy(spliced), pickle.loads(pickle.dumps(spliced))):
        assert torch.equal(originals(copied)[1].W_Q, kept.W_Q)
        assert originals(copied)[1].W_Q is not kept.W_Q
        copied.double()
        assert (originals(copied)[1].W_Q.dtype, kept.W_Q.dtype) == (torch.float64, torch.float32)
    spliced.to("meta", print_details=False)
    assert kept.W_Q.device.type == "meta"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_fits_a_model_of_any_type(method, dtype):
    model = two_layers(TASK).to(dtype, print_details=False)
    result = fitted(model, method)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.history.notna().all(axis=None)
    assert result.history["fvu"].iloc[0] == pytest.approx(first_fvu(method), rel=0.05, abs=2e-3)
    assert splice(model, 1, result.model)(TOKENS).dtype == dtype


# Which layer it was.


@pytest.mark.parametrize("kind", [GatedAttention, TopKAttention, OutputAutoencoder])
def test_a_block_for_another_layer_is_refused_unless_the_caller_insists(kind):
    model, other = two_layers(TASK, seed=0), two_layers(TASK, seed=1)
    block = kind.from_attention(model.blocks[1].attn)
    splice(model, 1, block)
    splice(splice(model, 0, kind.from_attention(model.blocks[0].attn)), 1, block)
    for wrong, at in ((other, 1), (model, 0), (splice(model, 0, block, other_layer=True), 0)):
        with refuses("block-of-another-layer"):
            splice(wrong, at, block)
        splice(wrong, at, block, other_layer=True)
    free = GatedAttention(GatedConfig(d_model=13, n_heads=2))
    splice(other, 0, free)  # of no layer in particular


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_is_known_through_a_round_trip_in_half_precision(dtype):
    model = two_layers(TASK)
    block = GatedAttention.from_attention(model.blocks[0].attn).to(dtype)
    model.to(dtype, print_details=False)
    splice(model, 0, block)
    splice(model.float(), 0, block.float())
    with torch.no_grad():
        model.blocks[0].attn.W_K.mul_(1.1)
    with refuses("block-of-another-layer"):
        splice(model, 0, block)


def test_sketches_are_as_far_apart_as_the_weights_are():
    drawn = {n: torch.randn(5, 40, 8, generator=torch.Generator().manual_seed(i))
             for i, n in enumerate(("W_Q", "W_K", "W_V"))}  # fmt: skip
    known = layer_sketch(drawn)
    for share, same in ((0.001, True), (0.1, False)):
        moved = {n: w + share * torch.roll(w, 1, 1) for n, w in drawn.items()}
        distance = torch.dist(torch.tensor(known), torch.tensor(layer_sketch(moved)))
        assert 0.6 * share < distance / torch.tensor(known).norm() < 1.5 * share
        assert same_layer(known, layer_sketch(moved)) is same
    assert layer_sketch(drawn | {"b_O": torch.zeros(9)}) == known  # what no file holds is zero
    swapped = drawn | {"W_Q": drawn["W_Q"].flip(0)}
    assert not same_layer(known, layer_sketch(swapped))
    # As every other machine and version makes it.
    assert layer_sketch({"b_V": torch.arange(5.0)})[:6] == (0.0, 1.0, -2.0, -3.0, 4.0, 0.0)


def test_training_tells_a_block_its_layer():
    toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=3))
    other = build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=4))
    config = gi.TrainConfig(steps=2)
    alone = GatedAttention(GatedConfig(d_model=8, n_heads=4))
    stacked = GatedAttention.from_attention(other.blocks[0].attn, 2)
    gi.train_gated(toy, alone, config, progress=False)
    gi.studies.train_gated_runs(
        [gi.studies.GatedRun(toy, stacked, config, toy.task)], progress=False
    )
    for block in (alone, stacked, with_heads(alone, [2, 0])):
        splice(toy, 0, block)
        with refuses("block-of-another-layer"):
            splice(other, 0, block)


def test_a_file_of_a_block_says_which_layer_it_stands_in_for(tmp_path):
    model, other = two_layers(TASK, seed=0), two_layers(TASK, seed=1)
    block = GatedAttention.from_attention(model.blocks[1].attn)
    path = block.save_pretrained(tmp_path / "block.safetensors")
    read = GatedAttention.from_pretrained(path)
    assert read.stands_for == block.stands_for
    splice(model, 1, read)
    with refuses("block-of-another-layer"):
        splice(other, 1, read)
    # Before there was such a thing.
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["gated_interp_block"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def written(said):
        safetensors.torch.save_file(tensors, path, {"gated_interp_block": json.dumps(said)})
        return GatedAttention.from_pretrained(path)

    splice(other, 1, written({n: v for n, v in said.items() if n != "layer"}))
    for bad in ("x", [1.0], [*said["layer"][:-1], "1"], {"a": 1}, [True] * 32):
        with refuses("bad-layer-sketch", CheckpointError, n=32):
            written(said | {"layer": bad})


@pytest.mark.parametrize("version", [1, 2])
def test_a_block_out_of_a_checkpoint_stands_in_for_the_attention_there(version, tmp_path):
    toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=3))
    other = build_toy(ToyConfig(n_trigrams=3, n_heads=2, seed=4))
    kind = GatedAttention if version == 1 else TopKAttention
    path = tmp_path / "model.safetensors"
    gi.save(splice(toy, 0, kind.from_attention(toy.blocks[0].attn)), path)
    for block in (kind.from_pretrained(path), gi.load(path).blocks[0].attn):
        splice(toy, 0, block)
        with refuses("block-of-another-layer"):
            splice(other, 0, block)


# Layers of models that people bring.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_of_another_models_layer_is_saved_pruned_and_read_the_same(family, tmp_path):
    model = Column(family).original()
    attn = model.blocks[1].attn
    block = GatedAttention.from_attention(attn, 2, **COPY, d_head=2 * attn.W_Q.shape[-1])
    block.save_pretrained(tmp_path)
    read = GatedAttention.from_pretrained(tmp_path)
    assert read.config == block.config
    assert read.extras == block.extras
    tokens = torch.randint(7, (5, 8), generator=generator(0))
    mask = torch.ones_like(tokens)
    mask[0, :3], mask[1, 6:] = 0, 0
    for spliced in (gi.splice(model, 1, block), gi.splice(model, 1, read)):
        for given in (None, mask):
            wanted, got = (m(tokens, attention_mask=given) for m in (model, spliced))
            real = mask.bool() if given is not None else torch.ones_like(mask).bool()
            assert_close(got[real], wanted[real], scale=wanted.abs().max())
    # Of heads that are the same in twos, one of each is half of what is written.
    half = gi.splice(model, 1, with_heads(block, list(range(attn.W_O.shape[0]))))
    name = "blocks.1.attn.hook_pattern"
    patterns = [m.run_with_cache(tokens, names_filter=name)[1][name] for m in (model, half)]
    assert_close(patterns[1], patterns[0])


def test_a_wrong_scoring_is_refused_in_a_sentence():
    for scoring, code in (
        ({"width": 0}, "config-not-positive"),
        ({"width": 2, "window": 0}, "config-not-positive"),
        ({"width": 2, "rotary": {"rotary_dim": 2}}, "config-bad-rotary"),
        ({"width": 2, "spin": 1}, "config-unknown-field"),
    ):
        with refuses(code):
            GatedConfig(d_model=3, n_heads=2, scoring=scoring)


def test_the_mode_of_a_model_reaches_its_block_and_what_it_replaced(tmp_path):
    # Attention that grows with the logarithm of the length does so in use alone, not in training.
    model = two_layers(TASK).eval()
    model.cfg.use_logn_attn, model.cfg.train_seq_length = True, 3
    block = GatedAttention.from_attention(model.blocks[0].attn, 2, **COPY)
    block.save_pretrained(tmp_path)
    spliced = gi.splice(model, 0, GatedAttention.from_pretrained(tmp_path))
    assert_close(spliced(TOKENS), model(TOKENS))
    spliced.train()
    assert_close(spliced(TOKENS), gi.unsplice(spliced)(TOKENS))
    assert (spliced(TOKENS) - model(TOKENS)).abs().max() > 1e-2
    spliced.eval()
    assert_close(gi.unsplice(spliced)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("extras", [{"d_head": 3}, {"d_head": 1}])
def test_heads_too_narrow_to_rotate_or_norm_are_refused(extras):
    for attn, _ in (
        layer(positional_embedding_type="rotary", rotary_dim=4),
        layer(use_qk_norm=True),
    ):
        with refuses("config-heads-too-narrow"):
            GatedAttention.from_attention(attn, **extras)


def test_a_rotation_of_a_double_model_is_exact_far_into_a_long_context():
    config = HookedTransformerConfig(
        n_layers=1, d_model=11, d_vocab=2, n_ctx=3000, d_head=5, n_heads=3, attn_only=True,
        act_fn="relu", device="cpu", dtype=torch.float64,
        positional_embedding_type="rotary", rotary_dim=4,
    )  # fmt: skip
    attn = fill(attention_only(config), 7).blocks[0].attn
    block = GatedAttention.from_attention(attn, 2, **COPY)
    x = torch.randn(1, 2900, 11, dtype=torch.float64, generator=generator(0))
    assert off_by(block, attn, x) < 1e-28
    assert torch.equal(block.scored.sin[:2900], attn.rotary_sin[:2900])
    assert torch.equal(block.scored.cos[:2900], attn.rotary_cos[:2900])
