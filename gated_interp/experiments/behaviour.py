"""What a run's selection may look at, and what is reported of its holders."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.roles import head_roles, what_remains
from gated_interp.analysis.verdict import THRESHOLD, Verdict
from gated_interp.anatomy.batch import token_vocabulary
from gated_interp.metrics.predictions import leads
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import ProbedTask, probes_for

FIRM_EXAMPLES = 5000


def holder_measures(
    model: HookedTransformer, task: ProbedTask, found: Verdict, *, n: int, seed: int
) -> dict[str, float]:
    """What the holders write for, and what is left without them and with nothing else.

    The columns of :class:`~gated_interp.experiments.seeds.GatedOutcome` that speak of holders, on
    ``n`` ordinary sequences of ``seed``.
    """
    roles = head_roles(model, task, found.holders, n=n, seed=seed)
    roles = roles[roles["trigram"].notna()]
    measured = {name: float(roles[name].mean()) for name in ("purity", "open_there")}
    names = {"holders": "without_holders", "others": "only_holders"}
    for row in what_remains(model, task, found.holders, n=n, seed=seed).to_dict("records"):
        if row["ablated"] in names:
            for column in ("fvu", "kl", "accuracy"):
                measured[f"{column}_{names[row['ablated']]}"] = float(row[column])
    return measured


@torch.no_grad()
def kept_answers(
    toy: HookedTransformer, model: HookedTransformer, task: ProbedTask, *, seed: int
) -> float:
    """Of the examples that ``toy`` answers with C, the share ``model`` does, of the worst trigram.

    From 0 to 1; a trigram that ``toy`` never answers does not count.
    """
    trigram, before = _example_leads(toy, task, seed)
    _, after = _example_leads(model, task, seed)
    answered = [(before > 0) & (trigram == b) for b in task.cases]
    kept = (float((after[these] > 0).double().mean()) for these in answered if these.any())
    return min(kept, default=1.0)


@torch.no_grad()
def firm_lead(model: HookedTransformer, task: ProbedTask, *, seed: int) -> float:
    """By how many logits C leads in 99% of the examples of the trigram where that is least."""
    trigram, lead = _example_leads(model, task, seed)
    return min(float(lead[trigram == b].quantile(1 - THRESHOLD)) for b in task.cases)


def _example_leads(
    model: HookedTransformer, task: ProbedTask, seed: int
) -> tuple[Int[Tensor, " example"], Float[Tensor, " example"]]:
    """The trigram of each example that completes one, and by how many logits its C leads there."""
    probes = probes_for(task, token_vocabulary(model), FIRM_EXAMPLES, seed)
    probes = probes.to(model.embed.W_E.device)
    lead = model.embed.W_E.new_empty(len(probes))
    for position in sorted(set(probes.position.tolist())):  # what comes later is not read
        mine = probes.position == position
        logits = model(probes.tokens[probes.row[mine], : position + 1])[:, -1]
        lead[mine] = leads(logits, probes.target[mine])
    return probes.case, lead
