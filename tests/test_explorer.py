"""The explorer without a browser: its numbers are the hooks', its widgets say what its state is."""

import dataclasses

import numpy as np
import pytest
import torch
from closeness import assert_close

from gated_interp.analysis.ablation import ablate, ablated
from gated_interp.core.errors import GatedInterpError
from gated_interp.explorer import HeadExplorer
from gated_interp.explorer.examples import armed_positions, parse_tokens
from gated_interp.explorer.session import EXAMPLES, Session
from gated_interp.explorer.tiles import Tiles
from gated_interp.models.analytic import manual_model
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice, unsplice
from gated_interp.replacements.standalone import standalone
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(n_trigrams=3)
METHODS = ("zero", "mean", "resample", "optimal")


@pytest.fixture(scope="module")
def spliced() -> HookedTransformer:
    """The manual 2H3ST model with a random gated block of 5 heads spliced in."""
    toy = manual_model(2, 3).model
    block = GatedAttention.from_attention(toy.blocks[0].attn, 2.5, seed=3, gate_bias_init=0.4)
    return splice(toy, 0, block)


@pytest.fixture
def explorer(spliced: HookedTransformer) -> HeadExplorer:
    return HeadExplorer(spliced, TASK)


def test_typed_tokens() -> None:
    assert parse_tokens("BOS A c3  b2", TASK, 11) == (7, 0, 6, 2)
    assert parse_tokens("7,0, 6,B2", TASK, 11) == (7, 0, 6, 2)
    with pytest.raises(GatedInterpError, match="'B4' is not a token; write A, B1 to B3, C1 to C3"):
        parse_tokens("BOS B4", TASK, 11)
    with pytest.raises(GatedInterpError, match=r"'8' is not a token.* numbers from 0 to 7"):
        parse_tokens("BOS 8", TASK, 11)
    with pytest.raises(GatedInterpError, match="'-1' is not a token"):
        parse_tokens("-1", TASK, 11)
    with pytest.raises(GatedInterpError, match="there is no token"):
        parse_tokens(" ,, ", TASK, 11)
    with pytest.raises(GatedInterpError, match=r"12 tokens are too many; .* at most 11"):
        parse_tokens("A " * 12, TASK, 11)


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
    with torch.no_grad(), ablated(spliced, [(0, 1), (0, 4)], method, **drawn):
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
    assert_close(reading.probability, logits[0, 3].softmax(-1).max(), dtype=torch.float32)
    assert reading.intact_prediction == int(spliced(tokens)[0, 3].argmax())


@pytest.mark.parametrize("method", METHODS)
def test_the_accuracy_is_that_of_ablate(spliced: HookedTransformer, method: str) -> None:
    original = unsplice(spliced)
    session = Session(original, TASK)
    bench = session.benches["model"]
    table = ablate(
        original,
        bench.batch,
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
    assert explorer.state.off == {"original": frozenset(), "gated": frozenset({2})}
    np.testing.assert_array_equal(explorer.readings["original"].logits, before.logits)
    explorer.set_head(1, on=False, model="original")
    assert explorer.state.off == {"original": frozenset({1}), "gated": frozenset({2})}
    explorer.all_on("gated")
    assert explorer.state.off == {"original": frozenset({1}), "gated": frozenset()}


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
    batch = explorer.session.examples
    for row in (0, 1, 57):
        explorer.show_example(row)
        assert explorer.state.tokens == tuple(batch.tokens[row].tolist())
        assert explorer.state.position == int(batch.destination_pos[row])
        b = explorer.state.tokens[explorer.state.position]
        assert explorer.session.expected(explorer.state) == b + 3


def test_the_same_seed_gives_the_same_examples(spliced: HookedTransformer) -> None:
    one, two, other = (Session(spliced, TASK, seed=s) for s in (4, 4, 5))
    assert torch.equal(one.examples.tokens, two.examples.tokens)
    assert not torch.equal(one.examples.tokens, other.examples.tokens)


def test_widgets_and_methods_are_two_ways_to_one_state(explorer: HeadExplorer) -> None:
    explorer.switches["gated"][3].value = False
    assert explorer.state.off["gated"] == {3}
    explorer.set_head(3, on=True)
    assert explorer.switches["gated"][3].value is True
    explorer.method_box.value = "mean"
    assert explorer.state.method == "mean"
    explorer.next_button.click()
    assert explorer.state.example == 1
    assert "example 2 of 100" in explorer.counter.value
    explorer.position_buttons.index = 0
    assert explorer.state.position == 0
    explorer.tokens_box.value = "bos a c1 b2"
    assert explorer.state.tokens == (7, 0, 4, 2)
    assert explorer.tokens_box.value == "BOS A C1 B2"
    assert explorer.position_buttons.index == explorer.state.position == 3
    explorer.previous_button.click()
    assert explorer.state.example == EXAMPLES - 1
    names = [TASK.token_names[t] for t in explorer.state.tokens]
    shown = [label.strip("\u200b") for label in explorer.position_buttons.options]
    assert shown == names
    assert len(set(explorer.position_buttons.options)) == len(names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("BOS D1", "not a token"),
        ("   ", "there is no token"),
        ("A " * 12, "too many"),
        ("<script>alert(1)</script>", "not a token"),
        ("", "there is no token"),
        ("BOS A B1 ²", "not a token"),  # a digit to Python, no token
        ("BOS 01", "not a token"),
        ("BOS\x00A", "not a token"),
        ("BOS A 😀", "not a token"),
        ("X" * 100_000, "XXXXXXXXXXXXXXXXXXXX…"),
        ("A " * 100_000, "100000 tokens are too many; the model reads at most 11"),
    ],
)
def test_bad_input_leaves_the_last_good_state(
    explorer: HeadExplorer, words: str, said: str
) -> None:
    explorer.set_head(2, on=False)
    state, readings = explorer.state, explorer.readings
    explorer.tokens_box.value = words
    assert said in explorer.message
    assert said in explorer.message_box.value
    assert "<" not in explorer.message_box.value
    assert explorer.state == state
    assert explorer.readings is readings
    with pytest.raises(GatedInterpError, match=said):
        explorer.type_tokens(words)
    assert explorer.state == state
    explorer.set_head(2, on=True)
    assert explorer.message == explorer.message_box.value == ""


def shown(explorer: HeadExplorer) -> tuple[object, ...]:
    """All that the explorer shows, but for the message and the box that is typed into."""
    return (
        explorer.snapshot().to_json(),
        [answer.value for answer in explorer.answers.values()],
        [[s.value for s in switches] for switches in explorer.switches.values()],
        explorer.position_buttons.options,
        explorer.position_buttons.index,
        explorer.counter.value,
        explorer.method_box.value,
    )


@pytest.mark.parametrize("bad", ["BOS D1", "", "A " * 12])
def test_what_is_shown_stays_until_the_input_is_mended(explorer: HeadExplorer, bad: str) -> None:
    explorer.tokens_box.value = "BOS A C2 B1"
    explorer.set_head(1, on=False)
    before = shown(explorer)
    explorer.tokens_box.value = bad
    assert explorer.message
    assert explorer.tokens_box.value == bad  # to be mended, not typed anew
    assert shown(explorer) == before
    # Mended to what it was: the message goes, all else stays.
    explorer.tokens_box.value = "BOS A C2 B1"
    assert explorer.message == explorer.message_box.value == ""
    assert shown(explorer) == before
    # Or left alone: whatever is done next starts from the last good state.
    explorer.tokens_box.value = bad
    explorer.switches["gated"][3].value = False
    assert explorer.message == explorer.message_box.value == ""
    assert explorer.tokens_box.value == "BOS A C2 B1"
    assert explorer.state.off["gated"] == {1, 3}
    assert shown(explorer) != before


def test_a_long_message_is_short(explorer: HeadExplorer) -> None:
    explorer.tokens_box.value = "X" * 100_000
    assert len(explorer.message_box.value) < 120


def test_what_is_not_there_gets_a_sentence(explorer: HeadExplorer) -> None:
    state = explorer.state
    for act, said in (
        (lambda: explorer.set_head(5, on=False), "heads 0 to 4"),
        (lambda: explorer.set_head(-1, on=False), "heads 0 to 4"),
        (lambda: explorer.set_head(2, on=False, model="original"), "heads 0 to 1"),
        (lambda: explorer.set_head(0, on=False, model="toy"), "'original', 'gated'"),
        (lambda: explorer.set_position(11), "positions 0 to 10"),
        (lambda: explorer.prediction("toy"), "'original', 'gated'"),
    ):
        with pytest.raises(GatedInterpError, match=said):
            act()
    assert explorer.state == state


def test_models_it_cannot_read_are_refused(spliced: HookedTransformer) -> None:
    with pytest.raises(GatedInterpError, match="the model has 8 tokens; a task of 4"):
        HeadExplorer(spliced, SkipTrigramTask(n_trigrams=4))
    with pytest.raises(GatedInterpError, match="the task has 12 positions; the model reads 11"):
        HeadExplorer(spliced, SkipTrigramTask(n_trigrams=3, n_positions=12))
    other = build_toy(ToyConfig(n_trigrams=4, n_heads=2))
    with pytest.raises(GatedInterpError, match="the model has 10 tokens; a task of 3"):
        HeadExplorer(spliced, TASK, original=other)


def test_the_figure_shows_the_readings(explorer: HeadExplorer) -> None:
    explorer.set_head(1, on=False)
    reading = explorer.readings["gated"]
    trace = {part: explorer.figure.widget.data[i] for part, i in explorer.figure._traces.items()}
    np.testing.assert_allclose(trace["gated", "accuracy"].y, list(reading.accuracy.values()))
    rows = np.vstack([reading.writes, reading.direct, reading.logits])
    np.testing.assert_allclose(trace["gated", "writes"].z, rows)
    tiles = explorer.figure.tiles["gated"]
    sheet = np.array(trace["gated", "gate"].z)
    assert reading.gates is not None
    for head in range(5):
        row, column = tiles.corner(head)
        square = sheet[row : row + 11, column : column + 11]
        if head == 1:
            assert set(square.ravel()) == {None}
        else:
            np.testing.assert_allclose(square.astype(float), reading.gates[head])
    assert list(trace["gated", "gate labels"].text[5:]) == [" ", "off", " ", " ", " "]
    assert "off" not in trace["original", "attention labels"].text
    # Nothing that JSON has not, and the live traces for whoever opens a second view.
    assert not any(isinstance(v, float) and np.isnan(v) for v in sheet.ravel())
    assert (
        explorer.figure.widget._widget_data[explorer.figure._traces["gated", "accuracy"]]["y"]
        is explorer.figure.widget._data[explorer.figure._traces["gated", "accuracy"]]["y"]
    )


def test_a_switch_sends_one_message_with_what_changed(explorer: HeadExplorer) -> None:
    sent = []
    explorer.figure.widget.observe(lambda c: sent.append(c["new"]), "_py2js_update")
    explorer.set_head(1, on=False)
    messages = [m for m in sent if m]
    assert len(messages) == 1
    originals = {i for (name, _), i in explorer.figure._traces.items() if name == "original"}
    assert not originals & set(messages[0]["style_traces"])


def test_it_displays_and_says_what_it_is(explorer: HeadExplorer) -> None:
    assert repr(explorer) == "HeadExplorer(original: 2 heads, gated: 5 heads, 3 trigrams)"
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == repr(explorer)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    explorer.type_tokens("BOS A B3")
    explorer.set_head(0, on=False, model="original")
    captions = [a.text for a in explorer.snapshot().layout.annotations]
    assert "<b>original</b>, without L0H0: after B3 predicts C2" in captions


def test_tiles_never_overlap() -> None:
    tiles = Tiles(n_heads=7, size=3, across=3)
    patterns = np.arange(7 * 9, dtype=float).reshape(7, 3, 3)
    sheet = tiles.sheet(patterns, frozenset())
    assert sorted(v for v in sheet.ravel() if v is not None) == list(range(63))
    # A shorter example fills the top left of every square.
    short = tiles.sheet(patterns[:, :2, :2], frozenset({0}))
    assert sum(v is not None for v in short.ravel()) == 6 * 4
    words = tiles.words([f"L0H{h}" for h in range(7)], ["BOS", "A", "B1"])
    row, column = tiles.corner(5)
    assert words[row + 2][column + 1] == "L0H5: B1 (2) → A (1)"


def test_states_are_frozen(explorer: HeadExplorer) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        explorer.state.position = 2  # type: ignore[misc]
