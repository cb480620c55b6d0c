"""Benchmarks where parting heads must fail, each by an argument that no training can get round."""

import itertools
import random
from collections import Counter

import pytest
import torch
from closeness import assert_close
from refusals import refuses
from scipy.stats import chi2_contingency, chisquare

import gated_interp as gi
from gated_interp.analysis.foils import false_alarms
from gated_interp.analysis.heads import intervened
from gated_interp.analysis.holders import holders
from gated_interp.analysis.replacements import Reference, replacements
from gated_interp.metrics.reconstruction import fvu
from gated_interp.models.analytic_tasks import (
    conditional_heads,
    induction_model,
    marked_relay,
    wide_pairs,
)

LAYERS = gi.tasks.TwoLayersTask()
WIDE = gi.tasks.WideContentTask()
CONDITIONAL = gi.tasks.ConditionalTask()
REPEATED = gi.tasks.RepeatedTokensTask()
N = 8_000


def named(task, tokens):
    return [[task.token_names[t] for t in row] for row in tokens.tolist()]


def slow_layers(draw):
    """One sequence, by the words of the rules, as token names."""
    i, j = draw.sample(range(1, 4), 2)
    row = [f"N{draw.randint(1, 4)}" for _ in range(6)]
    for place, token in zip(sorted(draw.sample(range(6), 3)), (f"S{i}", "M", f"S{j}"), strict=True):
        row[place] = token
    return ["BOS", *row, "?", f"C{i}"]


def slow_wide(draw):
    said = [draw.randint(1, 4), draw.randint(1, 4)]
    row = [f"N{draw.randint(1, 4)}" for _ in range(6)]
    for question, place in enumerate(draw.sample(range(6), 2)):
        row[place] = f"S{question + 1}{said[question]}"
    asked = draw.randint(1, 2)
    return ["BOS", *row, f"B{asked}", f"C{said[asked - 1]}"]


def slow_conditional(draw):
    i, row = draw.randint(1, 6), [f"N{draw.randint(1, 4)}" for _ in range(5)]
    last = f"N{draw.randint(1, 4)}"
    if draw.random() < 0.5:
        row[draw.randrange(5)], last = "A", f"C{i}"
    return ["BOS", *row, f"B{i}", last]


def slow_repeated(draw):
    period = draw.sample([f"T{i}" for i in range(1, 13)], draw.randint(4, 8))
    return ["BOS", *itertools.islice(itertools.cycle(period), 15)]


@pytest.mark.parametrize(
    ("task", "slow"),
    [(LAYERS, slow_layers), (WIDE, slow_wide), (CONDITIONAL, slow_conditional),
     (REPEATED, slow_repeated)],
    ids=lambda x: type(x).__name__ if hasattr(x, "cases") else "",
)  # fmt: skip
def test_sequences_are_distributed_as_by_the_slow_sampler(task, slow):
    draw = random.Random(3)
    fast, plain = named(task, task.sample(N, seed=2).tokens), [slow(draw) for _ in range(N)]

    def p_value(of):
        counts = [Counter(map(of, rows)) for rows in (fast, plain)]
        kinds = sorted({*counts[0], *counts[1]})
        return chi2_contingency([[c[k] for k in kinds] for c in counts]).pvalue

    for position in range(1, task.n_positions, 3):
        if len({row[position] for row in plain}) > 1:
            assert p_value(lambda row, at=position: row[at]) > 1e-4
    # Where tokens of one kind stand, and which token follows which.
    assert p_value(lambda row: "".join(t[0] for t in row)) > 1e-4 or task is REPEATED
    assert p_value(lambda row: (row[2], row[3])) > 1e-4
    assert p_value(lambda row: (row[-2], row[-1])) > 1e-4
    if task is REPEATED:
        assert p_value(lambda row: row[2:].index(row[1])) > 1e-4


def test_every_sequence_obeys_its_rules():
    for row in named(LAYERS, LAYERS.sample(1000, seed=1).tokens):
        kinds = [t for t in row[1:-2] if t[0] in "SM"]
        assert [t[0] for t in kinds] == ["S", "M", "S"]
        assert kinds[0] != kinds[2]
        assert (row[0], row[-2], row[-1]) == ("BOS", "?", "C" + kinds[0][1])
    for row in named(WIDE, WIDE.sample(1000, seed=1).tokens):
        sources = {t[1]: t[2] for t in row if t[0] == "S"}
        assert sorted(sources) == ["1", "2"]
        assert sum(t[0] == "S" for t in row) == 2
        assert row[-1] == "C" + sources[row[-2][1]]
    for row in named(CONDITIONAL, CONDITIONAL.sample(1000, seed=1).tokens):
        assert row.count("A") == (row[-1][0] == "C") <= 1
        assert row[-1] in ("C" + row[-2][1:], "N1", "N2", "N3", "N4")
    batch = REPEATED.sample(1000, seed=1)
    for row, p in zip(batch.tokens.tolist(), batch.period.tolist(), strict=True):
        assert len(set(row[1 : p + 1])) == p
        assert row[p + 1 :] == row[1 : len(row) - p]


def test_periods_are_uniform():
    counts = torch.bincount(REPEATED.sample(N, seed=7).period)[4:].tolist()
    assert len(counts) == 5
    assert chisquare(counts).pvalue > 1e-4


def test_a_foil_of_repeated_tokens_has_a_new_token_and_all_else_as_it_was():
    foils, batch = REPEATED.foils(500, seed=9), REPEATED.sample(500, gi_generator(9))
    changed = foils.tokens != batch.tokens
    assert (changed.sum(1) == 1).all()
    assert changed[foils.row, foils.position].all()
    for row, at, case, target in zip(
        foils.tokens.tolist(), foils.position.tolist(), foils.case.tolist(), foils.target.tolist(),
        strict=True,
    ):  # fmt: skip
        assert row.count(row[at]) == 1
        assert row[at] != 0
        assert row[row.index(case) + 1] == target == row[at + 1]
    positions = foils.position - batch.period
    assert positions.min() == 1
    assert foils.position.max() == REPEATED.n_positions - 2


def gi_generator(seed):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- two layers


def mirrored(tokens):
    """The same sequences with the two signals changed over."""
    signals = (tokens >= 3) & (tokens <= 5)
    pairs = tokens[signals].view(-1, 2)
    swapped = tokens.clone()
    swapped[signals] = pairs.flip(1).flatten()
    return swapped


@pytest.mark.parametrize("layer", [0, 1])
def test_no_one_layer_can_tell_which_signal_came_first(layer):
    """Without positions a layer alone sees which tokens came, not their order: exactly, whatever
    it computes. Of two sequences that differ in order alone, it is right in one at most.
    """
    source = gi_generator(5)
    model = marked_relay().model
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.attn.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=source))
    model = model.double()
    block = gi.GatedAttention.from_attention(
        model.blocks[layer].attn, 3, d_head=5, d_gate=2, seed=layer
    ).double()
    tokens = LAYERS.sample(200, seed=3).tokens
    for one in (model, gi.splice(model, layer, block)):
        heads = one.blocks[1 - layer].attn.W_O.shape[0]
        others = [(1 - layer, h) for h in range(heads)]
        with intervened(one, replacements(one, others, "zero", Reference(one, None))):
            there, back = (one(t)[:, -2] for t in (tokens, mirrored(tokens)))
        assert_close(there, back)
        with torch.no_grad():
            both, swapped = (one(t)[:, -2] for t in (tokens, mirrored(tokens)))
        assert (both - swapped).abs().max() > 1e-3  # with both layers it can


@pytest.mark.parametrize("make", [marked_relay, induction_model])
@pytest.mark.parametrize("layer", [0, 1])
def test_neither_layer_of_two_holds_anything_and_the_verdict_says_why(make, layer):
    truth = make()
    strict = holders(truth.model, truth.task, layer=layer, n=300)
    assert strict.holders == {b: [] for b in truth.task.cases}
    assert not strict.clean
    assert set(strict.why_not().values()) == {
        f"spread over layers: layer {layer} alone answers 0.0%"
    }
    given = holders(truth.model, truth.task, layer=layer, rest="intact", n=300)
    assert (given.alone == 1).all()
    assert (given.without == 0).all()
    assert all(w.startswith("not specific: without") for w in given.why_not().values())


def test_a_layer_below_the_last_has_no_owners_and_one_must_be_named():
    truth = marked_relay()
    with refuses("logits-not-a-sum", layer=0):
        gi.verdict(truth.model, truth.task, layer=0)
    with refuses("which-layer-of-heads", n=2):
        gi.verdict(truth.model, truth.task)
    with refuses("no-such-layer", layer=2):
        holders(truth.model, truth.task, layer=2)
    found = gi.verdict(truth.model, truth.task, layer=1)
    assert found.owners == {1: [0], 2: [0], 3: [0]}
    assert found.holders == {1: [], 2: [], 3: []}


@pytest.mark.slow
def test_a_block_in_one_layer_is_faithful_and_holds_nothing():
    truth = marked_relay()
    for layer in (0, 1):
        block = gi.GatedAttention.from_attention(truth.model.blocks[layer].attn, 3, d_head=1)
        how = gi.TrainConfig.plain(steps=300, batch_size=100, lr=0.01, device="cpu", alpha=0.0)
        gi.train_gated(truth.model, block, how, layer=layer, data=LAYERS, progress=False)
        found = holders(gi.splice(truth.model, layer, block), LAYERS, layer=layer, n=300)
        assert not any(found.holders.values())


def test_shapley_values_of_a_second_layer_are_given_the_first():
    truth = marked_relay()
    table = gi.shapley(truth.model, truth.task, layer=1, n=200)
    mine = table[table["metric"] == "accuracy"]
    assert mine["head"].unique().tolist() == ["L1H0"]
    assert mine["value"].tolist() == [1.0, 1.0, 1.0]


# ---------------------------------------------------------------- wide content


def test_a_head_of_one_dimension_gives_two_answers_at_most():
    """What it writes is a multiple of one vector, whatever it reads: with no bias the largest entry
    is one of two. Of four contents it answers half, less than any holder must.
    """
    source = gi_generator(8)
    for expansion in (1, 3):
        block = gi.GatedAttention(
            gi.GatedConfig(d_model=WIDE.d_vocab, n_heads=4 * expansion, d_gate=2, seed=expansion)
        )
        with torch.no_grad():
            for parameter in block.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=source))
        model = gi.splice(wide_pairs().model, 0, block)
        probes = WIDE.probes(500, seed=3)
        for h in range(4 * expansion):
            others = [(0, o) for o in range(4 * expansion) if o != h]
            with intervened(model, replacements(model, others, "zero", Reference(model, None))):
                top = model(probes.tokens)[probes.row, probes.position].argmax(-1)
            answers = set(top.tolist()) - set(WIDE.question(torch.tensor([1, 2])).tolist())
            assert len(answers) <= 2


def test_neither_half_of_a_pair_answers_its_question():
    truth = wide_pairs()
    found = holders(truth.model, WIDE)
    assert not any(found.holders.values())
    for b, reason in found.why_not().items():
        mine = truth.heads_of[b]
        assert reason.startswith("no head is sufficient: the best answers")
        # Two of four contents each, and the other two are its partner's.
        assert (found.alone[b - 1, mine] - 0.5).abs().max() < 0.1
        assert (found.without[b - 1, mine] - 0.5).abs().max() < 0.1
        rest = [h for h in range(4) if h not in mine]
        assert (found.alone[b - 1, rest] == 0).all()
        assert (found.without[b - 1, rest] == 1).all()


def test_no_head_is_closer_than_its_rank_allows():
    """Eckart and Young: of what is written at one question, d dimensions leave at least the share
    of the squared singular values beyond the d-th.
    """
    truth = wide_pairs()
    attn = truth.model.blocks[0].attn
    probes = WIDE.probes(1000, seed=2)
    _, cache = truth.model.run_with_cache(probes.tokens)
    z = cache["blocks.0.attn.hook_z"][probes.row, probes.position].double()
    each = torch.einsum("ehd,hdm->ehm", z, attn.W_O.double()).detach()[probes.case == 1]
    target = each.sum(1)
    sizes = torch.linalg.svdvals(target - target.mean(0)) ** 2
    bound = float(sizes[1:].sum() / sizes.sum())
    assert bound > 0.3  # two equal directions would leave a half
    for h in range(4):
        assert float(fvu(each[:, h][None], target[None])) >= bound * (1 - 1e-9)


def test_a_head_of_two_dimensions_is_wide_enough():
    """The control: the two heads of each question as one, whose writes are the same."""
    truth = wide_pairs()
    block = gi.GatedAttention(
        gi.GatedConfig(d_model=WIDE.d_vocab, n_heads=2, d_head=2, gate="open",
                       normalize_weights=False, attn_scale=1.0)
    )  # fmt: skip
    old = truth.model.blocks[0].attn
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        for q, heads in enumerate(truth.heads_of.values()):
            block.W_Q[q, :, 0], block.W_K[q, :, 0] = (
                old.W_Q[heads[0], :, 0],
                old.W_K[heads[0], :, 0],
            )
            block.raw_W_V[q] = old.W_V[heads, :, 0].T
            block.raw_W_O[q] = old.W_O[heads, 0]
    found = gi.verdict(gi.splice(truth.model, 0, block), WIDE)
    assert found.holders == {1: [0], 2: [1]}
    assert found.clean


# ---------------------------------------------------------------- two heads for any number


def conditional_alarms(model, without):
    with intervened(model, replacements(model, without, "zero", Reference(model, None))):
        return set(false_alarms(model, CONDITIONAL, n=400).values())


def test_two_heads_answer_any_number_and_one_of_them_decides():
    truth = conditional_heads()
    found = holders(truth.model, CONDITIONAL)
    assert (found.alone[:, 0] == 1).all()
    assert (found.without[:, 1] == 1).all()
    assert not found.clean
    cases = list(CONDITIONAL.cases)
    assert found.why_not() == {
        b: f"not specific: without L0H0 also {', '.join(str(c) for c in cases if c != b)} suffer"
        for b in cases
    }
    assert conditional_alarms(truth.model, []) == {0.0}
    assert conditional_alarms(truth.model, [(0, 1)]) == {1.0}  # nobody decides
    report = gi.superposition_report(truth.model, CONDITIONAL, n=300, replicates=2)
    each = report[report["scope"] == "representation"].groupby("measure")["value"].unique()
    assert [each[w].tolist() for w in ("composed", "distributed", "superposed")] == [[1], [0], [0]]


def by_hand(n_heads):
    """A block that writes what the two heads write: each of its heads one answer, from A."""
    task = CONDITIONAL
    block = gi.GatedAttention(
        gi.GatedConfig(d_model=task.d_vocab, n_heads=n_heads, d_head=2, gate="open",
                       normalize_weights=False, attn_scale=1.0)
    )  # fmt: skip
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        # All look for BOS (dimension 1), their own question for A, twice as hard.
        block.W_Q[:, :, 1] = 50
        block.W_K[:, 0, 1] = block.W_K[:, task.source, 0] = block.raw_W_V[:, task.source, 0] = 1
        for h in range(n_heads):
            block.W_Q[h, task.question(torch.tensor(h + 1)), 0] = 100
            block.raw_W_O[h, 0, task.answer(torch.tensor(h + 1))] = 2
    return block


def test_a_clean_block_stands_for_two_heads_that_superpose_nothing():
    """A block of one head an answer is clean and answers alike, so *clean* is no sign that anything
    was superposed; and the head that decides for all of them is nowhere in it.
    """
    truth = conditional_heads()
    model = gi.splice(truth.model, 0, by_hand(CONDITIONAL.n_cases))
    found = gi.verdict(model, CONDITIONAL)
    assert found.clean
    assert found.holders == {b: [b - 1] for b in CONDITIONAL.cases}
    assert truth.superposed == []
    assert set(false_alarms(model, CONDITIONAL).values()) == {0.0}
    probes = CONDITIONAL.probes(500, seed=2)
    written = [
        m.run_with_cache(probes.tokens)[1]["blocks.0.hook_attn_out"][probes.row, probes.position]
        for m in (truth.model, model)
    ]
    assert float(fvu(written[1][None].double(), written[0][None].double())) < 1e-6
    for h in range(CONDITIONAL.n_cases):
        assert conditional_alarms(model, [(0, h)]) == {0.0}


@pytest.mark.parametrize("seed", [0, 1])
def test_with_fewer_heads_than_answers_nothing_is_clean(seed):
    """Six answers, five heads, whatever their weights: two of them share a head or have none."""
    block = gi.GatedAttention(
        gi.GatedConfig(d_model=CONDITIONAL.d_vocab, n_heads=5, d_head=8, seed=seed)
    )
    truth = conditional_heads()
    assert not gi.verdict(gi.splice(truth.model, 0, block), CONDITIONAL).clean
    five = by_hand(5)
    found = gi.verdict(gi.splice(truth.model, 0, five), CONDITIONAL)
    assert not found.clean
    assert found.not_learnt == [6]


# ---------------------------------------------------------------- repeated tokens


def test_one_head_looks_back_and_the_other_matches_the_prefix():
    truth = induction_model()
    scores = gi.induction_scores(truth.model, REPEATED.sample(200, seed=4).tokens)
    table = scores.set_index(["layer", "head"])
    assert table.loc[(0, 0), "previous_token"] > 0.999
    assert table.loc[(1, 0), "prefix_matching"] > 0.999
    assert table.loc[(0, 0), "prefix_matching"] < 0.001
    assert table.loc[(1, 0), "previous_token"] < 0.5


def test_prefix_matching_of_uniform_attention_counts_the_keys_that_follow():
    """BOS 1 2 1 2 1: at the second 1 (position 3) one of 4 keys follows a 1, at 4 one of 5 a 2, at
    5 two of 6 a 1.
    """
    model = gi.build_attention(gi.AttentionConfig(d_vocab=3, n_positions=6, n_heads=2))
    with torch.no_grad():
        for parameter in model.blocks[0].attn.parameters():
            parameter.zero_()
    tokens = torch.tensor([[0, 1, 2, 1, 2, 1]])
    found = gi.induction_scores(model, tokens)["prefix_matching"].tolist()
    assert_close(found, [(1 / 4 + 1 / 5 + 2 / 6) / 3] * 2)
    with refuses("no-repeats"):
        gi.induction_scores(model, tokens[:, :3])


def test_the_induction_head_reads_the_other_by_its_keys():
    truth = induction_model()
    scores = gi.composition_scores(truth.model).set_index("kind")["score"]
    assert scores["K"] > 0.1
    assert scores["Q"] == scores["V"] == 0
