"""Models whose tokenizer has no token for the beginning of a text: opened, and read without one."""

import itertools
import json

import pytest
import torch
import transformers
from commands import cli, invoke
from refusals import refuses
from test_open_model import CONFIGS, D_VOCAB, N_CTX, tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import gated_interp as gi
from gated_interp.tasks.mixture import RandomRepeats, with_repeats

WORDS = [3, 5, 7, 2, 90, 11]


def tokenizer(first="w0", template=False):
    """Words by number; ``first`` stands in the place of word 0, put before texts by a template."""
    made = Tokenizer(
        models.WordLevel({first: 0} | {f"w{i}": i for i in range(1, D_VOCAB)}, unk_token="w1")
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        made.add_special_tokens([first])
        made.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, 0)]
        )
    return made


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text((" ".join(f"w{i}" for i in WORDS) + "\n") * 400)
    return path


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "mine"
    tiny(CONFIGS["GPT-NeoX"]()).save_pretrained(place)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer())
    made.save_pretrained(place)
    return place


@pytest.fixture
def model(folder, text):
    return gi.open_model(folder, text=text)


def test_text_is_read_from_its_first_word_and_the_output_says_so(model, text) -> None:
    assert model.task.bos is None
    assert model.tokenizer.bos_token_id is None
    rows = model.task.sample(5, seed=0).tokens
    assert rows.shape == (5, N_CTX)
    ring = dict(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
    assert all(ring[a] == b for row in rows.tolist() for a, b in itertools.pairwise(row))
    whole = torch.cat(list(model.task.part("test").in_order())).flatten()
    assert whole.tolist() == model.task.part("test").ids[: len(whole)].tolist()
    assert model.task.part("train").ids[0] == WORDS[0]
    assert "no token at the beginning" in str(model.task)


def test_a_text_of_one_token_too_few_is_refused(tmp_path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(" w3 w5 w7\n" * 40)  # six words in the last twentieth
    json_text = tokenizer().to_str()
    assert gi.text.TextTask(path, 6, json_text, folder=tmp_path / "a").part("test")
    with refuses("text-too-short", needed=7):
        gi.text.TextTask(path, 7, json_text, folder=tmp_path / "b")
    begun = tokenizer("</s>").to_str()
    assert gi.text.TextTask(path, 7, begun, folder=tmp_path / "c").bos == 0


@pytest.mark.parametrize("own", [False, True])
def test_where_a_text_begins_with_one_token_and_ends_with_another_the_first_is_taken(
    own, text, tmp_path
) -> None:
    """As in Phi-3, which has all three; its tokenizer puts <s> first, or nothing."""
    made = tokenizer("<s>", template=own)
    made.add_special_tokens(["<s>", "<|endoftext|>"])
    task = gi.text.TextTask(text, 9, made.to_str(), folder=tmp_path / "ids")
    assert task.bos == 0
    assert task.part("train").ids[:3].tolist() == [0, *WORDS[:2]]
    assert str(task).count("at the beginning") == 0


def test_a_word_that_looks_like_a_first_token_is_none(text, tmp_path) -> None:
    made = tokenizer("<s>")  # in a text about HTML it is a word
    made.add_special_tokens(["<|endoftext|>"])
    task = gi.text.TextTask(text, 9, made.to_str(), folder=tmp_path / "ids")
    assert task.bos == D_VOCAB
    assert gi.text.TextTask(text, 9, tokenizer("<s>").to_str(), folder=tmp_path / "b").bos == 0


@pytest.mark.parametrize(("first", "template"), [("</s>", False), ("[CLS]", True)])
def test_what_else_stands_before_a_text_is_taken_and_named(first, template, text) -> None:
    task = gi.text.TextTask(text, 9, tokenizer(first, template).to_str())
    assert task.bos == 0
    assert (task.sample(4, seed=0).tokens[:, 0] == 0).all()
    assert f"{first} at the beginning" in str(task)
    usual = gi.text.TextTask(text, 9, tokenizer("<|endoftext|>").to_str())
    assert "beginning" not in str(usual)


def test_what_puts_a_first_token_asks_for_it(model) -> None:
    with refuses("no-first-token"):
        gi.head_effects(model, 1)
    assert len(gi.head_effects(model, 1, bos=4).off[0]) == 4


def test_random_repeats_begin_with_the_repeated_tokens(model) -> None:
    rows = RandomRepeats(D_VOCAB, 9, None).sample(3, seed=0).tokens
    assert rows.shape == (3, 9)
    assert torch.equal(rows[:, :4], rows[:, 5:])
    assert with_repeats(model.task).sample(12, seed=0).tokens.shape == (12, N_CTX)


def test_commands_read_such_a_model(folder, tmp_path) -> None:
    said = json.loads(cli("info", folder, "--json").stdout)
    assert "no token at the beginning" in said["text"]
    assert "L1H2" in cli("circuits", folder, "--layer", "1").stdout
    assert "L1H2" in cli("ablate", folder, "--layer", "1", "--prompt", "w3 w5").stdout
    assert (
        "fewer than two tokens"
        in invoke(["ablate", folder, "--layer", "1", "--prompt", "w3"]).stderr
    )
    cli("report", folder, "--layer", "1", "--out", tmp_path / "report.html")
    assert "no token at the beginning" in (tmp_path / "report.html").read_text()
