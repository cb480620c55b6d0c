"""Every code has a sentence, every sentence a use, and both agree on the fields."""

import ast
import copy
import json
import pickle
import re
import string
from pathlib import Path

import pytest

import gated_interp
from gated_interp.core.errors import CheckpointError, GatedInterpError, sentence, sentences

PACKAGE = Path(gated_interp.__file__).parent
CLASSES = ("GatedInterpError", "CheckpointError")


def _codes(argument: ast.expr) -> list[str]:
    """The codes that the first argument of a call may be."""
    if isinstance(argument, ast.IfExp):
        return _codes(argument.body) + _codes(argument.orelse)
    assert isinstance(argument, ast.Constant), ast.unparse(argument)
    return [argument.value]


def _raised() -> list[tuple[str, str, set[str]]]:
    """Where, which code, and which fields, of every error that the package makes."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            fields = {str(k.arg) for k in node.keywords}
            where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
            if name in CLASSES and ast.unparse(node.args[0]) != "code":
                found += [(where, code, fields) for code in _codes(node.args[0])]
            if name == "problem":
                found += [(where, code, fields | {"config"}) for code in _codes(node.args[0])]
    # What KnownAnswers.require_each raises by the code it is given.
    cases = ("case-without-examples", "case-without-foils")
    return [*found, *(("tasks/task.py", code, {"word", "case"}) for code in cases)]


RAISED = _raised()


def _needed(said: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(said) if name is not None}


def test_every_code_has_a_sentence_and_every_sentence_a_use():
    assert {code for _, code, _ in RAISED} == set(sentences())
    assert len(RAISED) > 350


def test_every_raise_gives_the_fields_of_its_sentence():
    wrong = [
        (where, code, fields, needed)
        for where, code, fields in RAISED
        if fields != (needed := _needed(sentences()[code]))
    ]
    assert not wrong


def test_no_other_calls_make_errors_of_prose():
    """What the table does not say cannot be improved there."""
    prose = [
        where for where, code, _ in RAISED if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
    ]
    assert not prose


def test_sentences_are_what_a_person_can_read():
    for code, said in sentences().items():
        fields = dict.fromkeys(_needed(said), 3)
        filled = sentence(code, fields)
        assert not filled.startswith(code), code  # as it would if it could not be formatted
        assert not set("{}\n") & set(filled), code
        assert filled.endswith(".") or said.endswith(("{reason}", "{problem}")), code
        assert re.match(BEGINS, said), code


# With a capital, or with the name of an argument or option.
BEGINS = r"[A-Z{]|--\w|[a-z_]+ (is|has|was|marks|must|needs|selects|and)\b"


def _pickled(error):
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("again", [_pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", [GatedInterpError, CheckpointError])
def test_an_error_goes_from_process_to_process(kind, again):
    error = kind("no-such-layer", layer=7, last=1)
    there = again(error)
    assert type(there) is kind
    assert str(there) == str(error) != "no-such-layer"
    assert (there.code, there.fields) == ("no-such-layer", {"layer": 7, "last": 1})


def test_an_error_travels_with_what_cannot():
    error = CheckpointError("cannot-read", path=Path("a.bin"), reason=lambda: None)
    error.__cause__ = OSError("no")
    there = _pickled(error)
    assert there.fields["path"] == "a.bin"
    assert str(there).startswith("Cannot read a.bin")


@pytest.mark.parametrize("name", ["{x}", "{", "}}", "{0.__class__}", "a\udc80b", "%s", "\\u007b"])
def test_a_field_is_shown_as_it_is(name):
    error = GatedInterpError("cannot-read", path=name, reason="it is gone")
    assert name in str(error)
    assert _pickled(error).fields["path"] == name
    assert str(_pickled(error)) == str(error)


@pytest.mark.parametrize(
    ("code", "fields", "says"),
    [
        ("there-is-none", {"size": 12, "where": "x"}, ["there-is-none", "12", "'x'"]),
        ("My own sentence {with} braces.", {}, ["My own sentence {with} braces."]),
        ("no-such-layer", {"layer": 55}, ["no-such-layer", "55"]),  # a field is missing
        ("too-little-memory", {"heads": 77, "needed": "much"}, ["too-little-memory", "77", "much"]),
    ],
)
def test_a_code_without_a_sentence_hides_nothing(code, fields, says):
    error = GatedInterpError(code, **fields)
    assert error.code == code
    assert error.fields == fields
    assert all(word in str(error) for word in says)


def test_lists_have_commas_and_shapes_do_not_change():
    error = GatedInterpError("unknown-name", what="task", name="x", choices=["a", "b"])
    assert "a, b" in str(error)
    assert error.fields["choices"] == ["a", "b"]
    nothing = GatedInterpError("unknown-name", what="task", name="x", choices=())
    assert "none" in str(nothing)
    shaped = GatedInterpError("bad-attention-mask", shape=(2, 3), wanted=(2, 4))
    assert "(2, 3)" in str(shaped)
    assert "(2, 4)" in str(shaped)


def test_the_fields_are_what_json_can_say():
    values = {"a": 1, "b": None, "c": Path("d"), "e": [Path("f"), 2.5], "g": {"h": 1}}
    found = GatedInterpError("x", **values).fields
    plain = {"a": 1, "b": None, "c": "d", "e": ["f", 2.5], "g": "{'h': 1}"}
    assert json.loads(json.dumps(found)) == found == plain


def test_an_error_is_still_a_value_error():
    with pytest.raises(ValueError, match="seed is -1"):
        gated_interp.SkipTrigramTask(3).sample(5, seed=-1)
