"""How each number of a ``results.json`` was measured, to stand beside it.

A reader of one number finds here what it is, what it was measured on, and how many it counts.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from gated_interp.analysis.verdict import EXAMPLES, SEED
from gated_interp.experiments.behaviour import FIRM_EXAMPLES
from gated_interp.experiments.seeds import FIRM_LEAD, HELD_OUT, HELD_OUT_SEED

How = dict[str, dict[str, Any]]
"""By number: ``what`` it is, what it was measured ``on``, and ``n``, how many are counted."""

RATE = "as a share of all gated runs; 95% intervals count the runs on one toy as one cluster"
CLEAN = "each skip trigram is held by exactly one head, and these heads differ"
PAPER = {
    "clean": f"gated runs in which {CLEAN}",
    "clean_rate": f"the same, {RATE}",
    "clean_interval": f"the same, {RATE}",
    "successes": "gated runs in which each skip trigram is learnt and has a sole owner, the "
    "post's rule",
    "success_rate": f"the same, {RATE}",
    "success_interval": f"the same, {RATE}",
    "toys_trained": "toys that were trained",
    "toys_learnt": "toys that learnt every skip trigram",
    "toys_firm": f"of these, toys whose C leads by {FIRM_LEAD} logits in 99% of the examples",
    "toys_used": "different toys that gated runs stand in for",
    "toys_distributed": "toys that learnt every skip trigram and share at least one between heads",
    "toys_clean": f"toys in which {CLEAN}",
    "fvu": "fraction of the variance of the layer's output that the block leaves unexplained",
    "l0": "open gates per causal (query, key) pair, mean",
    "kl": "KL divergence of the model's predictions from the toy's, nats per position",
    "kept": "of the examples that the toy answers with C, the share that the model with the block "
    "answers so too, of the skip trigram where it is least",
    "purity": "share of what a holder writes (energy) where its skip trigram is answered, mean "
    "over holders",
    "open_there": "share of a holder's open gates that lie there, mean over holders",
    "accuracy": "share of skip trigrams whose C has the highest logit",
    "without_holders": ", with every holder zero-ablated",
    "only_holders": ", with every other head zero-ablated",
    "seconds": "time of one process, on the machine that ran it",
}


def of_paper(entry: Mapping[str, Any], seeds: Iterable[int]) -> How:
    """Of an experiment of ``reproduce``: how each of its numbers was measured.

    Args:
        entry: what ``results.json`` has of it.
        seeds: of its gated runs and toys.
    """
    span, n = _span(seeds), entry["seeds"]
    probes = f"{EXAMPLES:,} sequences that ask for a skip trigram (seed {SEED})"
    examples = f"{FIRM_EXAMPLES:,} sequences that ask for a skip trigram (seed {HELD_OUT_SEED})"
    ordinary = f"{HELD_OUT} ordinary sequences of the task (seed {HELD_OUT_SEED})"
    shown = f"the run that is shown, seed {entry['selected_seed']}"
    runs, toys = f"gated runs, {span}", f"toys, {span}"
    found: How = {}
    for name, value in entry.items():
        key, _, which = name.rpartition("_")
        if name in ("toy", "gated"):
            of = f"the toy of seed {entry['selected_toy_seed']}" if name == "toy" else shown
            found[name] = {"what": "which heads hold each skip trigram", "on": probes, "n": 1,
                           "of": of}  # fmt: skip
        elif name.startswith("toys_"):
            on = examples if name == "toys_firm" else probes
            found[name] = {"what": PAPER[name], "on": on, "n": entry["toys_trained"], "of": toys}
        elif which in ("median", "selected"):
            one = which == "selected"
            what = PAPER["kept"] if key == "kept" else _with_or_without(key)
            found[name] = {
                "what": what if one or value is None else f"{what}; median over runs",
                "on": examples if key == "kept" else ordinary,
                "n": 1 if one else n,
                "of": shown if one else runs,
            }
        elif name in PAPER:
            found[name] = {"what": PAPER[name], "on": probes, "n": n, "of": runs}
    found["seconds"] |= {"on": "the training and the measuring", "of": runs}
    return found


def _with_or_without(key: str) -> str:
    for end in ("without_holders", "only_holders"):
        if key.endswith(end):
            return PAPER[key.removesuffix(f"_{end}")] + PAPER[end]
    return PAPER[key]


ABLATED = {
    "zero": "with the layer's output set to zero",
    "mean": "with the layer's output set to its mean over the same sequences",
    "resample": "with the layer's output taken from another sequence",
}
LAYER = {
    "ce": "loss of the next token with the block, nats",
    "ce_original": "loss of the original model, nats",
    "ce_difference": "loss with the block minus that of the original, nats",
    "kl": "KL divergence of the predictions from the original's, nats per position",
    **{f"ce_{how}": f"loss of the original, {words}, nats" for how, words in ABLATED.items()},
    **{f"kl_{how}": f"KL divergence of the original, {words}, nats per position"
       for how, words in ABLATED.items()},
    **{f"{of}_recovered_{how}": f"share of the {words} recovered, against the original {off}"
       for of, words in (("ce", "loss"), ("kl", "KL divergence")) for how, off in ABLATED.items()},
    "fvu": "fraction of the variance of the layer's output that the block leaves unexplained",
    "active_per_position": "heads that write at a position, mean",
    "active": "heads that write at a position, mean",
    "gates_per_pair": "open gates (above 0.001) per causal (query, key) pair",
    "open_share": "open gates as a share of all heads, per causal (query, key) pair",
    "heads": "heads before dead and spare ones were pruned",
    "heads_alive": "heads that write anywhere",
    "parameters": "weights of the block that train",
    "held_share": "share of positions at which one head alone holds what the layer writes",
    "held_weighted": "the same, each position weighted by how far its token is raised",
    "held_entropy": "entropy of the tokens that are held there, nats",
    "held_about_mean": "the share that is held where each head's mean write is set aside",
    "participation": "participation number of heads, median over positions",
    "alone": "share of positions at which one head writes at least 90%",
    "effect": "rise of the loss without all heads of the original's layer (mean ablation), nats",
    "carriers": "heads that carry 90% of that effect alone",
    "top_share": "largest head's share of that effect (Shapley value)",
    "seconds": "time of one training, on the machine that ran it",
    "positions": "positions that were trained on",
}  # fmt: skip
REPEATS_ONLY = ("effect", "carriers", "top_share")


def of_decompose(names: Iterable[str], on: str, repeats: str, seeds: Iterable[int]) -> How:
    """Of a layer of ``decompose``: how each of its numbers was measured.

    Args:
        names: of the numbers.
        on: the held-out sequences, in words.
        repeats: the repeated random tokens, in words.
        seeds: of the blocks.
    """
    seeds = list(seeds)
    found: How = {}
    for name in names:
        original = name.endswith("_original") and name not in LAYER
        key = name.removesuffix("_original") if original else name
        found[name] = {
            "what": f"{LAYER[key]}, of the original layer" if original else LAYER[key],
            "on": repeats if key in REPEATS_ONLY else on,
            "n": len(seeds),
            "of": f"blocks, {_span(seeds)}; low and high are the 95% interval of their mean "
            "(Student's t)",
        }
    for name in ("seconds", "positions", "parameters", "heads"):
        if name in found:
            found[name]["on"] = "the training"
    return found


def _span(seeds: Iterable[int]) -> str:
    first, *more = seeds
    return f"seeds {first} to {more[-1]}" if more else f"seed {first}"
