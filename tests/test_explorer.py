"""The explorer without a browser: its numbers are the hooks', its view says what its state is."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from refusals import refuses, says

from gated_interp.analysis.ablation import ablate, without_heads
from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer import HeadExplorer
from gated_interp.explorer.examples import EXAMPLES, armed_positions
from gated_interp.explorer.session import Session
from gated_interp.explorer.vocabulary import NamedTokens
from gated_interp.models.analytic import manual_model
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.replacements.splice import unsplice
from gated_interp.replacements.standalone import standalone
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(n_trigrams=3)
METHODS = ("zero", "mean", "resample", "optimal")


@pytest.fixture
def explorer(spliced: HookedTransformer) -> HeadExplorer:
    return HeadExplorer(spliced, TASK)


def test_typed_tokens() -> None:
    parse = NamedTokens(TASK.token_names).parse
    assert parse("BOS A c3  b2", 11) == (7, 0, 6, 2)
    assert parse("7,0, 6,B2", 11) == (7, 0, 6, 2)
    with refuses("no-such-token", token="B4"):
        parse("BOS B4", 11)
    with refuses("no-such-token", token="8", last=7):
        parse("BOS 8", 11)
    with refuses("no-such-token", token="-1"):
        parse("-1", 11)
    with refuses("no-tokens"):
        parse(" ,, ", 11)
    with refuses("too-many-tokens", n=12, most=11):
        parse("A " * 12, 11)
    with refuses("no-such-token", token="x", last=1):
        NamedTokens(["0", "1"]).parse("x", 11)


def test_an_armed_b_is_where_the_task_says_so() -> None:
    batch = TASK.sample(300, seed=0)
    for row, tokens in enumerate(batch.tokens.tolist()):
        scored = batch.destination_pos[batch.example == row].tolist()
        cut = [10] if row in batch.truncated.tolist() else []
        assert armed_positions(TASK, tokens) == scored + cut


@pytest.mark.parametrize("method", METHODS)
def test_a_reading_is_what_the_hooks_say(spliced: HookedTransformer, method: str) -> None:
    session = Session(spliced, TASK)
    state = session.with_method(session.at_tokens(session.start, "BOS A C2 B1 C1"), method)
    state = session.with_head(session.with_head(state, 4, False), 1, False)
    reading = session.read(state)["gated"]
    bench = session.benches["gated"]
    tokens = torch.tensor([state.tokens])
    assert state.position == 3
    drawn = {"reference_tokens": bench.reference, "seed": bench.resample_seed}
    with torch.no_grad(), without_heads(spliced, [(0, 1), (0, 4)], method, **drawn):
        logits, cache = spliced.run_with_cache(tokens)
    result = torch.einsum(
        "phd,hdv->phv", cache["blocks.0.attn.hook_z"][0], spliced.blocks[0].attn.W_O
    )
    assert_close(reading.logits, logits[0, 3], dtype=torch.float32)
    assert_close(reading.writes, result[3], dtype=torch.float32)
    assert_close(reading.attention, cache["blocks.0.attn.hook_pattern"][0], dtype=torch.float32)
    gate = cache["blocks.0.attn.hook_gate"][0].tril()
    assert reading.gates is not None
    assert_close(reading.gates, gate, dtype=torch.float32)
    # The parts add up to the whole; past the heads comes the token itself.
    assert_close(reading.writes.sum(0) + reading.direct, reading.logits, dtype=torch.float32)
    assert_close(reading.direct, np.eye(8)[1], dtype=torch.float32)
    assert reading.prediction == int(logits[0, 3].argmax())
    assert_close(reading.metric, logits[0, 3, 4], dtype=torch.float32)  # B1's answer is C1
    assert_close(reading.intact_metric, spliced(tokens)[0, 3, 4], dtype=torch.float32)
    assert_close(reading.probability, logits[0, 3].softmax(-1).max(), dtype=torch.float32)
    assert reading.intact_prediction == int(spliced(tokens)[0, 3].argmax())


@pytest.mark.parametrize("method", METHODS)
def test_the_accuracy_is_that_of_ablate(spliced: HookedTransformer, method: str) -> None:
    original = unsplice(spliced)
    session = Session(original, TASK)
    bench = session.benches["model"]
    table = ablate(
        original,
        bench.probes,
        [(0, 1)],
        method,
        reference_tokens=bench.reference,
        seed=bench.resample_seed,
    )
    rows = table.query("kind == 'head' and metric == 'accuracy'").set_index("trigram")
    state = session.with_method(session.with_head(session.start, 1, False), method)
    reading = session.read(state)["model"]
    for b in TASK.trigrams:
        assert reading.accuracy[b] == pytest.approx(rows.loc[b, "ablated"])
        assert reading.intact_accuracy[b] == pytest.approx(rows.loc[b, "intact"])
    assert set(reading.intact_accuracy.values()) == {1.0}


def test_the_manual_model_by_hand() -> None:
    # Its trigrams are held by the sets {0}, {1} and {0, 1}.
    truth = manual_model(2, 3)
    explorer = HeadExplorer(truth.model, truth.task)
    explorer.set_head(0, on=False)
    assert explorer.readings["model"].accuracy == {1: 0.0, 2: 1.0, 3: 0.0}
    explorer.set_head(0, on=True)
    explorer.set_head(1, on=False)
    assert explorer.readings["model"].accuracy == {1: 1.0, 2: 0.0, 3: 0.0}
    explorer.all_on()
    assert explorer.readings["model"].accuracy == {1: 1.0, 2: 1.0, 3: 1.0}
    # Head 1 alone answers trigram 3's B with C2, as the sets say.
    explorer.type_tokens("BOS A B3")
    explorer.set_head(0, on=False)
    assert explorer.prediction() == "C2"
    assert explorer.readings["model"].writes[0].tolist() == [0] * 8
    assert explorer.readings["model"].writes[1].tolist() == [0, 0, 0, 0, -2, 2, 1, 0]


def test_no_hook_and_no_thread_setting_survives(spliced: HookedTransformer) -> None:
    threads, draws = torch.get_num_threads(), torch.random.get_rng_state()
    explorer = HeadExplorer(spliced, TASK)
    for method in METHODS:
        explorer.set_method(method)  # type: ignore[arg-type]
        explorer.set_head(0, on=False)
    for bench in explorer.session.benches.values():
        for point in bench.model.hook_dict.values():
            assert not point._forward_hooks
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), draws)


def test_two_models_share_the_example_and_nothing_else(explorer: HeadExplorer) -> None:
    assert list(explorer.readings) == ["original", "gated"]
    before = explorer.readings["original"]
    explorer.set_head(2, on=False)
    assert explorer.state.off == {"original": frozenset(), "gated": frozenset({(0, 2)})}
    np.testing.assert_array_equal(explorer.readings["original"].logits, before.logits)
    explorer.set_head(1, on=False, model="original")
    assert explorer.state.off == {"original": frozenset({(0, 1)}), "gated": frozenset({(0, 2)})}
    explorer.all_on("gated")
    assert explorer.state.off == {"original": frozenset({(0, 1)}), "gated": frozenset()}


def test_a_block_without_an_original_stands_alone(spliced: HookedTransformer) -> None:
    block = spliced.blocks[0].attn
    assert list(HeadExplorer(standalone(block, TASK), TASK).readings) == ["gated"]
    beside = HeadExplorer(standalone(block, TASK), TASK, original=unsplice(spliced))
    assert list(beside.readings) == ["original", "gated"]


def test_stepping_goes_round(explorer: HeadExplorer) -> None:
    first = explorer.state
    explorer.previous_example()
    assert explorer.state.example == EXAMPLES - 1
    explorer.next_example()
    assert explorer.state == first
    explorer.next_example()
    assert explorer.state.example == 1
    assert explorer.state.tokens != first.tokens
    explorer.type_tokens("BOS A")
    assert (explorer.state.example, explorer.state.position) == (None, 1)
    explorer.next_example()
    assert explorer.state == first
    # Every example is read at the B of its one trigram.
    examples = explorer.session.examples
    for row in (0, 1, 57):
        explorer.show_example(row)
        assert explorer.state.tokens == examples.tokens[row]
        assert explorer.state.position == examples.position[row]
        b = explorer.state.tokens[explorer.state.position]
        assert explorer.session.expected(explorer.state) == b + 3


def test_the_same_seed_gives_the_same_examples(spliced: HookedTransformer) -> None:
    one, two, other = (Session(spliced, TASK, seed=s) for s in (4, 4, 5))
    assert one.examples.tokens == two.examples.tokens
    assert one.examples.tokens != other.examples.tokens


def ask(explorer: HeadExplorer, do: str, **what: object) -> dict[str, Any]:
    """Send what a button sends; what is shown then."""
    explorer.widget._handle_custom_msg({"do": do, **what}, [])
    return dict(explorer.widget.view)


def test_buttons_and_methods_are_two_ways_to_one_state(explorer: HeadExplorer) -> None:
    view = ask(explorer, "head", model="gated", head=3, on=False)
    assert explorer.state.off["gated"] == {(0, 3)}
    assert [h["on"] for h in view["models"][1]["heads"]] == [True, True, True, False, True]
    explorer.set_head(3, on=True)
    assert all(h["on"] for h in explorer.widget.view["models"][1]["heads"])
    assert ask(explorer, "method", value="mean")["method"] == explorer.state.method == "mean"
    assert ask(explorer, "step", value=1)["example"] == "example 2 of 100"
    assert explorer.state.example == 1
    ask(explorer, "position", value=0)
    assert explorer.state.position == 0
    view = ask(explorer, "tokens", value="bos a c1 b2")
    assert explorer.state.tokens == (7, 0, 4, 2)
    assert (view["box"], view["example"]) == ("BOS A C1 B2", "typed")
    assert view["tokens"] == ["BOS", "A", "C1", "B2"]
    assert view["position"] == explorer.state.position == 3
    assert ask(explorer, "step", value=-1)["example"] == "example 100 of 100"
    ask(explorer, "only", model="gated", head=2)
    assert explorer.state.off["gated"] == {(0, h) for h in (0, 1, 3, 4)}
    explorer.all_on()
    explorer.only_head("L0H2")
    assert explorer.state.off["gated"] == {(0, h) for h in (0, 1, 3, 4)}
    assert ask(explorer, "all", model="gated")["models"][1]["any_off"] is False


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("BOS D1", "no-such-token"),
        ("   ", "no-tokens"),
        ("A " * 12, "too-many-tokens"),
        ("<script>alert(1)</script>", "no-such-token"),
        ("", "no-tokens"),
        ("BOS A B1 ²", "no-such-token"),  # a digit to Python, no token
        ("BOS 01", "no-such-token"),
        ("BOS\x00A", "no-such-token"),
        ("BOS A 😀", "no-such-token"),
        ("X" * 100_000, "no-such-token"),
        ("A " * 100_000, "too-many-tokens"),
    ],
)
def test_bad_input_leaves_the_last_good_state(
    explorer: HeadExplorer, words: str, code: str
) -> None:
    explorer.set_head(2, on=False)
    state, readings = explorer.state, explorer.readings
    view = ask(explorer, "tokens", value=words)
    assert says(code, explorer.message)
    assert view["message"] == explorer.message
    assert explorer.state == state
    assert explorer.readings is readings
    with refuses(code):
        explorer.type_tokens(words)
    assert explorer.state == state
    explorer.set_head(2, on=True)
    assert explorer.message == explorer.widget.view["message"] == ""


@pytest.mark.parametrize("bad", ["BOS D1", "", "A " * 12])
def test_what_is_shown_stays_until_the_input_is_mended(explorer: HeadExplorer, bad: str) -> None:
    told = ("message", "answers", "drawn")

    def shown() -> tuple[object, ...]:
        rest = {k: v for k, v in explorer.widget.view.items() if k not in told}
        return rest, explorer.widget.patterns, explorer.snapshot().to_json()

    ask(explorer, "tokens", value="BOS A C2 B1")
    explorer.set_head(1, on=False)
    before = shown()
    assert ask(explorer, "tokens", value=bad)["message"]
    assert shown() == before
    # Mended to what it was: the message goes, all else stays.
    assert ask(explorer, "tokens", value="BOS A C2 B1")["message"] == ""
    assert shown() == before
    # Or left alone: whatever is done next starts from the last good state.
    ask(explorer, "tokens", value=bad)
    view = ask(explorer, "head", model="gated", head=3, on=False)
    assert view["message"] == explorer.message == ""
    assert explorer.state.off["gated"] == {(0, 1), (0, 3)}
    assert shown() != before


def test_a_long_message_is_short(explorer: HeadExplorer) -> None:
    assert len(ask(explorer, "tokens", value="X" * 100_000)["message"]) < 120


@pytest.mark.parametrize(
    "message",
    [
        {}, None, [], {"do": "fly"}, {"do": ["head"]}, {"do": "head"},
        {"do": "head", "model": "gated", "head": "x", "on": True},
        {"do": "head", "model": ["gated"], "head": 0, "on": True},
        {"do": "head", "model": "gated", "head": None, "on": True},
        {"do": "position", "value": True}, {"do": "position", "value": 99},
        {"do": "layer", "value": 1}, {"do": "pattern", "value": "secret"},
        {"do": "place", "example": "x", "position": 1}, {"do": "open", "head": 9, "model": "gated"},
        {"do": "link", "value": 3},
    ],
)  # fmt: skip
def test_nothing_that_a_browser_says_is_trusted(explorer: HeadExplorer, message: object) -> None:
    state = explorer.state
    explorer.widget._handle_custom_msg(message, [])
    assert explorer.message.endswith(".")
    assert explorer.state == state


def test_what_is_not_there_gets_a_sentence(explorer: HeadExplorer) -> None:
    state = explorer.state
    for act, code in (
        (lambda: explorer.set_head(5, on=False), "no-such-head-of-model"),
        (lambda: explorer.set_head(-1, on=False), "no-such-head-of-model"),
        (lambda: explorer.set_head(2, on=False, model="original"), "no-such-head-of-model"),
        (lambda: explorer.set_head(0, on=False, model="toy"), "not-one-of"),
        (lambda: explorer.set_position(11), "no-such-position"),
        (lambda: explorer.prediction("toy"), "not-one-of"),
    ):
        with refuses(code):
            act()
    assert explorer.state == state


def test_models_it_cannot_read_are_refused(spliced: HookedTransformer) -> None:
    with refuses("vocabulary-mismatch", d_vocab=8):
        HeadExplorer(spliced, SkipTrigramTask(n_trigrams=4))
    with refuses("task-longer-than-context", n=12, n_ctx=11):
        HeadExplorer(spliced, SkipTrigramTask(n_trigrams=3, n_positions=12))
    other = build_toy(ToyConfig(n_trigrams=4, n_heads=2))
    with refuses("original-does-not-fit", layers=1, tokens=10, model_layers=1):
        HeadExplorer(spliced, TASK, original=other)


def unpacked(explorer: HeadExplorer) -> list[np.ndarray]:
    """The patterns of every model that has them, as the browser reads them."""
    view, n = explorer.widget.view, len(explorer.state.tokens)
    values = np.frombuffer(explorer.widget.patterns, "<u2") * (view["scale"] / 65535)
    counts = [len(m["heads"]) for m in view["models"] if m["has_pattern"]]
    assert values.size == sum(counts) * n * n
    return [p.reshape(-1, n, n) for p in np.split(values, np.cumsum(counts)[:-1] * n * n)]


def test_the_view_shows_the_readings(explorer: HeadExplorer) -> None:
    explorer.set_head(1, on=False)
    reading = explorer.readings["gated"]
    gates, attention = reading.gates, reading.attention
    assert gates is not None
    assert attention is not None
    original, gated = unpacked(explorer)  # unless something else is chosen, what the gates let by
    np.testing.assert_allclose(gated, gates * attention, atol=1e-4)
    np.testing.assert_allclose(original, explorer.readings["original"].attention, atol=1e-4)
    shows = [m["shows"] for m in explorer.widget.view["models"]]
    assert "no gates" in shows[0]
    assert shows[1].startswith("attention × gate")
    explorer.set_pattern("attention")
    np.testing.assert_allclose(unpacked(explorer)[1], attention, atol=1e-4)
    explorer.set_pattern("gate")
    (only,) = unpacked(explorer)  # ordinary attention has none
    np.testing.assert_allclose(only, gates, atol=1e-4)
    explorer.set_pattern("value-weighted")
    block = explorer.session.benches["gated"].model.blocks[0].attn
    _, cache = explorer.session.benches["gated"].model.run_with_cache(
        torch.tensor([explorer.state.tokens])
    )
    value = (cache["blocks.0.attn.hook_v"][0][:, :, None] @ block.W_O)[:, :, 0].norm(dim=-1)
    np.testing.assert_allclose(
        unpacked(explorer)[1], gates * attention * value.detach().numpy().T[:, None], atol=1e-3
    )
    model = explorer.widget.view["models"][1]
    rows = [h["writes"] for h in model["heads"]]
    np.testing.assert_allclose(rows, reading.writes, atol=6e-4)
    np.testing.assert_allclose(model["rest"], reading.direct, atol=6e-4)
    assert [row[1:] for row in model["accuracy"]] == [
        [reading.accuracy[b], reading.intact_accuracy[b]] for b in (1, 2, 3)
    ]
    json.dumps(explorer.widget.view, allow_nan=False)


def test_an_effect_is_what_the_switch_does(explorer: HeadExplorer) -> None:
    for method in ("zero", "mean"):
        explorer.set_method(method)  # type: ignore[arg-type]
        shown = [h["effect"] for h in explorer.widget.view["models"][1]["heads"]]
        found = []
        for head in range(5):
            explorer.set_head(head, on=False)
            reading = explorer.readings["gated"]
            found.append(reading.metric - reading.intact_metric)
            explorer.set_head(head, on=True)
        np.testing.assert_allclose(shown, found, atol=1e-3)
    order = ask(explorer, "sort", value=True)["models"][1]["order"]
    assert order == sorted(range(5), key=lambda h: -abs(found[h]))


def test_a_link_restores_the_state(spliced: HookedTransformer, explorer: HeadExplorer) -> None:
    explorer.show_example(7)
    explorer.set_position(2)
    explorer.set_method("mean")
    explorer.set_head(3, on=False)
    explorer.set_head(0, on=False, model="original")
    explorer.set_pattern("attention × gate")
    ask(explorer, "sort", value=True)
    ask(explorer, "open", model="gated", head=2)
    other = HeadExplorer(spliced, TASK)
    other.restore(f"http://127.0.0.1:1/#{explorer.link}")
    assert other.state == explorer.state
    explorer.type_tokens("BOS A B3")
    other.restore(explorer.link)
    assert other.state == explorer.state
    for bad in (
        "", "nonsense", "a=b", "example=101", "example=0", "tokens=9", "tokens=", "tokens=0.x",
        "example=1&read=11", "example=1&layer=1", "example=1&off.gated=L0H9", "example=1&open=L0H1",
        "example=1&method=magic", "example=1&pattern=x", "tokens=" + "0." * 20 + "0",
    ):  # fmt: skip
        with pytest.raises(GatedInterpError):
            other.restore(bad)
    assert other.state == explorer.state


def test_where_a_head_writes_most(explorer: HeadExplorer) -> None:
    opened = ask(explorer, "open", model="gated", head=1)["opened"]
    assert (opened["name"], len(opened["contexts"])) == ("L0H1", 5)
    model = explorer.session.benches["gated"].model
    tokens = torch.tensor(explorer.session.examples.tokens)
    _, cache = model.run_with_cache(tokens)
    result = cache["blocks.0.attn.hook_z"][:, :, 1] @ model.blocks[0].attn.W_O[1]
    longest = result[:, 1:].norm(dim=-1).max(1).values.sort(descending=True).values
    shown = [c["length"] for c in opened["contexts"]]
    np.testing.assert_allclose(shown, longest[:5].detach(), atol=6e-4)
    place = opened["contexts"][2]
    ask(explorer, "place", example=place["example"], position=place["position"])
    assert (explorer.state.example, explorer.state.position) == (
        place["example"], place["position"],
    )  # fmt: skip
    assert place["at"] == TASK.token_names[explorer.state.tokens[explorer.state.position]]
    assert ask(explorer, "close")["opened"] is None


def test_a_switch_of_one_model_leaves_the_reading_of_the_other(explorer: HeadExplorer) -> None:
    before = explorer.readings["original"]
    explorer.set_head(1, on=False)
    assert explorer.readings["original"] is before


def test_it_displays_and_says_what_it_is(explorer: HeadExplorer) -> None:
    assert repr(explorer) == "HeadExplorer(original: 2 heads, gated: 5 heads)"
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == repr(explorer)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    explorer.type_tokens("BOS A B3")
    explorer.set_head(0, on=False, model="original")
    figure = explorer.snapshot()
    said = figure.layout.title.text.replace("<br>", " ")
    assert "original, without L0H0: after B3 predicts C2 (right: " in said
    maps = {trace.name: np.asarray(trace.z, float) for trace in figure.data}
    assert len(maps) == 3 * (2 + 5)
    for name, reading in explorer.readings.items():
        for h, write in enumerate(reading.writes):
            off = (0, h) in explorer.state.off[name]
            head = f"{name} L0H{h}{' off' if off else ''}"
            np.testing.assert_array_equal(maps[f"{head} writes"], write[None])
            assert np.isnan(maps[f"{head} attention"]).all() == off
            assert np.isnan(maps[f"{head} gate"]).all() == (name == "original")
    np.testing.assert_array_equal(maps["gated L0H3 gate"], explorer.readings["gated"].gates[3])


def test_states_are_frozen(explorer: HeadExplorer) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        explorer.state.position = 2  # type: ignore[misc]
