"""Language models: built, folded, kept in checkpoints, scored, and had from elsewhere."""

import json
import os

import numpy as np
import pytest
import torch
from closeness import assert_close
from refusals import refuses
from safetensors import safe_open

from gated_interp.analysis.induction import induction_scores, repeated_random_tokens
from gated_interp.checkpoints import attn_only
from gated_interp.checkpoints.checkpoint import load, read_info, save, save_pretrained
from gated_interp.core.errors import CheckpointError
from gated_interp.experiments.language import language_measures
from gated_interp.metrics.ngrams import WEIGHTS, Ngrams
from gated_interp.models.language_model import (
    LanguageModelConfig,
    LanguageTransformer,
    build_language_model,
    folded,
    give_text,
    require_text,
)
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.replacements.topk import TopKAttention
from gated_interp.tasks.text import RepeatedText, TextTask
from gated_interp.tasks.tokenizers import trained_tokenizer
from gated_interp.training.capture import attention_io
from gated_interp.training.config import TrainConfig
from gated_interp.training.data import data_for
from gated_interp.training.loop import train_gated

TEXT = "".join(f"line {i} of a text, in which {i % 7} is said again\n" for i in range(200))
VOCAB = 263
SHAPE = LanguageModelConfig(
    d_vocab=VOCAB, n_ctx=17, n_layers=2, d_model=15, n_heads=3, d_head=7, seed=5
)
NORMS = ("LNPre", "LN", "none")
POSITIONS = ("standard", "shortformer")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT)
    return TextTask(folder / "text.txt", 17, vocab=VOCAB, folder=folder / "ids")


def disturbed(model, seed=1):
    """The same with biases and norms that are not as they are born."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return model


def built(task=None, **changes) -> LanguageTransformer:
    return disturbed(build_language_model(SHAPE.replace(**changes), task))


# ---- building


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_layers", [1, 4])
def test_a_config_becomes_its_transformer(n_layers, norm, positions):
    model = build_language_model(
        SHAPE.replace(n_layers=n_layers, normalization=norm, positions=positions)
    )
    cfg = model.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_model) == (n_layers, 3, 7, 15)
    assert (cfg.attn_only, cfg.n_ctx, cfg.d_vocab) == (True, 17, VOCAB)
    assert cfg.normalization_type == (None if norm == "none" else norm)
    assert cfg.positional_embedding_type == positions
    assert all(p.requires_grad for p in model.parameters())
    assert model(torch.tensor([[0, 3, 262]])).isfinite().all()


def test_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    one, same = build_language_model(SHAPE), build_language_model(SHAPE)
    other = build_language_model(SHAPE.replace(seed=6))
    assert (torch.get_rng_state() == before).all()
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        drawn = name.rpartition(".")[2].startswith("W_")
        assert torch.equal(parameter, other.get_parameter(name)) is not drawn
    spread = one.unembed.W_U.std().item() * 15**0.5
    assert abs(spread - 0.8) < 0.05
    assert LanguageModelConfig(d_vocab=9) == LanguageModelConfig(d_vocab=9, seed=0)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"n_layers": 5}, "config-too-many-layers"),
        ({"n_layers": 0}, "config-not-positive"),
        ({"n_ctx": 1}, "config-context-too-short"),
        ({"n_heads": 200, "d_head": 0}, "config-not-positive"),
        ({"positions": "rotary"}, "config-wrong-type"),
        ({"normalization": "RMS"}, "config-wrong-type"),
        ({"seed": -1}, "config-bad-seed"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong, code):
    with refuses(code):
        SHAPE.replace(**wrong)


def test_the_width_is_shared_out_among_the_heads():
    assert LanguageModelConfig(d_vocab=9, d_model=96, n_heads=4).d_head == 24


def test_folding_leaves_the_predictions(task):
    model = built(task, normalization="LN")
    tokens = task.sample(5, 0).tokens
    other = folded(model)
    assert other.cfg.normalization_type == "LNPre"
    assert other.task == task
    assert_close(other(tokens).log_softmax(-1), model(tokens).log_softmax(-1), scale=10.0)
    assert model.cfg.normalization_type == "LN"
    assert model.blocks[0].ln1.w.std() > 0.01  # left as it was


@pytest.mark.parametrize("changes", [{}, {"normalization": "LN", "positions": "shortformer"}])
def test_what_cannot_be_folded_stays(changes):
    model = built(**changes)
    assert folded(model) is model


def test_a_models_text_gives_it_words(task):
    model = build_language_model(SHAPE, task)
    assert model.to_str_tokens("a text")[0] == "<|endoftext|>"
    assert model.to_tokens("a text").tolist() == [[0, *task.encode("a text")]]
    said = model.generate("a text", max_new_tokens=3, verbose=False, temperature=0.0)
    assert said.startswith("a text")
    # What was read comes back as it was: a space before a comma is one of the text's tokens.
    written = "a text , in which"
    assert model.to_string(model.to_tokens(written)[0, 1:]) == written


def test_another_vocabulary_is_refused(task, tmp_path):
    small = build_language_model(SHAPE.replace(d_vocab=VOCAB - 1))
    with refuses("tokenizer-vocabulary-mismatch", d_vocab=262, wanted=263):
        give_text(small, task)
    with refuses("tokenizer-vocabulary-mismatch", d_vocab=262):
        require_text(small, task)
    (tmp_path / "other.txt").write_text(TEXT.upper())
    other = TextTask(tmp_path / "other.txt", 17, vocab=VOCAB, folder=tmp_path / "ids")
    model = build_language_model(SHAPE, task)
    require_text(model, task.part("test"))
    for text in (other, other.part("test")):
        with refuses("another-tokenizer"):
            require_text(model, text)
    with refuses("another-tokenizer"):
        language_measures(model, other.part("test"))
    repeated = RepeatedText(other.part("train"), 0.5)
    with refuses("another-tokenizer"):
        data_for(model, repeated)
    assert isinstance(data_for(model, RepeatedText(task.part("train"), 0.5)), RepeatedText)


# ---- checkpoints


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_checkpoint_gives_the_model_back(norm, positions, task, tmp_path):
    model = built(task, normalization=norm, positions=positions)
    path = save(model, tmp_path / "model.safetensors", notes={"made": "here"})
    back = load(path)
    assert isinstance(back, LanguageTransformer)
    assert (back.task, back.notes, back.model_name) == (task, {"made": "here"}, "model")
    assert back.language_config == model.language_config
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, back.get_parameter(name)), name
    assert back.to_str_tokens("a text") == model.to_str_tokens("a text")
    assert path.read_bytes() == save(back, tmp_path / "again.safetensors").read_bytes()
    info = read_info(path)
    assert (info.kind, info.format) == ("language_model", "gated_interp 2")
    assert info.n_parameters == sum(p.numel() for p in model.parameters())


def test_the_model_reads_its_tokens_as_the_text_says_them(task):
    model = built(task)
    said = "he , do n't ."  # blanks that tokenizers of words would take away
    tokens = model.to_tokens(said, prepend_bos=False)[0]
    assert model.to_string(tokens) == model.tokenizer.decode(tokens) == said


def test_the_tokenizer_travels_as_text(task, tmp_path):
    path = save(build_language_model(SHAPE, task), tmp_path / "model.safetensors")
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["gated_interp"])
    assert json.loads(said["task"]["tokenizer"])["model"]["type"] == "BPE"
    assert said["task"]["digest"] == task.digest


def test_blocks_in_several_layers_travel_too(task, tmp_path):
    model = built(task)
    first = GatedAttention.from_attention(model.blocks[0].attn, 2, seed=1)
    second = TopKAttention.from_attention(model.blocks[1].attn, 3, seed=2)
    spliced = splice(splice(model, 0, first), 1, second)
    back = load(save(spliced, tmp_path / "spliced.safetensors"))
    tokens = task.sample(3, 0).tokens
    assert torch.equal(back(tokens), spliced(tokens))
    assert torch.equal(unsplice(back)(tokens), model(tokens))


def test_a_model_without_text_cannot_be_saved(tmp_path):
    with refuses("model-without-task"):
        save(build_language_model(SHAPE), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("tokenizer", "{}", "bad-tokenizer"),
        ("tokenizer", "tokenizer.json", "tokenizer-not-text"),
        ("text", "austen", "text-not-names"),
        ("digest", "0", "bad-digest"),
        ("n_positions", 18, "stored-config-contradicts-task"),
        ("tokenizer", None, "tokenizer-not-text"),
        ("tokenizer", trained_tokenizer([TEXT], VOCAB + 1), "stored-config-contradicts-task"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(key, value, code, task, tmp_path):
    from safetensors.torch import load_file, save_file

    path = save(build_language_model(SHAPE, task), tmp_path / "model.safetensors")
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["gated_interp"])
    said["task"][key] = value
    save_file(load_file(path), path, metadata={"gated_interp": json.dumps(said)})
    with refuses(code, CheckpointError):
        load(path)


# ---- attention of either kind


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_block_made_of_the_heads_writes_the_same(positions, layer, task):
    model = built(task, positions=positions)
    block = GatedAttention.from_attention(
        model.blocks[layer].attn,
        1,
        init="duplicate",
        noise=0.0,
        gate="open",
        normalize_weights=False,
        output_bias=True,
    )
    tokens = task.sample(4, 0).tokens
    seen = attention_io(model, layer, tokens)
    assert_close(block(*seen.inputs), seen.output)
    spliced = splice(model, layer, block)
    assert_close(spliced(tokens), model(tokens))


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_block_trains_on_the_models_own_text(positions, task):
    model = built(task, positions=positions)
    block = GatedAttention.from_attention(model.blocks[1].attn, 2)
    config = TrainConfig.plain(steps=30, batch_size=8, lr=0.02, alpha=0.0, evaluate_every=10)
    history = train_gated(model, block, config, layer=1, progress=False).history
    assert history["fvu"].iloc[-1] < history["fvu"].iloc[0]
    assert history["held_out_fvu"].notna().sum() == 4


# ---- n-grams


def test_ngrams_by_hand(monkeypatch):
    """Tokens 0 1 0 2 0 1: 0 comes 3 times and is followed by 1, 2, 1."""
    model = Ngrams.counted(np.array([0, 1, 0, 2, 0, 1], dtype=np.uint16), 4)
    assert_close(model.unigram, np.array([4, 3, 2, 1]) / 10)
    assert model.pairs.toarray().tolist() == [[0, 2, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0] * 4]
    alone, mixed = model.losses(np.array([[0, 1, 3, 0]]))
    assert_close(alone, -np.log([[0.3, 0.1, 0.4]]))
    # Nothing ever followed 3; 1 was followed by 0 alone, once at the end by nothing.
    wanted = [0.7 * 2 / 3 + 0.3 * 0.3, 0.3 * 0.1, 0.4]
    assert_close(mixed, -np.log([wanted]))
    # 1 is followed once, by 0.
    assert_close(model.losses(np.array([[1, 0]]))[1], -np.log([[0.7 + 0.3 * 0.4]]))
    monkeypatch.setattr("gated_interp.metrics.ngrams.AT_ONCE", 2)
    again = Ngrams.counted(np.array([0, 1, 0, 2, 0, 1], dtype=np.uint16), 4)
    assert (again.pairs != model.pairs).nnz == 0
    assert (again.unigram == model.unigram).all()


def test_the_bigrams_weight_is_the_one_that_predicts_best():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, size=4000)
    tokens[1::2] = (tokens[::2] + 1) % 5  # every other token follows from the one before
    model = Ngrams.counted(tokens[:3000], 5)
    held_out = tokens[3000:].reshape(-1, 20)
    fitted = model.fitted([held_out])
    losses = {w: Ngrams(model.unigram, model.pairs, w).losses(held_out)[1].mean() for w in WEIGHTS}
    assert fitted.weight == min(losses, key=losses.get)


def test_measures_are_those_of_the_test_part(task):
    model = built(task)
    found = language_measures(model)
    part = task.part("test")
    tokens = torch.cat(list(part.in_order()))
    each = model(tokens, return_type="loss", loss_per_token=True)
    assert_close(found["cross_entropy"], each.mean().item())
    assert found["tokens"] == len(part.ids) // 16 * 16 == each.numel()
    assert_close(found["standard_error"], each.mean(1).std().item() / len(tokens) ** 0.5)
    assert found["bigram"] < found["unigram"] < np.log(VOCAB)


def test_measures_need_a_text():
    with refuses("no-text-to-measure"):
        language_measures(build_language_model(SHAPE))


# ---- prefix matching


def with_patterns(model, pattern):
    """``model`` whose heads all attend as ``pattern``, [query key], says."""
    for block in model.blocks:
        block.attn.hook_pattern.add_perma_hook(
            lambda p, hook: pattern[: p.shape[-2], : p.shape[-1]].expand_as(p)
        )
    return model


def scores_of(model):
    return induction_scores(model, repeated_random_tokens(model, 2, bos=0))


def test_prefix_matching_of_a_perfect_induction_head():
    """Attention to the token behind the latest copy: one entry of each query's, all of its sum."""
    model = build_language_model(SHAPE.replace(n_ctx=101))
    at = torch.arange(101)
    pattern = torch.zeros(101, 101)
    pattern[at, (at - 24).clamp(min=0)] = 1
    table = scores_of(with_patterns(model, pattern))
    assert table[["layer", "head"]].to_numpy().tolist() == [
        [layer, head] for layer in range(2) for head in range(3)
    ]
    # 75 queries have 1, 2 and 3 earlier copies: 150 entries, 75 of them ones.
    assert_close(table["per_copy"].tolist(), [0.5] * 6)
    assert_close(table["prefix_matching"].tolist(), [1.0] * 6)


def test_prefix_matching_of_even_attention_is_chance():
    model = build_language_model(SHAPE.replace(n_ctx=101))
    pattern = torch.ones(101, 101).tril()
    pattern = pattern / pattern.sum(1, keepdim=True)
    table = scores_of(with_patterns(model, pattern))
    queries = torch.arange(26, 101).double()
    copies = (queries - 1).div(25, rounding_mode="floor")
    assert_close(table["per_copy"][0], ((copies / (queries + 1)).sum() / 150).item())
    assert_close(table["prefix_matching"][0], (copies / (queries + 1)).mean().item())


@pytest.mark.parametrize(("n_ctx", "wanted"), [(101, 101), (64, 51), (17, 17), (6, 5)])
def test_shorter_contexts_leave_repeats_out_then_tokens(n_ctx, wanted):
    model = build_language_model(SHAPE.replace(n_ctx=n_ctx))
    assert repeated_random_tokens(model, 2, bos=0).shape == (2, wanted)


def test_prefix_matching_refuses():
    with refuses("no-first-token"):
        induction_scores(build_language_model(SHAPE))
    with refuses("context-too-short-for-repeats", n_ctx=4):
        repeated_random_tokens(build_language_model(SHAPE.replace(n_ctx=4)), bos=0)


# ---- TransformerLens' own


def theirs(folder, positions="standard", **changes):
    """A download of one of TransformerLens' models, and the same model as we would build it."""
    model = built(normalization="LN", positions=positions)
    config = {
        "d_model": 15, "n_layers": 2, "d_mlp": 60, "d_head": 7, "n_heads": 3, "n_ctx": 17,
        "d_vocab": VOCAB, "act_fn": "gelu", "attn_only": True, "normalization": "LN",
        "shortformer_pos": positions == "shortformer", **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "model_final.pth")
    # Fewer tokens than the model has rows for.
    (folder / "tokenizer.json").write_text(trained_tokenizer([TEXT], VOCAB - 2))
    return model


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_folder_with_one_of_transformer_lens_models(positions, tmp_path):
    model = theirs(tmp_path, positions)
    found = load(tmp_path)
    norm = "LN" if positions == "shortformer" else "LNPre"  # which cannot be folded, and which can
    assert found.language_config.normalization == norm
    tokens = torch.randint(VOCAB, (3, 17), generator=torch.Generator().manual_seed(0))
    assert_close(found(tokens).log_softmax(-1), model(tokens).log_softmax(-1), scale=10.0)
    assert found.to_str_tokens("a text")[1:] != []
    back = load(save_pretrained(found, tmp_path / "ours"))
    assert torch.equal(back(tokens), found(tokens))
    with refuses("text-not-included"):
        back.task.sample(1, 0)


def test_one_of_transformer_lens_models_by_name(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    theirs(tmp_path)
    asked = []

    def download(repo, name):
        asked.append((repo, name))
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "list_repo_files", lambda repo: ["README.md", "model_final.pth"])
    found = load("attn-only-2l")
    assert found.model_name == "attn-only-2l"
    assert [repo for repo, _ in asked] == [
        "NeelNanda/Attn_Only_2L512W_C4_Code",
        "NeelNanda/Attn_Only_2L512W_C4_Code",
        "NeelNanda/gpt-neox-tokenizer-digits",
    ]

    def unreachable(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    with refuses("hub-unreachable"):
        load("attn-only-2l")


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def spoilt(folder, case):
    if case == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    if case == "no config":
        (folder / "config.json").write_text("[]")
    if case == "cut short":
        (folder / "model_final.pth").write_bytes(b"PK\x03\x04 and no more")
    if case == "hostile":
        torch.save({"embed.W_E": Hostile()}, folder / "model_final.pth")
    if case == "other shape":
        torch.save({"embed.W_E": torch.zeros(3, 3)}, folder / "model_final.pth")
    if case == "NaN":
        state = torch.load(folder / "model_final.pth", weights_only=True)
        state["embed.W_E"][0, 0] = torch.nan
        torch.save(state, folder / "model_final.pth")


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("no tokenizer", "tokenizer-file-missing"),
        ("no config", "not-attention-only-config"),
        ("cut short", "weights-damaged"),
        ("hostile", "weights-damaged"),
        ("other shape", "weights-lack-a-tensor"),
        ("NaN", "weights-not-finite"),
    ],
)
def test_a_spoilt_download_gets_a_sentence(case, code, tmp_path, monkeypatch):
    theirs(tmp_path)
    spoilt(tmp_path, case)
    monkeypatch.chdir(tmp_path)
    with refuses(code, CheckpointError):
        load(tmp_path)
    assert not (tmp_path / "unpickled").exists()


def test_a_model_with_mlps_is_refused(tmp_path):
    theirs(tmp_path, attn_only=False)
    with refuses("model-with-mlps", CheckpointError):
        load(tmp_path)
    assert set(attn_only.REPOSITORIES) == {f"attn-only-{n}l" for n in (1, 2, 3, 4)}
