"""Models whose answer is known, for further tasks; see :mod:`~gated_interp.models.analytic`.

- :func:`induction_model`: two layers that repeat what is repeated.
- :func:`marked_relay`: two layers, one of which reads what the other wrote; neither alone answers.
- :func:`wide_pairs`: heads of one dimension that share questions, each too narrow for one.
- :func:`conditional_heads`: two heads, one that answers and one that decides, for any number.
"""

import math

import torch

from gated_interp.models.analytic import (
    ATTEND,
    IGNORE,
    WRITE,
    AnalyticModel,
    blank_for,
    write_and_cancel,
)
from gated_interp.tasks.conditional import ConditionalTask
from gated_interp.tasks.repeated_tokens import RepeatedTokensTask
from gated_interp.tasks.two_layers import TwoLayersTask
from gated_interp.tasks.wide_content import WideContentTask


def induction_model(
    task: RepeatedTokensTask | None = None, sharpness: float = 50.0
) -> AnalyticModel:
    """A previous-token head and an induction head, which reads it by K-composition.

    The residual stream holds the token, the token before it and the position, each in dimensions of
    its own. L0H0 attends from each position to the one before and writes that token where the
    second is read from; L1H0 attends from a token to the keys whose token before is the same, or
    else to BOS, and writes the key's own token.

    L1H0 is the sole owner of every token as long as layer 0 is there, and holds none without it.

    Args:
        task: ``RepeatedTokensTask()`` unless given.
        sharpness: the score of what is attended to, over 0 for the rest.

    Examples:
        >>> truth = induction_model()
        >>> truth.model.cfg.n_layers, truth.layer, truth.owners[3]
        (2, 1, [0])
    """
    task = RepeatedTokensTask() if task is None else task
    v, pos = task.d_vocab, task.n_positions
    d = max(v, pos)
    model = blank_for(
        task, n_layers=2, n_heads=1, d_head=d, embedding="learned", d_model=2 * v + pos
    )
    previous, induction = (block.attn for block in model.blocks)
    score = sharpness * math.sqrt(d)
    t, before, at = torch.arange(v), torch.arange(v) + v, torch.arange(pos) + 2 * v
    with torch.no_grad():
        model.embed.W_E[t, t] = model.unembed.W_U[t, t] = 1
        model.pos_embed.W_pos[torch.arange(pos), at] = 1
        previous.W_Q[0, at, (torch.arange(pos) - 1).clamp(min=0)] = score
        previous.W_K[0, at, torch.arange(pos)] = 1
        previous.W_V[0, t, t] = previous.W_O[0, t, before] = 1
        # Dimension 0 looks for BOS, half as hard as the others for their tokens.
        induction.W_Q[0, t, t] = 2 * score
        induction.W_Q[0, t, 0] = score
        induction.W_K[0, before[1:], t[1:]] = induction.W_K[0, 0, 0] = 1
        induction.W_V[0, t[1:], t[1:]] = 1
        induction.W_O[0, t, t] = WRITE
    every = {case: [0] for case in task.cases}
    return AnalyticModel(model, task, every, every, [], [], [], layer=1, spread=list(task.cases))


def marked_relay(task: TwoLayersTask | None = None, sharpness: float = 50.0) -> AnalyticModel:
    """Two layers of one head: at the marker the first reads the signal, the second what it wrote.

    L0H0 attends from the marker to the signal before it and writes that signal there. L1H0 attends
    from the read-off to the marker, reads the signal and writes its answer. Everything else rests
    on BOS, from which nothing is written.

    Args:
        task: ``TwoLayersTask()`` unless given.
        sharpness: the score of what is attended to, over 0 for the rest.

    Examples:
        >>> truth = marked_relay()
        >>> truth.model.cfg.n_layers, truth.spread
        (2, [1, 2, 3])
    """
    task = TwoLayersTask() if task is None else task
    d = task.n_signals
    model = blank_for(task, n_layers=2, n_heads=1, d_head=d)
    first, second = (block.attn for block in model.blocks)
    case = torch.arange(1, d + 1)
    score = sharpness * math.sqrt(d)
    with torch.no_grad():
        for attn, asks, asked in (
            (first, task.marker, task.signal(case)), (second, task.read_off, task.marker)
        ):  # fmt: skip
            attn.W_Q[0, :, 0] = score
            attn.W_K[0, 0, 0] = 1
            attn.W_Q[0, asks, 1] = 2 * score
            attn.W_K[0, asked, 1] = 1
            attn.W_V[0, task.signal(case), case - 1] = 1
        first.W_O[0, case - 1, task.signal(case)] = 1
        second.W_O[0, case - 1, task.answer(case)] = WRITE
    every = {c: [0] for c in task.cases}
    return AnalyticModel(model, task, every, every, [], [], [], layer=1, spread=list(task.cases))


def wide_pairs(task: WideContentTask | None = None) -> AnalyticModel:
    """Heads of one dimension, as many for each question as its contents need: one for every two.

    The heads of a question attend from it to its source, and elsewhere to anything but that source.
    Each writes one content where it reads it, and another by reading it with the opposite sign, so
    that four contents take two heads. No head has two questions.

    Args:
        task: ``WideContentTask()`` unless given.

    Examples:
        >>> truth = wide_pairs()
        >>> truth.heads_of, truth.distributed, truth.superposed
        ({1: [0, 1], 2: [2, 3]}, [1, 2], [])
    """
    task = WideContentTask() if task is None else task
    each = (task.n_contents + 1) // 2
    model = blank_for(task, n_heads=each * task.n_cases, d_head=1)
    attn = model.blocks[0].attn
    contents = torch.arange(1, task.n_contents + 1)
    heads_of = {c: list(range(each * (c - 1), each * c)) for c in task.cases}
    with torch.no_grad():
        attn.W_K.fill_(IGNORE)
        attn.W_Q.fill_(IGNORE)
        for c, heads in heads_of.items():
            of_c = torch.tensor(c)
            sources = task.source(of_c, contents)
            for h, mine in zip(heads, torch.split(contents, 2), strict=True):
                attn.W_K[h, sources] = attn.W_Q[h, task.question(of_c)] = ATTEND
                for x, sign in zip(mine, (1, -1), strict=False):
                    attn.W_V[h, task.source(of_c, x)] = sign
                    attn.W_O[h, 0, task.answer(x)] = sign * WRITE
    cases = list(task.cases)
    return AnalyticModel(model, task, heads_of, {c: [] for c in cases}, cases, [], [])


def conditional_heads(
    task: ConditionalTask | None = None, sharpness: float = 50.0
) -> AnalyticModel:
    """Two heads that answer any number of questions, ``d_head = n_cases + 2``.

    As :func:`~gated_interp.models.analytic.conditional_pair`: head 0 writes every question's answer
    whether or not an A came, head 1 cancels it unless one did. Head 0 is the sole owner of every
    question, where an A stands; deciding is head 1's work (``composed``); nothing is superposed.

    Args:
        task: ``ConditionalTask()`` unless given.
        sharpness: the score of what is attended to, over 0 for the rest.

    Examples:
        >>> truth = conditional_heads()
        >>> truth.model.cfg.n_heads, truth.owners[6], truth.superposed
        (2, [0], [])
    """
    task = ConditionalTask() if task is None else task
    model = blank_for(task, n_heads=2, d_head=task.n_cases + 2)
    case = torch.arange(1, task.n_cases + 1)
    answers = dict(zip(task.question(case).tolist(), task.answer(case).tolist(), strict=True))
    write_and_cancel(model.blocks[0].attn, 0, task.source, answers, sharpness)
    every = {c: [0] for c in task.cases}
    return AnalyticModel(model, task, every, every, [], list(task.cases), [])
