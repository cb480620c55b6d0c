"""The verdict, against brute force over every subset of heads."""

import math
from itertools import combinations

import pytest
import torch
from closeness import assert_close
from refusals import refuses

from gated_interp.analysis import breaking
from gated_interp.analysis.verdict import (
    Verdict,
    sole_owners,
    verdict,
    verdict_from_writes,
    worst_leads,
)
from gated_interp.analysis.writes import head_writes
from gated_interp.core.seeds import generator
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.replacements.splice import splice
from gated_interp.tasks import SkipTrigramTask
from gated_interp.tasks.task import Probes


def kept_sets(heads: int, h: int) -> list[list[int]]:
    """Every set of heads that holds ``h`` and lacks at least one other; alone, ``h`` itself."""
    others = [o for o in range(heads) if o != h]
    sizes = range(max(len(others), 1))
    return [[h, *kept] for size in sizes for kept in combinations(others, size)]


def brute_owners(writes: torch.Tensor, c: int, threshold: float = 0.99) -> list[int]:
    """The definition itself: one sum, one argmax and one share per subset."""
    heads = writes.shape[1]

    def holds(kept: list[int]) -> bool:
        total = writes[:, kept].sum(1)
        return (total.argmax(-1) == c).double().mean().item() > threshold

    return [h for h in range(heads) if all(holds(kept) for kept in kept_sets(heads, h))]


def random_writes(seed: int, examples: int, heads: int, d_vocab: int, c: int) -> torch.Tensor:
    """Writes of which some heads strongly prefer ``c``, others do not, and some oppose it."""
    source = generator(seed)
    writes = torch.randn(examples, heads, d_vocab, generator=source).double()
    strength = torch.randint(-1, 7, (heads,), generator=source).double()
    scale = torch.rand(heads, generator=source).double()
    writes *= scale[:, None]
    writes[:, :, c] += strength
    return writes


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 7, 8])
def test_owners_of_random_writes_are_those_of_brute_force(heads):
    found, cases = 0, 40 if heads < 7 else 12
    for seed in range(cases):
        writes = random_writes(1000 * heads + seed, 37, heads, d_vocab=11, c=5)
        for threshold in (0.99, 0.8, 0.5):
            wanted = brute_owners(writes, 5, threshold)
            assert sole_owners(writes, 5, threshold) == wanted, (heads, seed, threshold)
            found += len(wanted)
    # The comparison means something: some heads own, and not all do.
    assert 0 < found < 3 * cases * heads


def test_a_head_owns_although_every_example_has_a_subset_that_breaks_it():
    # Head 0 leads by 1. Head o takes 2 away in example o - 1 alone and adds 5 elsewhere, so keeping
    # heads 0 and o breaks one example of four, and no set of kept heads breaks two.
    heads, examples = 5, 4
    lead = torch.full((examples, heads), 5.0)
    lead[:, 0] = 1
    lead[torch.arange(4), torch.arange(1, 5)] = -2
    writes = torch.stack([lead, torch.zeros_like(lead)], -1)  # C is token 0
    assert (worst_leads(lead[..., None])[:, 0, 0] <= 0).all()
    for threshold, owns in ((0.7, True), (0.8, False)):
        owners = sole_owners(writes, 0, threshold)
        assert owners == brute_owners(writes, 0, threshold)
        assert (0 in owners) is owns


def test_worst_leads_by_hand():
    # Three heads lead token 1 by 3, -1 and -2.
    # Head 0 stays: keeping both others gives 0, but one must go; the milder goes: 3 - 2 = 1.
    # Head 1 stays: of 0 and 2, head 0 goes: -1 - 2 = -3. Head 2 stays: -2 - 1 = -3.
    lead = torch.tensor([[[3.0], [-1.0], [-2.0]]])
    assert worst_leads(lead).flatten().tolist() == [1, -3, -3]
    # So head 0 owns what the model, with all heads, does not know: 3 - 1 - 2 = 0.
    writes = torch.cat([lead, torch.zeros_like(lead)], -1)
    assert sole_owners(writes, 0) == brute_owners(writes, 0) == [0]


def test_worst_leads_are_the_least_over_all_subsets():
    for heads in range(1, 7):
        lead = torch.randn(5, heads, 3, generator=generator(heads)).double()
        for h in range(heads):
            totals = [lead[:, kept].sum(1) for kept in kept_sets(heads, h)]
            wanted = torch.stack(totals).amin(0)
            assert_close(worst_leads(lead)[:, h], wanted)


def test_a_single_head_owns_what_it_knows():
    lead = torch.tensor([[[2.0, 0.0]], [[1.0, 0.0]], [[3.0, 0.0]]])
    assert sole_owners(lead, 0) == [0]
    lead[1] = torch.tensor([[0.0, 1.0]])
    assert sole_owners(lead, 0) == []
    assert sole_owners(lead, 0, threshold=0.6) == [0]


@pytest.mark.parametrize(("failures", "owns"), [(0, True), (1, False)])
def test_more_than_99_percent_is_meant(failures, owns):
    # 99 of 100 is not more than 99%.
    lead = torch.ones(100, 2, 1)
    lead[:failures, 0] = -3
    writes = torch.cat([lead, torch.zeros_like(lead)], -1)
    assert (0 in sole_owners(writes, 0)) is owns


def test_64_heads_answer():
    # Head 0 leads by 100 in all examples; the others take up to 1 away each, so at most 63.
    source = generator(1)
    lead = -torch.rand(1000, 64, 17, generator=source)
    lead[:, 0] = 100
    writes = torch.cat([lead, torch.zeros_like(lead[..., :1])], -1)
    writes = -writes.flip(-1)  # C writes 0 and is token 0; each other token -lead
    assert sole_owners(writes, 0) == [0]
    lead[:, 0] = 20
    writes = -torch.cat([lead, torch.zeros_like(lead[..., :1])], -1).flip(-1)
    assert sole_owners(writes, 0) == []


def test_64_heads_of_which_each_breaks_another_example_answer():
    # As with five heads above: 63 examples, each broken by some subset, none by the same one.
    lead = torch.full((63, 64), 5.0)
    lead[:, 0] = 1
    lead[torch.arange(63), torch.arange(1, 64)] = -2
    writes = torch.stack([lead, torch.zeros_like(lead)], -1)
    assert 0 in sole_owners(writes, 0, threshold=0.9)
    assert 0 not in sole_owners(writes, 0)


def test_64_heads_on_the_edge_answer():
    # Random writes at the strength where a search over subsets of heads alone takes minutes:
    # sets break single examples, hardly any set breaks more than the three of 333 allowed.
    writes = 0.2 * torch.randn(333, 64, 17, generator=generator(1))
    writes[:, 0, 0] += 2.6 * 0.2 * 0.56 * 32
    assert sole_owners(writes, 0) == [0]
    # By the bound per example alone head 0 would not own.
    lead = writes[:, :, :1] - writes[:, :, 1:]
    assert (worst_leads(lead)[:, 0] <= 0).any(-1).sum() > 3


@pytest.mark.parametrize("heads", [2, 4, 6])
def test_the_proof_alone_agrees_with_brute_force(heads, monkeypatch):
    # Without the search for a likely subset, branch and bound has to find or refute each.
    monkeypatch.setattr(breaking, "_found", lambda items, allowed: False)
    for seed in range(15):
        writes = random_writes(500 * heads + seed, 29, heads, d_vocab=7, c=3)
        for threshold in (0.99, 0.9, 0.6):
            assert sole_owners(writes, 3, threshold) == brute_owners(writes, 3, threshold)


# Real models.


def manual_model(extra_heads: int = 0) -> HookedTransformer:
    """The post's manual 2H3ST model, rebuilt from its rule.

    Head 0 attends to A when the query is B1 or B3 and writes +2 C1, -2 C2, +1 C3; head 1 does so
    for B2 or B3 and writes -2 C1, +2 C2, +1 C3. A scores -100 at every other query, so that both
    attend away; no other token has a value.
    """
    model = build_toy(ToyConfig(n_trigrams=3, n_heads=2 + extra_heads))
    attn = model.blocks[0].attn
    A, B1, B2, B3, C1, C2, C3 = range(7)
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.zero_()
        for head, queries, writes in ((0, (B1, B3), (2, -2, 1)), (1, (B2, B3), (-2, 2, 1))):
            attn.W_Q[head] = -1
            attn.W_Q[head, list(queries)] = 1
            attn.W_K[head, A] = 100
            attn.W_V[head, A] = 1
            attn.W_O[head, 0, [C1, C2, C3]] = torch.tensor(writes, dtype=torch.float32)
    return model


def test_the_manual_model_has_its_published_verdict():
    found = verdict(manual_model(), SkipTrigramTask(3))
    assert found.to_json() == {
        "learnt": [1, 2, 3],
        "holders": {"1": [], "2": [], "3": []},
        "clean": False,
        "owners": {"1": [0], "2": [1], "3": []},
        "distributed": [3],
        "not_learnt": [],
    }
    assert not found.success
    assert found.accuracy == {1: 1.0, 2: 1.0, 3: 1.0}


def hooked_owners(model: HookedTransformer, batch, trigram: int, c: int) -> list[int]:
    """The definition through hooks: heads removed at ``hook_z``, the layer's write read off."""
    heads = model.blocks[0].attn.W_O.shape[0]
    rows = (batch.trigram == trigram).nonzero().flatten()

    def holds(kept: list[int]) -> bool:
        gone = torch.tensor([h for h in range(heads) if h not in kept], dtype=torch.long)
        written = []
        model.run_with_hooks(
            batch.tokens[rows],
            fwd_hooks=[
                ("blocks.0.attn.hook_z", lambda z, hook: z.index_fill(2, gone, 0.0)),
                ("blocks.0.hook_attn_out", lambda out, hook: written.append(out)),
            ],
        )
        at = written[0][torch.arange(len(rows)), batch.destination_pos[rows]]
        return (at.argmax(-1) == c).double().mean().item() > 0.99

    return [h for h in range(heads) if all(holds(kept) for kept in kept_sets(heads, h))]


@pytest.mark.parametrize("extra_heads", [0, 1, 3, 6])
def test_verdicts_of_real_models_are_those_of_brute_force_through_hooks(extra_heads):
    task, n = SkipTrigramTask(3), 60
    batch = task.sample_single(n, 42)
    owned = 0
    for seed in range(3 if extra_heads < 6 else 1):
        model = manual_model(extra_heads)
        source = generator(100 * extra_heads + seed)
        attn = model.blocks[0].attn
        with torch.no_grad():
            for name in ("W_Q", "W_V", "W_O", "b_V", "b_Q"):
                weight = getattr(attn, name)
                weight += 0.2 * torch.randn(weight.shape, generator=source)
        found = verdict(model, task, n=n)
        logits = model(batch.tokens)[batch.example, batch.destination_pos]
        right = logits.argmax(-1) == batch.trigram + 3
        learnt = [b for b in task.trigrams if right[batch.trigram == b].double().mean() > 0.99]
        wanted = {
            b: hooked_owners(model, batch, b, task.completion(b)) if b in learnt else []
            for b in task.trigrams
        }
        assert found.owners == wanted
        owned += sum(map(len, wanted.values()))
        assert found.learnt == learnt
        assert found.distributed == [b for b in learnt if not wanted[b]]
        assert sorted(found.learnt + found.not_learnt) == [1, 2, 3]
    assert owned > 0


def test_an_equal_block_has_the_verdict_of_the_model_it_stands_in_for():
    model = manual_model()
    block = GatedAttention.from_attention(
        model.blocks[0].attn, 1, init="duplicate", noise=0, normalize_weights=False
    )
    block.force_gates(1)
    spliced = splice(model, 0, block)
    assert verdict(spliced, SkipTrigramTask(3)) == verdict(model, SkipTrigramTask(3))


def test_head_writes_sum_to_the_logits(toy):
    batch = toy.toy_config.task.sample(50, 1)
    writes, logits = head_writes(toy, batch.tokens, batch.example, batch.destination_pos)
    one_hot = torch.nn.functional.one_hot(batch.trigram, 8)
    assert_close(writes.sum(1) + one_hot, logits)
    assert writes.shape == (len(batch.example), 2, 8)


def test_success_means_learnt_and_owned_and_not_distributed():
    owned = {1: [0], 2: [1]}
    assert Verdict([1, 2], owned, [], [], {}, {}).success
    assert not Verdict([1], owned, [], [2], {}, {}).success
    assert not Verdict([1, 2], {1: [0], 2: []}, [2], [], {}, {}).success


def test_models_the_verdict_cannot_read_are_refused(toy):
    with refuses("vocabulary-mismatch", d_vocab=8, task="a task of 4 trigrams", wanted=10):
        verdict(toy, SkipTrigramTask(4))
    toy.cfg.normalization_type, toy.ln_final = "LN", torch.nn.Module()
    with refuses("logits-not-a-sum"):
        verdict(toy, SkipTrigramTask(3))


def probes_of(cases, task):
    """Probes of these trigrams; where they are in which sequence does not matter here."""
    case = torch.tensor(cases)
    nowhere = torch.zeros_like(case)
    tokens = torch.zeros(1, task.n_positions, dtype=torch.long)
    return Probes(tokens, nowhere, nowhere, case + task.n_trigrams, case)


def test_a_trigram_that_never_occurs_is_refused(toy):
    with refuses("case-without-examples", word="trigram"):
        verdict(toy, SkipTrigramTask(3), n=2)


def test_a_task_without_known_answers_is_refused_in_a_sentence(toy):
    class Text:
        d_vocab, n_positions, token_names = 8, 11, ["x"] * 8

        def sample(self, n, seed):
            return SkipTrigramTask(3).sample(n, seed)

    with refuses("task-without-answers", task="Text"):
        verdict(toy, Text())


def test_answers_that_differ_within_a_case_are_each_compared_with_their_own():
    # Head 0 writes each example's own target; head 1 the target of example 0 to both.
    writes = torch.zeros(2, 2, 4)
    writes[0, :, 1], writes[1, 0, 2], writes[1, 1, 1] = 1, 1, 0.5
    assert sole_owners(writes, torch.tensor([1, 2])) == [0]
    assert sole_owners(writes[:1], torch.tensor([1])) == sole_owners(writes[:1], 1) == [0, 1]


def test_accuracy_is_a_share_of_the_trigrams_own_examples():
    # Trigram 1 (C is 4): two of three right. Trigram 2 (C is 5): one of one. Trigram 3: none.
    logits = torch.zeros(5, 8)
    logits[[0, 1, 2, 3, 4], [4, 4, 0, 5, 0]] = 1
    probes = probes_of([1, 1, 1, 2, 3], SkipTrigramTask(3))
    found = verdict_from_writes(logits[:, None], logits, probes)
    assert math.isclose(found.accuracy[1], 2 / 3)
    assert (found.accuracy[2], found.accuracy[3]) == (1, 0)
    assert (found.learnt, found.not_learnt, found.owners[2]) == ([2], [1, 3], [0])


def test_removing_nothing_breaks_no_owner():
    """Of 150 examples one may break. Two do, each under a set of its own; only with *nothing*
    removed do both, and that is no removal: head 0 leads by 1, the others hurt one and help one.
    """
    lead = torch.ones(150, 3)
    lead[0] = torch.tensor([1.0, -2.0, 0.5])
    lead[1] = torch.tensor([1.0, 0.5, -2.0])
    assert (lead[:2].sum(1) <= 0).all()
    writes = torch.stack([lead, torch.zeros_like(lead)], -1)
    assert sole_owners(writes, 0) == [0]
    # A third that breaks under the set of the first makes two.
    writes[2] = writes[0]
    assert sole_owners(writes, 0) == []


def two_of_150(first, second, heads):
    """Items 0 and 1 with these leads of the other heads; head 0 leads by 0.25 wherever it is."""
    return breaking.Items(
        alone=torch.full((2,), 0.25),
        others=torch.tensor([first, second]).view(2, heads),
        example=torch.arange(2),
        n_examples=150,
    )


def test_the_search_goes_on_from_a_set_to_its_neighbours():
    # The worst set for each item breaks that item alone; keeping heads 1 *and* 2 breaks both.
    items = two_of_150([-2.0, 0.5, 5.0], [0.5, -2.0, 5.0], 3)
    stays = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])
    assert items.broken_by(stays).tolist() == [1, 1, 2]
    assert breaking._found(items, allowed=1)
    assert not breaking._found(items, allowed=2)


@pytest.mark.parametrize(("help", "left"), [(5.0, []), (1.5, [0, 1])])
def test_items_that_no_set_breaks_together_go(help, left):
    # On average over both items a head writes (help - 2) / 2: harm in the second case only.
    items = two_of_150([-2.0, help], [help, -2.0], 2)
    every = torch.arange(2)
    index, kept = breaking._compatible(items, every, items.alone, items.others, allowed=1)
    assert index.tolist() == left
    assert kept.tolist() == [0.25] * len(left)


def test_items_that_tie_on_average_stay():
    items = two_of_150([-0.25, 0.0], [-0.25, 0.0], 2)
    every = torch.arange(2)
    index, _ = breaking._compatible(items, every, items.alone, items.others, allowed=1)
    assert index.tolist() == [0, 1]


def test_a_branch_that_ends_leaves_the_others():
    # Keeping the first head hurts on average but saves item 1, so only sets without it break both.
    items = two_of_150([-10.0, -1.0, 5.0], [8.0, -1.0, 5.0], 3)
    stays = torch.tensor([[1.0, 1, 0], [0, 1, 0]])
    assert items.broken_by(stays).tolist() == [1, 2]
    assert breaking._proved(items, allowed=1)
    assert not breaking._proved(items, allowed=2)
