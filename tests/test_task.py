"""The task: its rules, and its distribution against a sampler that is slow and obvious."""

import dataclasses
import random
import types

import numpy as np
import pytest
import torch
from refusals import refuses
from scipy.stats import chi2_contingency
from transformer_lens import HookedTransformerConfig

import gated_interp as gi
from gated_interp.analysis.holders import holders
from gated_interp.core.seeds import generator
from gated_interp.models.toy import attention_only
from gated_interp.tasks import SkipTrigramTask, TrigramBatch, contexts_of
from gated_interp.tasks.skip_trigrams import concatenate
from gated_interp.tasks.task import KnownAnswers, ProbedTask, Probes
from gated_interp.tasks.tokens import sample_tokens

TASK = SkipTrigramTask(n_trigrams=3)


def slow_sequence(
    task: SkipTrigramTask, draw: random.Random, repeat_source: bool = False
) -> tuple[list[int], list[tuple[int, int, int]], bool]:
    """One sequence, its trigrams as (A's position, B's position, B), and whether one is cut."""
    tokens, trigrams = [task.bos], []
    source_pos, due = None, None
    while len(tokens) < task.n_positions:
        if due is not None:
            trigrams.append(due)
            tokens.append(task.completion(due[2]))
            due = None
            continue
        options = list(range(task.d_vocab))
        if source_pos is not None and not repeat_source:
            options.remove(task.source)
        token = draw.choice(options)
        if token == task.source and source_pos is None:
            source_pos = len(tokens)
        elif token in task.trigrams and source_pos is not None:
            due = (source_pos, len(tokens), token)
            source_pos = None
        tokens.append(token)
    return tokens, trigrams, due is not None


def p_value(first: list[object], second: list[object]) -> float:
    """Chi-squared test that two independent samples of categories are alike."""
    kinds = sorted({*first, *second}, key=repr)
    table = np.array([[sample.count(kind) for kind in kinds] for sample in (first, second)])
    rare = table.sum(0) < 10
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], 1)
    return float(chi2_contingency(table[:, table.sum(0) > 0]).pvalue)


@pytest.fixture(scope="module")
def fast() -> TrigramBatch:
    return TASK.sample(10_000, seed=3)


@pytest.fixture(scope="module")
def slow() -> list[tuple[list[int], list[tuple[int, int, int]], bool]]:
    draw = random.Random(4)
    return [slow_sequence(TASK, draw) for _ in range(10_000)]


def per_row(batch: TrigramBatch) -> list[list[tuple[int, int, int]]]:
    """The trigrams of each row, as the slow sampler lists them."""
    rows: list[list[tuple[int, int, int]]] = [[] for _ in range(len(batch))]
    columns = (batch.example, batch.source_pos, batch.destination_pos, batch.trigram)
    for row, *trigram in zip(*(c.tolist() for c in columns), strict=True):
        rows[row].append(tuple(trigram))
    return rows


def pairs(rows: list[list[int]]) -> list[object]:
    """One pair of neighbours per row (so that the draws are independent), at every position."""
    return [(i % 10, *row[i % 10 : i % 10 + 2]) for i, row in enumerate(rows)]


def test_token_pairs_are_distributed_as_by_the_slow_sampler(fast, slow):
    fast_rows, slow_rows = fast.tokens.tolist(), [row for row, _, _ in slow]
    assert p_value([p[1:] for p in pairs(fast_rows)], [p[1:] for p in pairs(slow_rows)]) > 1e-3
    assert p_value(pairs(fast_rows), pairs(slow_rows)) > 1e-3


def test_the_pair_test_notices_a_sampler_that_draws_a_again(fast):
    draw = random.Random(5)
    wrong = [slow_sequence(TASK, draw, repeat_source=True)[0] for _ in range(10_000)]
    assert p_value(pairs(fast.tokens.tolist()), pairs(wrong)) < 1e-6


def test_trigrams_are_distributed_as_by_the_slow_sampler(fast, slow):
    fast_rows, slow_rows = per_row(fast), [trigrams for _, trigrams, _ in slow]
    assert p_value([len(r) for r in fast_rows], [len(r) for r in slow_rows]) > 1e-3
    firsts = [[r[0] for r in rows if r] for rows in (fast_rows, slow_rows)]
    assert p_value(*firsts) > 1e-3
    lasts = [[r[-1][2] for r in rows if len(r) > 1] for rows in (fast_rows, slow_rows)]
    assert p_value(*lasts) > 1e-3
    cut = [[i in set(fast.truncated.tolist()) for i in range(10_000)], [c for _, _, c in slow]]
    assert p_value(*cut) > 1e-3


@pytest.mark.parametrize(("n_trigrams", "n_positions"), [(1, 4), (3, 11), (5, 7)])
def test_every_sequence_obeys_the_rules(n_trigrams, n_positions):
    task = SkipTrigramTask(n_trigrams, n_positions)
    batch = task.sample(500, seed=8)
    assert batch.tokens.shape == (500, n_positions)
    recorded = per_row(batch)
    cut = []
    for i, row in enumerate(batch.tokens.tolist()):
        assert row[0] == task.bos
        assert all(0 <= token < task.d_vocab for token in row)
        # Read the row again, knowing only the rules.
        source_pos, found = None, []
        for pos, token in enumerate(row):
            if token == task.source:
                assert source_pos is None, "A was drawn while one was open"
                source_pos = pos
            elif token in task.trigrams and source_pos is not None:
                if pos + 1 == n_positions:
                    cut.append(i)
                else:
                    assert row[pos + 1] == task.completion(token)
                    found.append((source_pos, pos, token))
                source_pos = None
        assert recorded[i] == found
    assert batch.truncated.tolist() == cut
    assert sum(map(len, recorded)) > 100 / n_positions


def test_the_vocabulary_of_three_trigrams():
    # A, then B1..B3, then C1..C3, then BOS.
    assert (TASK.d_vocab, TASK.source, TASK.bos, list(TASK.trigrams)) == (8, 0, 7, [1, 2, 3])
    assert [TASK.completion(b) for b in TASK.trigrams] == [4, 5, 6]
    assert TASK.token_names == ["A", "B1", "B2", "B3", "C1", "C2", "C3", "BOS"]


def test_a_seed_fixes_the_batch_and_another_changes_it():
    state = torch.get_rng_state()
    first, again, other = TASK.sample(50, 1), TASK.sample(50, 1), TASK.sample(50, 2)
    for field in dataclasses.fields(TrigramBatch):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
    assert not torch.equal(first.tokens, other.tokens)
    source = torch.Generator().manual_seed(1)
    assert torch.equal(TASK.sample(50, source).tokens, first.tokens)
    assert not torch.equal(TASK.sample(50, source).tokens, first.tokens)
    assert torch.equal(torch.get_rng_state(), state)


def test_single_examples_hold_exactly_one_trigram_each():
    batch = TASK.sample_single(700, seed=42)
    assert len(batch) == 700
    assert batch.trigrams_per_example.tolist() == [1] * 700
    assert batch.example.tolist() == list(range(700))
    rows = torch.arange(700)
    assert torch.equal(batch.tokens[rows, batch.destination_pos], batch.trigram)
    assert torch.equal(batch.tokens[rows, batch.destination_pos + 1], batch.trigram + 3)
    assert (batch.tokens[rows, batch.source_pos] == 0).all()
    # They are the first such rows of the seed's own stream.
    whole = TASK.sample(2800, seed=42)
    single = (whole.trigrams_per_example == 1).nonzero().flatten()[:700]
    assert torch.equal(batch.tokens, whole.tokens[single])


def test_single_examples_are_found_where_they_are_rare():
    # With 50 B's and 4 positions, a trigram needs A, then B at once: few rows have one.
    batch = SkipTrigramTask(50, 4).sample_single(30, seed=1)
    assert len(batch) == 30
    assert batch.trigrams_per_example.tolist() == [1] * 30
    # A second sample has more than are missing: 16 of its first 80 rows, then 4 of the next.
    assert len(SkipTrigramTask(10, 8).sample_single(20, seed=0)) == 20


def test_select_and_concatenate_undo_each_other():
    batch = TASK.sample(101, seed=6)
    parts = [batch.select(torch.arange(0, 37)), batch.select(torch.arange(37, 101))]
    whole = concatenate(parts)
    for field in dataclasses.fields(TrigramBatch):
        assert torch.equal(getattr(batch, field.name), getattr(whole, field.name)), field.name


def test_a_sound_batch_has_no_problems(fast):
    assert TASK.check(fast, min_examples=1000) == []


def corrupt(batch: TrigramBatch, **changes) -> list[str]:
    return TASK.check(dataclasses.replace(batch, **changes))


def test_check_says_what_is_wrong(fast):
    tokens, at = fast.tokens, fast.destination_pos
    rows = fast.example

    count = int((fast.trigram == 2).sum())
    assert any(
        f"trigram 2 is completed {count} times; at least {count + 1} are wanted" in problem
        for problem in TASK.check(fast, min_examples=count + 1)
    )

    unanswered = tokens.clone()
    unanswered[rows[0], at[0] + 1] = TASK.bos
    assert corrupt(fast, tokens=unanswered) == ["1 scored trigrams are not followed by their C."]

    # The first row that has a BOS where the record would say A or B sits.
    moved = fast.source_pos.clone()
    moved[0] = 0
    assert corrupt(fast, source_pos=moved) == ["some recorded A positions do not hold an A."]

    renamed = fast.trigram.clone()
    renamed[0] = renamed[0] % 3 + 1
    assert "some recorded B positions do not hold their B." in corrupt(fast, trigram=renamed)

    headless = tokens.clone()
    headless[0, 0] = 5
    assert corrupt(fast, tokens=headless) == ["some sequences do not start with BOS."]

    outside = tokens.clone()
    outside[rows[0] + 1, 0] = 8
    assert "some tokens are outside the vocabulary 0..7." in corrupt(fast, tokens=outside)

    everywhere = torch.arange(len(fast))
    (crowded,) = corrupt(fast, truncated=everywhere)
    assert crowded.startswith(f"10000 of {10000 + fast.trigram.numel()} trigrams run out of room")


def test_check_says_which_token_is_rare_or_frequent(fast):
    free = torch.ones_like(fast.tokens, dtype=torch.bool)
    free[:, 0] = False
    for column in (fast.source_pos, fast.destination_pos, fast.destination_pos + 1):
        free[fast.example, column] = False
    changed = fast.tokens.masked_fill(free, 2)
    problems = corrupt(fast, tokens=changed)
    assert any("B2 is" in p and "more than twice a uniform share" in p for p in problems)
    assert any("BOS is 0.0% of the tokens, less than half" in p for p in problems)


def test_check_looks_at_every_position_but_the_first():
    # Of four positions the second is always B1: a third of those that are looked at.
    task = SkipTrigramTask(3, n_positions=4)
    batch = task.sample(2000, seed=0)
    tokens = batch.tokens.clone()
    tokens[:, 1], none = 1, torch.zeros(0, dtype=torch.long)
    columns = ("example", "source_pos", "destination_pos", "trigram")
    problems = task.check(dataclasses.replace(batch, tokens=tokens, **dict.fromkeys(columns, none)))
    assert any("B1 is " in p and "more than twice a uniform share" in p for p in problems)


def test_check_survives_a_b_recorded_at_the_last_position(fast):
    beyond = fast.destination_pos.clone()
    beyond[0] = TASK.n_positions - 1
    problems = corrupt(fast, destination_pos=beyond)
    assert any("not followed by their C" in p for p in problems)


@pytest.mark.parametrize("sizes", [(0,), (-1,), (2.0,), (True,), (3, 3), (3, "11")])
def test_impossible_tasks_are_refused(sizes):
    with refuses("not-a-whole-number"):
        SkipTrigramTask(*sizes)


@pytest.mark.parametrize("n", [0, -3])
def test_empty_batches_are_refused(n):
    for sample in (TASK.sample, TASK.sample_single):
        with refuses("not-a-whole-number", name="n"):
            sample(n, 0)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_bad_seeds_are_refused(seed):
    with refuses("bad-seed"):
        TASK.sample(10, seed)


def test_contexts_count_their_prefix():
    # BOS A B1 C1: at B1 the prefix holds one BOS, one A and one B1, and C1 comes next.
    contexts = contexts_of(torch.tensor([[7, 0, 1, 4]]), d_vocab=8)
    two = contexts_of(torch.tensor([[7, 0, 1, 4], [0, 0, 0, 2]]), d_vocab=8)
    assert torch.equal(two.total_counts[:4], contexts.total_counts)
    assert two.total_counts[4:, [0, 2, 7]].tolist() == [[3, 1, 0]] * 4
    assert contexts.query.tolist() == [7, 0, 1, 4]
    assert contexts.counts[2].tolist() == [1, 1, 0, 0, 0, 0, 0, 1]
    assert contexts.total_counts[0].tolist() == [1, 1, 0, 0, 1, 0, 0, 1]
    assert contexts.target.tolist() == [0, 1, 4, -1]
    assert len(contexts) == 4


def test_probes_foils_and_answers_are_where_plain_loops_find_them():
    task = SkipTrigramTask(3)
    probes, foils = task.probes(200, seed=3), task.foils(200, seed=4)
    assert isinstance(task, ProbedTask)
    assert task.cases == {1: "A…B1→C1", 2: "A…B2→C2", 3: "A…B3→C3"}

    def answers(row):
        """The trigram that each position answers; 0 for none."""
        found, is_open = [], False
        for token in row:
            is_b = 1 <= token <= 3
            found.append(token if is_b and is_open else 0)
            is_open = (is_open or token == 0) and not (is_b and is_open)
        return found

    expected = [
        (r, p, b + 3, b)
        for r, row in enumerate(probes.tokens.tolist())
        for p, b in enumerate(answers(row[:-1]))
        if b
    ]
    found = zip(*(getattr(probes, n).tolist() for n in ("row", "position", "target", "case")),
                strict=True)  # fmt: skip
    assert sorted(found) == expected
    assert len(expected) == len(set(probes.row.tolist())) == 200
    bare = [
        (r, p, b + 3, b)
        for r, row in enumerate(foils.tokens.tolist())
        for p, b in enumerate(row)
        if 1 <= b <= 3 and 0 not in row[: p + 1]
    ]
    found = zip(*(getattr(foils, n).tolist() for n in ("row", "position", "target", "case")),
                strict=True)  # fmt: skip
    assert sorted(found) == bare
    batch = task.sample(300, seed=5)
    assert task.answered(batch).tolist() == [answers(row) for row in batch.tokens.tolist()]


def test_a_model_of_another_vocabulary_and_missing_trigrams_are_refused():
    task = SkipTrigramTask(3)
    task.require_vocabulary(8)
    task.require_each(torch.tensor([3, 1, 2, 1]))
    with refuses("vocabulary-mismatch", d_vocab=10, task="a task of 3 trigrams", wanted=8):
        task.require_vocabulary(10)
    with refuses("case-without-examples", word="trigram", case=2):
        task.require_each(torch.tensor([3, 1]))
    with refuses("no B{case}"):
        task.require_each(torch.tensor([1, 3]), "no B{case}")


def test_check_warns_when_more_than_two_ninths_run_out_of_room():
    """11 positions: a B may close a trigram at 9 of them; twice a ninth is suspicious."""
    batch = TASK.sample(1000, seed=0)
    scored = batch.trigram.numel()
    assert scored > 100
    most = int(2 / 9 * scored / (1 - 2 / 9))  # of scored + cut, at most 2/9 are cut
    room = "run out of room"
    for cut, warned in ((most, False), (most + 1, True)):
        problems = corrupt(batch, truncated=torch.zeros(cut, dtype=torch.long))
        assert any(room in p for p in problems) == warned


def test_few_trigrams_say_nothing_about_room():
    rows = torch.arange(40)
    few = TASK.sample(1000, seed=0).select(rows)
    assert few.trigram.numel() < 60
    for n, warned in ((99, False), (100, True)):
        cut = torch.zeros(n - few.trigram.numel(), dtype=torch.long)
        assert any("out of room" in p for p in corrupt(few, truncated=cut)) == warned


@pytest.mark.parametrize("n_trigrams", [2, 150])
def test_tokens_of_many_samples_are_those_of_the_task(n_trigrams):
    task = SkipTrigramTask(n_trigrams, n_positions=9)
    tokens = sample_tokens(task, 60, [7, 2**40])
    assert tokens.shape == (2, 60, 9)
    for got, seed in zip(tokens, [7, 2**40], strict=True):
        assert (torch.from_numpy(got.astype(np.int64)) == task.sample(60, seed).tokens).all()


def test_check_names_a_token_below_zero(fast):
    below = fast.tokens.clone()
    below[fast.example[0] + 1, -1] = -1
    assert "some tokens are outside the vocabulary 0..7." in corrupt(fast, tokens=below)


def test_check_does_not_count_the_bos_that_every_sequence_starts_with():
    # Of 18 tokens it would be 1/11 + 10/11/18: more than twice a uniform share.
    task = SkipTrigramTask(8)
    assert task.check(task.sample(3000, seed=0)) == []


def test_one_example_of_each_trigram_is_enough_unless_more_are_wanted(fast):
    first = [int((fast.trigram == b).nonzero()[0]) for b in TASK.trigrams]
    columns = ("example", "source_pos", "destination_pos", "trigram")
    few = {name: getattr(fast, name)[first] for name in columns}
    assert not any("is completed" in p for p in corrupt(fast, **few))
    without = {name: column[1:] for name, column in few.items()}
    assert any("trigram 1 is completed 0 times" in p for p in corrupt(fast, **without))


def test_three_batches_are_joined_in_order():
    batch = TASK.sample(60, seed=6)
    parts = [batch.select(torch.arange(at, at + 20)) for at in (0, 20, 40)]
    whole = concatenate(parts)
    for field in dataclasses.fields(TrigramBatch):
        assert torch.equal(getattr(batch, field.name), getattr(whole, field.name)), field.name


def test_tasks_and_batches_are_values(fast):
    for value, name in ((TASK, "n_trigrams"), (fast, "tokens")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)
    assert {TASK: 1}[SkipTrigramTask(3)] == 1


# ---- a task from outside the package


@dataclasses.dataclass(frozen=True)
class Recall(KnownAnswers):
    """A cue (1 or 2) somewhere, noise (0), a question (3) at the end; the answer is the cue + 3."""

    n_positions: int = 6
    d_vocab = 6
    token_names = ("noise", "cue1", "cue2", "?", "answer1", "answer2")
    cases = types.MappingProxyType({1: "cue1", 2: "cue2"})

    def sample(self, n, seed):
        source = generator(seed)
        tokens = torch.zeros(n, self.n_positions, dtype=torch.long)
        cue = torch.randint(1, 3, (n,), generator=source)
        tokens[torch.arange(n), torch.randint(self.n_positions - 2, (n,), generator=source)] = cue
        tokens[:, -2], tokens[:, -1] = 3, cue + 3
        return types.SimpleNamespace(tokens=tokens, cue=cue)

    def probes(self, n, seed):
        batch = self.sample(n, seed)
        at = torch.full((n,), self.n_positions - 2)
        return Probes(batch.tokens, torch.arange(n), at, batch.cue + 3, batch.cue)

    def foils(self, n, seed):
        probes = self.probes(n, seed)
        other = 3 - probes.case
        return dataclasses.replace(probes, target=other + 3, case=other)

    def answered(self, batch):
        answered = torch.zeros_like(batch.tokens)
        answered[:, -2] = batch.cue
        return answered


def test_a_task_from_outside_is_trained_on_judged_and_decomposed():
    task = Recall()
    assert isinstance(task, ProbedTask)
    config = HookedTransformerConfig(
        n_layers=1, d_model=6, d_vocab=6, n_ctx=6, d_head=2, n_heads=2, attn_only=True,
        normalization_type=None, act_fn="relu", device="cpu",
    )  # fmt: skip
    model = attention_only(config)
    with torch.no_grad():
        model.embed.W_E.copy_(torch.eye(6))
        model.unembed.W_U.copy_(torch.eye(6))
        for i, name in enumerate(("W_Q", "W_K", "W_V", "W_O")):
            weight = getattr(model.blocks[0].attn, name)
            weight.copy_(torch.randn(weight.shape, generator=generator(i)))
    model.requires_grad_(False)
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
        model.blocks[0].attn.get_parameter(name).requires_grad_(True)
    how = gi.TrainConfig.toy(steps=300, batch_size=50, log_every=50, device="cpu")
    gi.train_model(model, how, data=task, progress=False)
    found = gi.verdict(model, task, n=200)
    assert found.learnt == [1, 2]
    assert holders(model, task, n=200).accuracy.tolist() == [1.0, 1.0]
    block = gi.GatedAttention.from_attention(model.blocks[0].attn, expansion=2, value_bias=False)
    how = gi.TrainConfig.plain(steps=20, batch_size=50, device="cpu")
    gi.train_gated(model, block, how, data=task, progress=False)
    spliced = gi.splice(model, 0, block)
    assert set(gi.verdict(spliced, task, n=200).holders) == {1, 2}
    with refuses("vocabulary-mismatch", d_vocab=8, wanted=6):
        gi.verdict(gi.load("2H3ST-toy"), task)
