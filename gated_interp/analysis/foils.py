"""Does a model answer where it must not? What accuracy at probes and holders do not ask."""

import torch

from gated_interp.analysis.holders import EXAMPLES, SEED
from gated_interp.anatomy.batch import token_vocabulary
from gated_interp.metrics.predictions import leads
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import Task, foils_for


@torch.no_grad()
def false_alarms(
    model: HookedTransformer, task: Task, *, n: int = EXAMPLES, seed: int = SEED
) -> dict[int, float]:
    """Of each case the share of its foils at which its answer is on top, 0 to 1.

    A head may hold a case by ablation although what it writes answers foils too, where the layer it
    stands in for did not: a low FVU does not tell, because foils are few.

    Args:
        n, seed: of the sequences that hold the foils.

    Raises:
        GatedInterpError: a task without known answers, a model of another vocabulary, or a case
            without foils.

    Examples:
        >>> from gated_interp.models.analytic import two_readers
        >>> truth = two_readers()
        >>> false_alarms(truth.model, truth.task)
        {1: 0.0, 2: 0.0, 3: 0.0}
    """
    foils = foils_for(task, token_vocabulary(model), n, seed).to(model.embed.W_E.device)
    wrong = leads(model(foils.tokens)[foils.row, foils.position], foils.target) > 0
    return {case: float(wrong[foils.case == case].double().mean()) for case in foils.cases}
