"""Pins, names, groups and notes: kept in the link and in a file, and harmless whatever they say."""

import json
from pathlib import Path
from typing import Any

import pytest
from refusals import refuses, says

from gated_interp.explorer import HeadExplorer
from gated_interp.explorer.notes import Note, note_of
from gated_interp.explorer.saved import MOST, read_file, require_path
from gated_interp.explorer.words import require_switch, require_words
from gated_interp.models.analytic import manual_model
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(n_trigrams=3)
NASTY = '<script>a(1)</script>\u202e\u2066\x00\ud800 & "it\'s" 😀 שלום'


@pytest.fixture
def explorer(spliced: HookedTransformer) -> HeadExplorer:
    made = HeadExplorer(spliced, TASK)
    made.annotate("L0H3", name="answers B1", groups=["answers", "sure"], pinned=True)
    made.annotate("L0H1", name=NASTY, groups=["answers", NASTY], note="why?\nsee\tthere")
    made.annotate("L0H0", name="first", groups=["answers"], model="original")
    return made


def ask(explorer: HeadExplorer, do: str, **what: object) -> dict[str, Any]:
    explorer.widget._handle_custom_msg({"do": do, **what}, [])
    return dict(explorer.widget.view)


def test_words_are_kept_and_shown(explorer: HeadExplorer) -> None:
    plain = '<script>a(1)</script> & "it\'s" 😀 שלום'
    assert explorer.state.notes == {
        ("gated", (0, 3)): Note(True, "answers B1", ("answers", "sure"), ""),
        ("gated", (0, 1)): Note(False, plain, ("answers", plain), "why? see there"),
        ("original", (0, 0)): Note(False, "first", ("answers",), ""),
    }
    view = explorer.widget.view
    assert [n["label"] for n in view["notes"]["heads"]] == ["L0H1", "L0H3", "L0H0"]
    # A pinned head comes first, also where the heads are sorted by effect.
    assert view["models"][1]["order"] == [3, 0, 1, 2, 4]
    assert ask(explorer, "sort", value=True)["models"][1]["order"][0] == 3
    # What is left out stays; a head about which nothing is said is forgotten.
    explorer.annotate("L0H3", note="sure?")
    assert explorer.state.notes["gated", (0, 3)].name == "answers B1"
    explorer.annotate("L0H3", name="", groups=[], note="", pinned=False)
    assert ("gated", (0, 3)) not in explorer.state.notes
    names = [trace.name for trace in explorer.snapshot().data]
    assert any("original L0H0 \u2068first\u2069" in name for name in names)
    assert not any("<script" in name for name in names)
    json.dumps(explorer.widget.view, allow_nan=False).encode()


def test_a_group_is_switched_together(explorer: HeadExplorer) -> None:
    group = {g["name"]: g for g in explorer.widget.view["notes"]["groups"]}["answers"]
    assert group["heads"] == [["gated", "L0H1"], ["gated", "L0H3"], ["original", "L0H0"]]
    assert group["off"] == 0
    view = ask(explorer, "group", value="answers", on=False)
    assert explorer.state.off == {"original": {(0, 0)}, "gated": {(0, 1), (0, 3)}}
    assert view["notes"]["groups"][1]["off"] == 3
    assert [n["on"] for n in view["notes"]["heads"]] == [False] * 3
    explorer.set_head(3, on=True)
    assert explorer.widget.view["notes"]["groups"][1]["off"] == 2
    explorer.set_group("answers", on=True)
    assert not any(explorer.state.off.values())
    with refuses("no-such-group", group="nobody"):
        explorer.set_group("nobody", on=False)


def test_a_link_keeps_all_of_it(spliced: HookedTransformer, explorer: HeadExplorer) -> None:
    other = HeadExplorer(spliced, TASK)
    other.restore(f"http://127.0.0.1:1/#{explorer.link}")
    assert other.state == explorer.state
    # What is done next keeps it: also another example.
    other.next_example()
    assert other.state.notes == explorer.state.notes
    for bad in (
        "{}", "[1]", "[[1,2,3,4,5,6]]", '[["gated","L0H9",true,"","",""]]', "[" * 100_000,
        '[["toy","L0H1",true,"a",[],""]]', '[["gated","L0H1",1,"a",[],""]]', "no JSON",
        '[["gated","L0H1",true,["a"],[],""]]', '[["gated","L0H1",true,"a","b",""]]',
        '[["gated","L0H1",true,"a",[3],""]]',
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\.$"):
            other.restore(f"example=1&notes={bad}")


def test_what_is_no_text_and_no_switch_gets_a_sentence(tmp_path: Path) -> None:
    for value in (None, 5, ["a"], {}, b"a"):
        with refuses("not-words", name="words"):
            require_words("words", value)
    with refuses("half-a-character"):
        require_words("words", "a\ud800")
    for value in ("no", 1, None):
        with refuses("not-a-switch", name="on"):
            require_switch("on", value)
    for groups in ("abc", 5, None, {"a"}):
        with refuses("groups-not-names"):
            note_of(False, "", groups, "")
    for bad in ((False, 5, [], ""), (False, "", [5], ""), (False, "", [], 5)):
        with refuses("not-words"):
            note_of(*bad)
    for path in (None, 5, [], b"a.json"):
        with refuses("not-words", name="path"):
            read_file(path)
    for path in ("", "a\0b", "x" * 300):
        with refuses("not-a-path"):
            read_file(path)
        with refuses("not-a-path"):
            require_path(path)
    large = tmp_path / "large.json"
    large.write_text(" " * (MOST + 1))
    with refuses("explorer-file-too-large"):
        read_file(large)


def test_long_words_get_a_sentence(explorer: HeadExplorer) -> None:
    before = explorer.state
    for what, words, most in (("name", "x" * 10_240, 40), ("note", "é" * 601, 600)):
        with refuses("words-too-long", what=what, n=len(words), most=most):
            explorer.annotate("L0H2", **{what: words})  # type: ignore[arg-type]
    with refuses("words-too-long", what="group"):
        explorer.annotate("L0H2", groups=["g" * 41])
    with refuses("too-many-groups", n=9, most=8):
        explorer.annotate("L0H2", groups=[f"g{i}" for i in range(9)])
    view = ask(explorer, "note", model="gated", head="L0H2", pinned=True, name="x" * 10_240,
               groups=[], note="")  # fmt: skip
    assert says("words-too-long", view["message"])
    assert len(view["message"]) < 100
    for bad in ({"pinned": 1}, {"name": None}, {"groups": "a"}, {"groups": [1]}, {"head": "L0H9"}):
        good = {"model": "gated", "head": "L0H2", "pinned": True, "name": "", "groups": [],
                "note": ""}  # fmt: skip
        assert ask(explorer, "note", **{**good, **bad})["message"].endswith(".")
    assert explorer.state == before


def test_all_notes_together_fit_a_link() -> None:
    truth = manual_model(40, 3)
    explorer = HeadExplorer(truth.model, truth.task)
    explorer.annotate("L0H0", note="n" * 600)
    long = json.loads(explorer.widget.view["file"][1])
    row = long["state"]["notes"][0]
    long["state"]["notes"] = [[row[0], f"L0H{h}", *row[2:]] for h in range(40)]
    view = ask(explorer, "file", value=json.dumps(long))
    assert says("notes-too-long", view["message"])
    assert len(explorer.state.notes) == 1


def test_a_file_leads_back(
    spliced: HookedTransformer, explorer: HeadExplorer, tmp_path: Path
) -> None:
    explorer.show_example(6)
    explorer.set_head(2, on=False)
    explorer.set_second("BOS A B1 B2 B3 A C1 B1 B2 B3 BOS")
    path = explorer.save(tmp_path / "mine.json")
    other = HeadExplorer(spliced, TASK)
    other.open(path)
    assert other.state == explorer.state
    assert path.read_text(encoding="utf-8") == explorer.widget.view["file"][1]
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    other.open(path)  # as some editors save it
    assert other.state == explorer.state
    # In another session the example has no such number, but is the same text.
    third = HeadExplorer(spliced, TASK, seed=5)
    third.open(path)
    third.restore(explorer.link)
    assert third.state.tokens == explorer.state.tokens
    assert third.state.example is None
    assert third.state.notes == explorer.state.notes


def test_what_is_no_file_of_this_model_gets_a_sentence(
    spliced: HookedTransformer, explorer: HeadExplorer, tmp_path: Path
) -> None:
    before, path = explorer.state, tmp_path / "bad.json"
    good = json.loads(explorer.widget.view["file"][1])
    for text in (
        "", "{", "[]", "null", '"a"', "[" * 100_000, "{}", json.dumps({**good, "format": "x"}),
        json.dumps({**good, "model": 3}), json.dumps({**good, "state": []}),
        json.dumps({**good, "state": {"tokens": ["a"]}}),
        json.dumps({**good, "state": {"tokens": "\ud800"}}),
    ):  # fmt: skip
        path.write_text(text)
        with refuses("not-an-explorer-file"):
            explorer.open(path)
        assert says("not-an-explorer-file", ask(explorer, "file", value=text)["message"])
    for version in (2, "1", None, "x" * 10_000):
        path.write_text(json.dumps({**good, "version": version}))
        with refuses("explorer-file-of-another-version", known=1):
            explorer.open(path)
    path.write_text(json.dumps({**good, "state": {"tokens": "99"}}))
    with refuses("link-to-unknown-tokens"):
        explorer.open(path)
    with refuses("not-an-explorer-file") as refused:
        explorer.open(path)
    assert "link" not in str(refused.value)
    with refuses("cannot-read"):
        explorer.open(tmp_path / "none.json")
    path.write_bytes(b"\xff\xfe\x00")
    with refuses("cannot-read"):
        explorer.open(path)
    # Another model: other weights, other heads, or a description that is nonsense.
    model = good["model"]
    for change in (
        {"norms": [1.0]}, {"norms": []}, {"norms": "x"}, {"norms": [10**400]}, {"norms": [None]},
        {"heads": [7]}, {"heads": "many"}, {"tokens": 9}, {"norms": [1e999], "name": NASTY * 100},
    ):  # fmt: skip
        path.write_text(json.dumps({**good, "model": {**model, **change, "name": "theirs\u202e"}}))
        with refuses("explorer-file-of-another-model") as refused:
            explorer.open(path)
        said = str(refused.value)
        assert "“theirs" in said
        assert "\u202e" not in said
        assert f"“{model['name']}”" in said
        assert len(said) < 320
    # Rounding does not make another model of it.
    near = {**model, "norms": [n * (1 + 1e-6) for n in model["norms"]], "name": "moved"}
    path.write_text(json.dumps({**good, "model": near}))
    explorer.open(path)
    assert explorer.state == before
