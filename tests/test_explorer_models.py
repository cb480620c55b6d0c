"""The explorer of language models, of several layers and of tasks other than skip trigrams."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from refusals import refuses
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from gated_interp.analysis.ablation import without_heads
from gated_interp.analysis.attribution import logit_attribution
from gated_interp.checkpoints.checkpoint import load
from gated_interp.explorer import HeadExplorer
from gated_interp.explorer.session import Session
from gated_interp.models.analytic import coherent_head, two_readers
from gated_interp.models.analytic_tasks import (
    conditional_heads,
    induction_model,
    marked_relay,
    wide_pairs,
)
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice

HEADS, LAYERS, VOCABULARY, POSITIONS = 3, 2, 53, 7


@pytest.fixture(scope="module")
def two_layers() -> HookedTransformer:
    """Two layers with LayerNorm and random weights, without a task or a tokenizer."""
    shape = HookedTransformerConfig(
        n_layers=LAYERS, n_heads=HEADS, d_model=10, d_head=5, n_ctx=POSITIONS, d_vocab=VOCABULARY,
        attn_only=True, normalization_type="LN", device="cpu", seed=None,
    )  # fmt: skip
    model = HookedTransformer(shape)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=source))
    return model


TOKENS = torch.randint(VOCABULARY, (11, POSITIONS), generator=torch.Generator().manual_seed(2))


def ask(explorer: HeadExplorer, do: str, **what: object) -> dict[str, Any]:
    explorer.widget._handle_custom_msg({"do": do, **what}, [])
    return dict(explorer.widget.view)


def test_what_heads_write_through_a_norm_is_their_attribution(two_layers: Any) -> None:
    explorer = HeadExplorer(two_layers, tokens=TOKENS)
    explorer.set_layer(1)
    explorer.set_position(4)
    reading, target = explorer.readings["model"], 17
    where = torch.tensor([0]), torch.tensor([4]), torch.tensor([target])
    split = logit_attribution(two_layers, TOKENS[:1], *where)
    shares = dict(zip(split.components, split.values[0].tolist(), strict=True))
    wanted = [shares[f"L1H{h}"] for h in range(HEADS)]
    assert_close(reading.writes[:, target], torch.tensor(wanted), dtype=torch.float32)
    assert_close(reading.writes.sum(0) + reading.direct, two_layers(TOKENS[:1])[0, 4].detach(),
                 dtype=torch.float32, roundings=64)  # fmt: skip


def test_a_layer_is_picked_and_what_is_off_elsewhere_stays_off(two_layers: Any) -> None:
    explorer = HeadExplorer(two_layers, tokens=TOKENS)
    explorer.set_head(2, on=False)
    view = ask(explorer, "layer", value=1)
    (model,) = view["models"]
    assert [h["name"] for h in model["heads"]] == ["L1H0", "L1H1", "L1H2"]
    assert all(h["on"] for h in model["heads"])
    assert model["elsewhere"] == "L0H2"
    ask(explorer, "head", model="model", head=1, on=False)
    explorer.set_head("L0H0", on=False)
    assert explorer.state.off["model"] == {(0, 0), (0, 2), (1, 1)}
    at = explorer.state.position
    with torch.no_grad(), without_heads(two_layers, [(0, 0), (0, 2), (1, 1)]):
        logits, cache = two_layers.run_with_cache(TOKENS[:1])
    reading = explorer.readings["model"]
    assert_close(reading.logits, logits[0, at], dtype=torch.float32)
    pattern = cache["blocks.1.attn.hook_pattern"][0]
    assert_close(reading.attention, pattern, dtype=torch.float32)
    other = HeadExplorer(two_layers, tokens=TOKENS)
    other.restore(explorer.link)
    assert other.state == explorer.state
    assert repr(other) == "HeadExplorer(model: 6 heads, 2 layers)"
    assert other.snapshot().layout.annotations


def test_without_names_tokens_are_numbers(two_layers: Any) -> None:
    explorer = HeadExplorer(two_layers, tokens=TOKENS)
    explorer.type_tokens("3, 52 0")
    assert explorer.state.tokens == (3, 52, 0)
    assert explorer.widget.view["tokens"] == ["3", "52", "0"]
    with refuses("no-such-token", token="53", last=52):
        explorer.type_tokens("53")
    with refuses("no-examples"):
        HeadExplorer(two_layers)


def test_an_effect_is_that_of_the_next_token(two_layers: Any) -> None:
    explorer = HeadExplorer(two_layers, tokens=TOKENS)
    view = ask(explorer, "layer", value=0)
    at, following = explorer.state.position, explorer.state.tokens[explorer.state.position + 1]
    assert view["metric"] == f"log p of the true next token, “{following}”"
    for method in ("zero", "mean"):
        explorer.set_method(method)  # type: ignore[arg-type]
        for head in range(HEADS):
            reference = {"reference_tokens": TOKENS}
            with torch.no_grad(), without_heads(two_layers, [(0, head)], method, **reference):
                without = two_layers(TOKENS[:1])[0, at].log_softmax(-1)[following]
            intact = two_layers(TOKENS[:1])[0, at].log_softmax(-1)[following].detach()
            shown = explorer.widget.view["models"][0]["heads"][head]["effect"]
            assert shown == pytest.approx(float(without - intact), abs=2e-4)
    with refuses("not-one-of"):
        explorer.set_method("optimal")


def test_colours_leave_the_first_position_out_and_numbers_do_not(two_layers: Any) -> None:
    explorer = HeadExplorer(two_layers, tokens=TOKENS)
    view = explorer.widget.view
    _, cache = two_layers.run_with_cache(TOKENS)
    later = cache["blocks.0.attn.hook_pattern"][:, :, 1:, 1:].numpy()
    assert view["darkest"] <= later.max() < view["scale"]
    assert (later[later > 0.01 * later.max()] <= view["darkest"]).mean() == pytest.approx(
        0.95, 0.02
    )
    assert "first position is left out" in view["range"]
    shown = np.frombuffer(explorer.widget.patterns, "<u2") * (view["scale"] / 65535)
    assert shown.max() == pytest.approx(1, abs=1e-4)  # the first position, which only reads itself


def test_a_head_that_is_off_is_not_said_to_raise_anything(two_layers: Any) -> None:
    explorer = HeadExplorer(two_layers, tokens=TOKENS)
    explorer.set_head(2, on=False)
    assert [len(h["raises"]) for h in explorer.widget.view["models"][0]["heads"]] == [3, 3, 0]


def loss_of_each(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.nn.functional.pad(
        -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0], (0, 1)
    )


@pytest.mark.parametrize(
    "metric",
    [
        loss_of_each,
        lambda logits, tokens: loss_of_each(logits, tokens)[:, 3],
        lambda logits, tokens: loss_of_each(logits, tokens)[:, 3].mean(),
        lambda logits, tokens: float(loss_of_each(logits, tokens)[:, 3].mean()),
    ],
)
def test_any_metric(two_layers: Any, metric: Callable[[Tensor, Tensor], Any]) -> None:
    explorer = HeadExplorer(two_layers, tokens=TOKENS, metric=metric)
    explorer.set_layer(1)
    explorer.set_position(3)
    model = explorer.widget.view["models"][0]
    with torch.no_grad():
        intact = loss_of_each(two_layers(TOKENS[:1]), TOKENS[:1])[0, 3]
        with without_heads(two_layers, [(1, 2)]):
            without = loss_of_each(two_layers(TOKENS[:1]), TOKENS[:1])[0, 3]
    assert model["intact_metric"] == pytest.approx(float(intact), abs=2e-4)
    assert model["heads"][2]["effect"] == pytest.approx(float(without - intact), abs=2e-4)
    name = "loss_of_each" if metric is loss_of_each else "metric"
    assert explorer.widget.view["metric"] == name


QUESTIONS = {
    ("a token", "17"): lambda now, _: now[0, 3].log_softmax(-1)[17],
    ("a difference", "17 5"): lambda now, _: now[0, 3, 17] - now[0, 3, 5],
    ("KL", ""): lambda now, before: torch.nn.functional.kl_div(
        now[0, 3].log_softmax(-1), before[0, 3].log_softmax(-1), reduction="sum", log_target=True
    ),
    ("the loss on a span", "2 to 4"): lambda now, _: torch.nn.functional.cross_entropy(
        now[0, 1:4], TOKENS[0, 2:5]
    ),
}


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_the_reader_chooses_what_is_asked(two_layers: Any, question: tuple[str, str]) -> None:
    explorer = HeadExplorer(two_layers, tokens=TOKENS)
    explorer.set_position(3)
    kind, words = question
    view = ask(explorer, "question", kind=kind, value=words)
    value, name = QUESTIONS[question], view["metric"]
    assert (view["kind"], view["words"]) == (kind, words.replace("to ", ""))
    with torch.no_grad():
        intact = two_layers(TOKENS[:1])
        with without_heads(two_layers, [(0, 2)]):
            without = two_layers(TOKENS[:1])
    change = float(value(without, intact) - value(intact, intact))
    (model,) = view["models"]
    assert model["heads"][2]["effect"] == pytest.approx(change, abs=2e-4)
    assert view["strip"]["values"][0][2] == pytest.approx(change, abs=2e-4)
    explorer.set_head(2, on=False)
    (model,) = explorer.widget.view["models"]
    assert model["metric"] == pytest.approx(float(value(without, intact)), abs=2e-4)
    assert model["intact_metric"] == pytest.approx(float(value(intact, intact)), abs=2e-4)
    other = HeadExplorer(two_layers, tokens=TOKENS)
    other.restore(explorer.link)
    assert other.widget.view["metric"] == name
    explorer.ask("the next token")
    assert explorer.widget.view["metric"].startswith("log p of the true next token")


def test_a_question_that_is_not_complete_gets_a_sentence(two_layers: Any) -> None:
    explorer = HeadExplorer(two_layers, tokens=TOKENS)
    for kind, words in (
        ("a token", "1 2"), ("a difference", "1"), ("the loss on a span", "4 2"),
        ("the loss on a span", "0 2"), ("the loss on a span", f"2 {POSITIONS}"),
        ("the loss on a span", "two"),
    ):  # fmt: skip
        with refuses("bad-question"):
            explorer.ask(kind, words)
    with refuses("no-such-token"):
        explorer.ask("a token", str(VOCABULARY))
    with refuses("not-one-of"):
        explorer.ask("nothing")
    with refuses("link-to-unknown-tokens"):
        explorer.restore(f"example=1&ask=token.{VOCABULARY}")
    explorer.ask("the loss on a span", "2 4")
    explorer.next_example()  # where these positions mean something else
    assert explorer.state.question is None


def test_a_metric_of_another_shape_gets_a_sentence(two_layers: Any) -> None:
    with refuses("metric-wrong-shape"):
        HeadExplorer(two_layers, tokens=TOKENS, metric=lambda logits, tokens: logits)
    endless = HeadExplorer(two_layers, tokens=TOKENS, metric=lambda logits, _: float("inf"))
    assert endless.widget.view["models"][0]["metric"] is None
    json.dumps(endless.widget.view, allow_nan=False)


def test_a_block_in_the_second_layer_stands_beside_the_original(two_layers: Any) -> None:
    block = GatedAttention.from_attention(two_layers.blocks[1].attn, 2, seed=3)
    session = Session(splice(two_layers, 1, block), tokens=TOKENS)
    assert list(session.benches) == ["original", "gated"]
    assert session.start.layer == 1  # where the block is
    found = session.read(session.start)
    assert found["original"].gates is None
    assert found["gated"].gates is not None
    assert found["gated"].gates.shape == (2 * HEADS, POSITIONS, POSITIONS)
    below = session.read(session.with_layer(session.start, 0))
    assert below["gated"].gates is None
    np.testing.assert_array_equal(below["gated"].attention, below["original"].attention)


@pytest.mark.parametrize(
    "made",
    [induction_model, marked_relay, wide_pairs, conditional_heads, coherent_head, two_readers],
)
def test_toys_of_other_tasks(made: Callable[..., Any]) -> None:
    truth = made()
    explorer = HeadExplorer(truth.model, truth.task)
    task = truth.task
    for example in (0, 5):
        explorer.show_example(example)
        expected = explorer.session.expected(explorer.state)
        assert expected is not None
        answer = explorer.widget.view["models"][0]["answer"]
        assert answer["expected"] == task.token_names[expected]
        assert answer["right"] is True
    assert explorer.widget.view["metric"].startswith("logit of ")
    accuracy = explorer.readings["model"].accuracy
    assert set(accuracy) == set(task.cases)
    assert min(accuracy.values()) > 0.95
    for head in range(explorer.session.benches["model"].counts[-1]):
        explorer.set_head((truth.model.cfg.n_layers - 1, head), on=False)
    assert max(explorer.readings["model"].accuracy.values()) < 0.95


@pytest.fixture(scope="module")
def austen() -> HeadExplorer:
    return HeadExplorer(load("austen-1l"))


def test_a_language_model(austen: HeadExplorer) -> None:
    view = austen.widget.view
    assert view["is_text"]
    assert len(view["tokens"]) == austen.state.position + 2 == 64
    asked = austen.session.asked(austen.state)
    assert asked.token == austen.state.tokens[-1]
    assert view["columns"][0] == austen._viewer.shown(asked.token)
    (model,) = view["models"]
    assert model["accuracy"] == []
    chances = [now for _, now, _ in model["likely"]]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] == model["answer"]["probability"]
    best = int(austen.readings["model"].writes[3].argmax())
    assert model["heads"][3]["raises"][0] == austen._viewer.shown(best)


def test_typed_text(austen: HeadExplorer) -> None:
    text = "It is a truth\nuniversally <script>alert(1)</script>"
    view = ask(austen, "tokens", value=text)
    task = austen.session.task
    assert austen.state.tokens == (task.bos, *task.encode(text))
    assert view["box"] == text
    assert "⏎" in "".join(view["tokens"])
    assert "·is" in view["tokens"]
    assert "There is no text" in ask(austen, "tokens", value="")["message"]
    assert "the model reads at most 64" in ask(austen, "tokens", value="a " * 99)["message"]
    assert austen.state.tokens == (task.bos, *task.encode(text))
    view = ask(austen, "question", kind="a difference", value="·truth be")
    tokens = [*task.encode(" truth")[:1], *task.encode("be")[:1]]
    asked = austen.session.asked(austen.state)
    assert asked.tokens == tokens
    assert view["words"] == " ".join(map(austen._viewer.shown, tokens))
    assert view["columns"][:2] == view["words"].split(" ")
    ask(austen, "question", kind="the next token", value="")
    link = austen.link
    austen.next_example()
    austen.restore(link)
    assert austen.widget.view["box"] == text
    opened = ask(austen, "open", model="model", head=3)["opened"]
    assert len({c["example"] for c in opened["contexts"]}) == 5
    austen.set_method("mean")
    assert austen.snapshot().layout.annotations
