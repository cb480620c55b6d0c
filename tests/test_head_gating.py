"""Causal head gating, on a model in which each head's role is plain."""

import pytest
import torch
from refusals import refuses
from test_atp_star import attention_only
from test_attribute import difference

import gated_interp as gi
from gated_interp.analysis.attribute.gating import CLAMP, RATE, WEIGHT, head_gates
from gated_interp.analysis.attribute.prompts import Prompts

ROLES = {"L0H0": "facilitating", "L0H1": "irrelevant", "L0H2": "interfering", "L0H3": "irrelevant"}
TOKENS = torch.full((4, 5), 3)


def model():
    """Head 0 says the token that comes, 2 another; 1 writes nothing, 3 what nobody reads."""
    made = attention_only(n_layers=1, n_heads=4)
    with torch.no_grad():
        attn = made.blocks[0].attn
        made.embed.W_E[3, 3] = 1
        attn.b_V[1:, 0] = 1
        attn.W_V[0, 3, 0] = 1
        attn.W_O[0, 0, 0], attn.W_O[2, 0, 1] = 3, 3
        attn.W_O[3, 0, 2] = 8
        made.unembed.W_U[0, 3], made.unembed.W_U[1, 7] = 1, 1
    return made


@pytest.mark.parametrize("seed", [0, 1])
def test_roles_are_those_that_the_heads_have(seed):
    found = gi.attribute_heads(model(), TOKENS, method="causal head gating", seed=seed)
    assert dict(zip(found.roles["node"], found.roles["role"], strict=True)) == ROLES
    assert found.names == list(ROLES)
    scores = dict(zip(found.names, found.mean.tolist(), strict=True))
    assert scores["L0H0"] > 0.7
    assert scores["L0H2"] < -0.9
    assert abs(scores["L0H1"]) < 0.1
    assert found.roles[["facilitating", "irrelevant", "interfering"]].sum(axis=1).min() > 0.9
    assert (found.forward, found.backward) == (301, 300)
    assert found.table()["score_low"].isna().all()


def test_a_function_says_by_its_change_which_way_is_worse():
    """On other tokens head 0 writes nothing: the lead falls, and its negative rises."""
    for sign in (1, -1):
        found = gi.attribute_heads(
            model(),
            TOKENS,
            TOKENS + 1,
            lambda logits, tokens, sign=sign: sign * difference(logits, tokens),
            method="causal head gating",
        )
        assert dict(zip(found.roles["node"], found.roles["role"], strict=True)) == ROLES
    with refuses("no-corrupted-prompts"):
        gi.attribute_heads(model(), TOKENS, metric=difference, method="causal head gating")


def test_gates_are_those_of_descent_by_hand():
    """Three steps of each fit, with the penalty and the gates in one expression."""
    mine = model().requires_grad_(False)

    def descend(start, weight):
        logits = start.clone().requires_grad_()
        adam = torch.optim.Adam([logits], lr=RATE)
        for _ in range(3):
            gates = logits.sigmoid()
            hook = ("blocks.0.attn.hook_z", lambda z, hook, g=gates: z * g[:, None])
            out = mine.run_with_hooks(TOKENS, fwd_hooks=[hook])[:, :-1].log_softmax(-1)
            loss = -out.gather(-1, TOKENS[:, 1:, None]).mean()
            adam.zero_grad()
            (loss - weight * logits.clamp(-CLAMP, CLAMP).mean()).backward()
            adam.step()
        return logits.detach()

    start = torch.rand(4, generator=torch.Generator().manual_seed(7)).logit()
    start = descend(start, 0.0)
    wanted = [descend(start, w).sigmoid() for w in (WEIGHT, -WEIGHT)]
    for found, expected in zip(head_gates(Prompts(mine, TOKENS, None, "loss"), 3, 7), wanted,
                               strict=True):  # fmt: skip
        assert torch.allclose(found, expected, atol=1e-4)
