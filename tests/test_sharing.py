"""How heads share what a layer writes: numbers worked out by hand."""

import pytest
import torch
from refusals import refuses

import gated_interp as gi
from gated_interp.analysis.sharing import HeadSharing, head_sharing
from gated_interp.tasks.task import probes_for

# Two heads at three positions. At the first they write (3, 0) and (0, 4): the write is (3, 4).
# At the second (2, 0) and (-1, 0). At the third the second head is silent.
BY_HAND = HeadSharing(
    length=torch.tensor([[[3.0, 4.0], [2.0, 1.0], [5.0, 0.0]]]),
    share=torch.tensor([[[9 / 25, 16 / 25], [2.0, -1.0], [1.0, 0.0]]]),
    write=torch.tensor([[5.0, 1.0, 5.0]]),
    counted=torch.tensor([[True, True, True]]),
    centred=False,
)


def test_measures_by_hand() -> None:
    assert BY_HAND.participation.tolist()[0] == pytest.approx([49 / 25, 9 / 5, 1.0])
    assert BY_HAND.cancellation.tolist()[0] == pytest.approx([2 / 7, 2 / 3, 0.0])
    assert BY_HAND.top_share.tolist()[0] == pytest.approx([16 / 25, 2.0, 1.0])
    table = BY_HAND.table().set_index("measure")
    assert table.loc["alone", "mean"] == pytest.approx(2 / 3)
    assert table.loc["participation", "median"] == pytest.approx(9 / 5)
    assert set(table["n"]) == {3}


def test_positions_are_chosen() -> None:
    table = BY_HAND.table(torch.tensor([[True, False, False]])).set_index("measure")
    assert table.loc["participation", "mean"] == pytest.approx(49 / 25)
    assert set(table["n"]) == {1}
    with refuses("nothing-written"):
        BY_HAND.table(torch.zeros(1, 3, dtype=torch.bool))
    with refuses("bad-where"):
        BY_HAND.table(torch.ones(2, 3, dtype=torch.bool))


def test_a_block_parts_what_a_toy_shares() -> None:
    block = gi.load("2H3ST-gated")
    probes = probes_for(block.task, block.cfg.d_vocab, 60, 0)
    asked = torch.zeros_like(probes.tokens, dtype=torch.bool)
    asked[torch.arange(len(asked)), probes.position] = True
    sides = (head_sharing(m, 0, probes.tokens).table(asked) for m in (block, gi.unsplice(block)))
    after, before = (side.set_index("measure") for side in sides)
    assert after.loc["alone", "mean"] > before.loc["alone", "mean"] + 0.2
    assert after.loc["cancellation", "mean"] < before.loc["cancellation", "mean"]


def test_padding_and_first_positions_are_not_counted() -> None:
    toy = gi.load("2H3ST-toy")
    tokens = toy.task.sample(6, seed=2).tokens
    mask = torch.ones_like(tokens)
    mask[:, :4] = 0
    padded = head_sharing(toy, 0, tokens, attention_mask=mask, centred=True)
    plain = head_sharing(toy, 0, tokens[:, 4:], centred=True)
    assert int(padded.counted.sum()) == 6 * (tokens.shape[1] - 5)
    assert torch.allclose(padded.share[:, 5:], plain.share[:, 1:], atol=1e-4)
    assert int(head_sharing(toy, 0, tokens, first=True).counted.sum()) == tokens.numel()
