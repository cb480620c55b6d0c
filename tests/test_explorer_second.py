"""Patching in the explorer: every share is what hooks give, and what cannot be shared is said."""

import json
from typing import Any

import pytest
import torch
from refusals import refuses, says
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from gated_interp.analysis.ablation import without_heads
from gated_interp.explorer import HeadExplorer, second
from gated_interp.models.analytic import manual_model
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice

HEADS, LAYERS, VOCABULARY, POSITIONS = 3, 2, 53, 7
TOKENS = torch.randint(VOCABULARY, (11, POSITIONS), generator=torch.Generator().manual_seed(2))
FIRST, SECOND = TOKENS[:1], TOKENS[1:2]
WORDS = " ".join(map(str, SECOND[0].tolist()))
AT = 4
Hooks = list[tuple[str, Any]]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    """Two layers with LayerNorm and MLPs; the second layer's heads are gated."""
    shape = HookedTransformerConfig(
        n_layers=LAYERS, n_heads=HEADS, d_model=10, d_head=5, d_mlp=13, act_fn="relu",
        n_ctx=POSITIONS, d_vocab=VOCABULARY, normalization_type="LN", device="cpu", seed=None,
    )  # fmt: skip
    made = HookedTransformer(shape)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=source))
    block = GatedAttention.from_attention(made.blocks[1].attn, 2, seed=3, gate_bias_init=0.4)
    return splice(made, 1, block)


@pytest.fixture
def explorer(model: HookedTransformer) -> HeadExplorer:
    made = HeadExplorer(model, tokens=TOKENS)
    made.set_position(AT)
    made.set_second(WORDS)
    return made


def ask(explorer: HeadExplorer, do: str, **what: object) -> dict[str, Any]:
    explorer.widget._handle_custom_msg({"do": do, **what}, [])
    return dict(explorer.widget.view)


def put(value: Tensor, head: int | None, axis: int = 2) -> Any:
    """A hook that puts one head's part of ``value``, or all of it, in."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        if head is None:
            return value
        whole = activation.clone()
        whole.select(axis, head).copy_(value.select(axis, head))
        return whole

    return hook


def run(model: HookedTransformer, hooks: Hooks) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.run_with_hooks(FIRST, fwd_hooks=hooks)
    return logits[0]


def answer(logits: Tensor) -> float:
    """What the explorer asks by itself."""
    return float(logits[AT].log_softmax(-1)[FIRST[0, AT + 1]])


def share(model: HookedTransformer, hooks: Hooks, what: Any = answer) -> float:
    with torch.no_grad():
        first, second = (what(model(tokens)[0]) for tokens in (FIRST, SECOND))
    return float((what(run(model, hooks)) - first) / (second - first))


def test_head_by_head_is_what_hooks_give(model: HookedTransformer, explorer: HeadExplorer) -> None:
    _, cache = model.run_with_cache(SECOND)
    table = explorer.shares()
    assert list(table.columns) == ["layer", "head", "share"]
    assert len(table) == HEADS + 2 * HEADS
    for layer, head, found in table.itertuples(index=False):
        name = f"blocks.{layer}.attn.hook_z"
        wanted = share(model, [(name, put(cache[name], head))])
        assert found == pytest.approx(wanted, abs=1e-4)
    assert table["share"].abs().max() > 0.05  # else nothing was compared
    shown = explorer.widget.view["second"]["models"]
    assert [m["name"] for m in shown] == ["original", "gated"]
    flat = [x for row in shown[1]["shares"] for x in row]
    assert flat == pytest.approx(table["share"].tolist(), abs=1e-4)
    json.dumps(explorer.widget.view, allow_nan=False)


def test_the_question_is_the_one_that_is_chosen(
    model: HookedTransformer, explorer: HeadExplorer
) -> None:
    name = "blocks.0.attn.hook_z"
    _, cache = model.run_with_cache(SECOND)
    hooks = [(name, put(cache[name], 1))]
    before = model(FIRST)[0].log_softmax(-1).detach()
    row = FIRST[0]

    def kl(logits: Tensor) -> Tensor:
        at = logits[AT].log_softmax(-1)
        return (before[AT].exp() * (before[AT] - at)).sum()

    for words, what in (
        (("a difference", "5 9"), lambda logits: logits[AT, 5] - logits[AT, 9]),
        (("KL", ""), kl),
        (  # also the second prompt is asked for the tokens of the first
            ("the loss on a span", "2 4"),
            lambda logits: -logits.log_softmax(-1)[[1, 2, 3], row[2:5]].mean(),
        ),
    ):
        explorer.ask(*words)
        found = explorer.shares().query("layer == 0 and head == 1")["share"].item()
        assert found == pytest.approx(share(model, hooks, what), abs=1e-4)


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_heads_that_are_off_are_off_in_both_runs(
    model: HookedTransformer, explorer: HeadExplorer, method: str
) -> None:
    off = [(0, 0), (1, 2)]
    explorer.set_method(method)  # type: ignore[arg-type]
    for head in off:
        explorer.set_head(head, on=False)
    table = explorer.shares()
    bench = explorer.session.benches["gated"]
    drawn = {"reference_tokens": bench.reference, "seed": bench.resample_seed}
    with without_heads(model, off, method, **drawn):  # type: ignore[arg-type]
        _, cache = model.run_with_cache(SECOND)
        for layer, head, found in table.itertuples(index=False):
            name = f"blocks.{layer}.attn.hook_z"
            wanted = share(model, [(name, put(cache[name], head))])
            assert found == pytest.approx(wanted, abs=2e-4)
    # A head that is off writes the same in both runs.
    assert table.query("layer == 1 and head == 2")["share"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("receiver", [(None, ""), *((4, part) for part in (
    "query", "key", "value", "gate score"))])  # fmt: skip
def test_path_by_path_is_what_hooks_give(
    model: HookedTransformer, explorer: HeadExplorer, receiver: tuple[int | None, str]
) -> None:
    head, part = receiver
    explorer.set_head((0, 2), on=False)
    explorer.set_receiver(None if head is None else (1, head), part)
    paths = explorer.widget.view["second"]["paths"]
    table = explorer.paths()
    assert list(table.columns) == ["layer", "head", "share"]
    flat = [x for row in paths["shares"] for x in row]
    assert table["share"].tolist() == pytest.approx(flat, abs=1e-4)
    name, axis = "blocks.1.hook_resid_post", 2
    if head is not None:
        name = f"blocks.1.attn.hook_{part.replace(' ', '_')}" + ("s" if " " in part else "")
        name = name if " " in part else name.replace(part, part[0])
        axis = 1 if " " in part else 2
    assert len(paths["shares"]) == (1 if head is not None else 2)
    with without_heads(model, [(0, 2)]):
        _, clean = model.run_with_cache(FIRST)
        _, source = model.run_with_cache(SECOND)
        frozen = [n for n in clean if n.endswith(("attn.hook_z", "hook_mlp_out"))]
        for layer, row in enumerate(paths["shares"]):
            for sender, found in enumerate(row):
                z, arrived = f"blocks.{layer}.attn.hook_z", []
                kept = {n: clean[n].clone() for n in frozen}
                kept[z][:, :, sender] = source[z][:, :, sender]
                hooks = [(n, put(value, None)) for n, value in kept.items()]
                run(model, [*hooks, (name, lambda x, hook, seen=arrived: seen.append(x.clone()))])
                wanted = share(model, [(name, put(arrived[0], head, axis))])
                assert found == pytest.approx(wanted, abs=2e-4)


def test_the_manual_model_by_hand() -> None:
    # Trigram 1 is held by head 0 alone, trigram 3 by both heads together.
    truth = manual_model(2, 3)
    explorer = HeadExplorer(truth.model, truth.task)
    for trigram, wanted in ((1, [1, 0]), (2, [0, 1])):
        explorer.type_tokens(f"BOS A B{trigram}")
        explorer.set_second(f"BOS C1 B{trigram}")
        assert explorer.shares()["share"].tolist() == pytest.approx(wanted)
    differ = explorer.widget.view["second"]["differ"]
    assert differ == [[1, "A", "C1"]]
    # A layer of heads has only direct paths to the logits.
    explorer.set_receiver(None)
    assert explorer.widget.view["second"]["paths"]["shares"] == [[0, 1]]
    assert explorer.paths()["share"].tolist() == pytest.approx([0, 1])
    with refuses("no-such-receiver", receiver="L0H1"):
        explorer.set_receiver("L0H1")


def test_prompts_that_cannot_be_compared_get_a_sentence(explorer: HeadExplorer) -> None:
    before = explorer.state
    explorer.set_second("1 2 3")
    second = explorer.widget.view["second"]
    assert says("prompts-differ-in-length", second["refused"])
    assert " 7 " in second["refused"]
    assert " 3," in second["refused"]
    assert second["models"] == second["receivers"] == []
    with refuses("prompts-differ-in-length", first=POSITIONS, second=3):
        explorer.shares()
    # The same prompt answers alike: no share is made, and the page says so for each model.
    explorer.set_second(" ".join(map(str, FIRST[0].tolist())))
    for model in explorer.widget.view["second"]["models"]:
        assert says("prompts-answer-alike", model["refused"])
        assert {x for row in model["shares"] for x in row} == {None}
    with refuses("prompts-answer-alike"):
        explorer.shares()
    with refuses("no-such-token"):
        explorer.set_second("1 2 x")
    explorer.set_second("")
    assert explorer.widget.view["second"] is None
    for what in (explorer.shares, explorer.paths):
        with refuses("no-second-prompt" if what == explorer.shares else "no-receiver"):
            what()
    explorer.set_receiver(None)
    with refuses("no-second-prompt"):
        explorer.paths()
    ask(explorer, "into", value="", part="")
    assert says("no-second-prompt", ask(explorer, "into", value="gated.logits", part="")["message"])
    explorer.set_second(WORDS)
    assert explorer.state == before
    # A metric of one's own may be small: it counts beside its own size.
    for low, high in ((1e-6, 1.0), (1.0, 1e-6)):
        weights = torch.linspace(low, high, VOCABULARY) * 1e-5
        small = HeadExplorer(
            explorer.session.benches["original"].model, tokens=TOKENS,
            metric=lambda logits, tokens, w=weights: (logits.softmax(-1) * w).sum(-1),
        )  # fmt: skip
        small.set_second(WORDS)
        assert not small.widget.view["second"]["models"][0]["refused"]


def test_nearly_the_same_answers_are_said_to_differ_a_little(explorer: HeadExplorer) -> None:
    model = explorer.session.benches["original"].model
    close = HeadExplorer(
        model, tokens=TOKENS,
        metric=lambda logits, tokens: 1 + 1e-4 * logits.log_softmax(-1)[..., 3],
    )  # fmt: skip
    close.set_position(AT)
    close.set_second(WORDS)
    with refuses("prompts-answer-alike", limit="0.1% of the larger") as refused:
        close.shares()
    assert 1e-6 < refused.value.fields["difference"] < 1e-3
    assert "less than 0.1% of the larger" in str(refused.value)
    # A difference that counts is said beside the shares, however small it is.
    shown = explorer.widget.view["second"]["models"][1]
    assert float(shown["difference"]) == pytest.approx(shown["second"] - shown["first"], rel=0.05)


def test_another_first_prompt_drops_the_second(explorer: HeadExplorer) -> None:
    explorer.set_receiver(None)
    before = explorer.state
    explorer.type_tokens(" ".join(map(str, FIRST[0].tolist())))  # the same text
    assert explorer.state.other == before.other
    explorer.show_example(1)
    assert explorer.state.other is None
    assert explorer.state.receiver is None
    explorer.set_second(WORDS)
    explorer.type_tokens("1 2 3 4 5 6 7")
    assert explorer.widget.view["second"] is None


def test_a_link_names_the_tokens_of_the_first_prompt(
    model: HookedTransformer, explorer: HeadExplorer
) -> None:
    other = HeadExplorer(model, tokens=TOKENS.flip(0))  # example 1 is another text
    other.restore(explorer.link)
    assert other.state.tokens == explorer.state.tokens
    assert other.state.example is None
    assert other.shares()["share"].tolist() == pytest.approx(explorer.shares()["share"].tolist())


def test_a_link_keeps_the_second_prompt(model: HookedTransformer, explorer: HeadExplorer) -> None:
    for head, part in ((None, "query"), ("L1H4", "gate score"), ("L1H0", "key")):
        explorer.set_receiver(head, part)
        other = HeadExplorer(model, tokens=TOKENS)
        other.restore(explorer.link)
        assert other.state == explorer.state
        assert other.widget.view["second"] == explorer.widget.view["second"]
    # From a gate's score to a head without a gate: its query is read.
    explorer.set_receiver("L1H4", "gate score")
    view = ask(explorer, "into", value="original.L1H2", part="gate score")
    assert view["answers"] == "into"
    assert view["second"]["paths"]["part"] == "query"
    explorer.set_receiver("L1H1", "value", "original")
    view = ask(explorer, "into", value="original.L1H2", part="key")
    assert view["second"]["paths"]["value"] == "original.L1H2"
    assert view["second"]["paths"]["parts"] == ["query", "key", "value"]
    link = explorer.link
    for bad in (
        "other=99", "other=1.x", "other=" + "0." * 20 + "0", "into=gated.L9H9.query",
        "into=toy.logits", "into=gated.L1H0.magic", "into=original.L1H0.gate", "into=gated",
        "into=gated.L0H0.query",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\.$"):
            explorer.restore(f"example=1&{bad}")
    assert explorer.link == link
    assert ask(explorer, "into", value="", part="")["second"]["paths"] is None


def test_a_large_model_is_measured_layer_by_layer(
    explorer: HeadExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explorer.widget.view["second"]["models"]
    explorer.set_receiver(None)
    paths = explorer.widget.view["second"]["paths"]
    monkeypatch.setattr("gated_interp.explorer.second.AT_ONCE", 1)
    fresh = HeadExplorer(explorer.session.benches["gated"].model, tokens=TOKENS)
    fresh.restore(explorer.link)
    left = []
    for _ in range(7):
        second = fresh.widget.view["second"]
        left.append(sum(m["left"] for m in second["models"]) + second["paths"]["left"])
        ask(fresh, "measure second")
    assert left == [6, 5, 4, 3, 2, 1, 0]
    assert fresh.widget.view["second"]["models"] == whole
    assert fresh.widget.view["second"]["paths"] == paths


def test_all_layers_are_measured_where_some_are_known(explorer: HeadExplorer) -> None:
    def found(unknown: list[int], most: int) -> list[list[float] | None]:
        return second._by_layer(explorer.session, 4, unknown, most, lambda at: [float(at)])

    whole = [[0.0], [1.0], [2.0], [3.0]]
    for unknown in ([0, 1, 2, 3], [0, 1, 2], [1], []):
        assert found(unknown, 4) == whole
    assert found([0, 1, 2], 1) == [None, None, [2.0], [3.0]]
    assert found([0, 2], 0) == [None, [1.0], None, [3.0]]
