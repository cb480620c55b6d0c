"""Streams of random draws: each has a name and a number of its own, in one place."""

import ast
from pathlib import Path

import gated_interp
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream

PACKAGE = Path(gated_interp.__file__).parent


def first_streams(tree):
    """What each call of ``derive`` in ``tree`` names as its first stream."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("derive"):
            yield ast.unparse(node.args[1])


def test_no_two_streams_share_a_number():
    numbers = [stream.value for stream in Stream.__members__.values()]
    assert len(numbers) == len(set(numbers)) > 10
    assert len({derive(7, stream) for stream in Stream}) == len(numbers)


def test_every_stream_is_named_and_is_drawn_by_one_part_alone():
    """The loops share theirs, so that both train on the same data; one count is no stream."""
    users = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0]
        for named in first_streams(ast.parse(path.read_text(encoding="utf-8"))):
            users.setdefault(named, set()).add(part)
    assert users.pop("stream") == {"tasks"}  # sample_single's count
    assert users.pop("*streams") == {"experiments"}
    assert all(len(parts) == 1 for parts in users.values()), users
    through_a_variable = {"Stream.ATTEMPT", "Stream.GATED"}
    assert set(users) == {f"Stream.{name}" for name in Stream.__members__} - through_a_variable


def test_what_published_results_were_drawn_from_stays():
    """Seeds as they were derived when the numbers of the published streams were bare."""
    published = {"FIXED_SET": 0, "FRESH_BATCH": 1, "GATE_NOISE": 2, "VARIANCE": 3,
                 "OUTPUT_SCALE": 11, "BLOCK": 12, "TOY": 21, "GATED": 22, "ATTEMPT": 23,
                 "SHOWN_REFERENCE": 31, "SHOWN_RESAMPLE": 32, "SHOWN_ORDERS": 33}  # fmt: skip
    for name, number in published.items():
        assert derive(5, Stream[name], 2) == derive(5, number, 2)
