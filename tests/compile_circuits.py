"""Compile RASP programs to weights with tracr: ``compile_circuits.py FOLDER``.

It runs in an environment of its own (``make known-circuits``), which holds tracr-pypi, dm-haiku and
jax, and nothing of this package. ``ship_circuits.py`` reads what it writes. Lindner et al. (2023),
*Tracr*, arXiv 2301.05062.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tracr.compiler import compiling
from tracr.rasp import rasp

BOS = "BOS"


def previous():
    """The token before each position."""
    one_back = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - 1)
    return rasp.Aggregate(one_back, rasp.tokens)


def follower(wanted, prev):
    """The token that came after ``wanted``."""
    return rasp.Aggregate(rasp.Select(prev, wanted, rasp.Comparison.EQ), rasp.tokens)


def share(of):
    """The mean of numbers so far."""
    every = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
    return rasp.numerical(rasp.Aggregate(every, rasp.numerical(of), default=0))


def share_of(token):
    return share(rasp.Map(lambda x: int(x == token), rasp.tokens))


def yes(numbers):
    return rasp.categorical(rasp.Map(lambda x: "yes" if x > 0 else "no", numbers))


def count():
    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
    return rasp.SelectorWidth(same)


def a_then_b():
    here = rasp.SequenceMap(lambda p, t: f"{p}{t}" == "ab", previous(), rasp.tokens)
    return yes(share(rasp.Map(int, here)))


def a_or_b():
    a, b = yes(share_of("a")), yes(share_of("b"))
    return rasp.SequenceMap(lambda x, y: "yes" if "yes" in (x, y) else "no", a, b)


def induction():
    return follower(rasp.tokens, previous())


def two_hops():
    prev = previous()
    return follower(follower(rasp.tokens, prev), prev)


def pair_balance():
    opened, closed = share_of("("), share_of(")")
    return rasp.numerical(rasp.LinearSequenceMap(opened, closed, 1, -1))


# By name: the program, its tokens, and the tokens in a sequence after BOS.
PROGRAMS = {
    "previous-token": (previous, "abcd", 5),
    "count": (count, "abc", 5),
    "a-then-b": (a_then_b, "abc", 5),
    "induction-rasp": (induction, "abcde", 6),
    "a-or-b": (a_or_b, "abcdef", 5),
    "two-hops-rasp": (two_hops, "abcde", 6),
    "share-of-a": (lambda: share_of("a"), "abc", 5),
    "pair-balance": (pair_balance, "()x", 5),
}


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (program, tokens, length) in PROGRAMS.items():
        answer = program()
        model = compiling.compile_rasp_to_model(
            answer, vocab=set(tokens), max_seq_len=length, compiler_bos=BOS, causal=True
        )
        labels, config = model.residual_labels, model.model_config
        if answer.label in labels:
            out = {None: labels.index(answer.label)}
        else:
            out = {str(v): labels.index(f"{answer.label}:{v}")
                   for v in model.output_encoder.encoding_map}  # fmt: skip
        flat = {
            f"{m}/{n}": np.array(v) for m, each in model.params.items() for n, v in each.items()
        }
        tokens = {t: i for t, i in model.input_encoder.encoding_map.items() if t != "compiler_pad"}
        said = {
            "layers": config.num_layers,
            "heads": config.num_heads,
            "tokens": tokens,
            "numerical": None in out,
            "out": list(out.items()),
        }
        (folder / f"{name}.json").write_text(json.dumps(said))
        np.savez(folder / f"{name}.npz", **flat)
        print(name, said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
