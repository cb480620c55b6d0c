"""What a run's selection may look at, and what is reported of its holders."""

import torch

from gated_interp.analysis.holders import head_roles, what_remains
from gated_interp.analysis.verdict import THRESHOLD, Verdict
from gated_interp.metrics.predictions import leads
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

FIRM_EXAMPLES = 5000


def holder_measures(
    model: HookedTransformer, task: SkipTrigramTask, found: Verdict, *, n: int, seed: int
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
    toy: HookedTransformer, model: HookedTransformer, task: SkipTrigramTask, *, seed: int
) -> float:
    """Of the examples that ``toy`` answers with C, the share ``model`` does, of the worst trigram.

    From 0 to 1; a trigram that ``toy`` never answers does not count.

    Raises:
        GatedInterpError: some trigram never occurs in the examples.
    """
    batch = task.sample_single(FIRM_EXAMPLES, seed).to(model.embed.W_E.device)
    task.require_each(batch.trigram)
    c = batch.trigram + task.n_trigrams
    before, after = (
        leads(each(batch.tokens)[batch.example, batch.destination_pos], c) > 0
        for each in (toy, model)
    )
    answered = [before & (batch.trigram == b) for b in task.trigrams]
    return min(
        (float(after[these].double().mean()) for these in answered if these.any()), default=1.0
    )


@torch.no_grad()
def firm_lead(model: HookedTransformer, task: SkipTrigramTask, *, seed: int) -> float:
    """By how many logits C leads in 99% of the examples of the trigram where that is least.

    Raises:
        GatedInterpError: some trigram never occurs in the examples.
    """
    batch = task.sample_single(FIRM_EXAMPLES, seed).to(model.embed.W_E.device)
    at = model(batch.tokens)[batch.example, batch.destination_pos]
    lead = leads(at, batch.trigram + task.n_trigrams)
    task.require_each(batch.trigram)
    of_each = [lead[batch.trigram == b] for b in task.trigrams]
    return min(float(each.quantile(1 - THRESHOLD)) for each in of_each)
