"""What is asked of a model's logits at a position: the number that switching a head off changes."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.logits import MetricFunction, metric_name
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide


@dataclasses.dataclass(frozen=True)
class Asked:
    """The logit or the log probability of a token, or a metric of one's own.

    Attributes:
        name: how it is called.
        token: whose logit or log probability.
        log: whether it is the log probability (nats).
        metric: in the place of both, a function of logits ``[batch pos d_vocab]`` and tokens
            ``[batch pos]``.
    """

    name: str
    token: int = 0
    log: bool = False
    metric: MetricFunction | None = None

    def of(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch token_pos"],
        position: int,
    ) -> Float[Tensor, " batch"]:
        """Its value for each sequence, read at ``position`` unless the metric reads elsewhere.

        Of a token, logits of that position alone will do; a metric gets those of every token.
        """
        if self.metric is None:
            at = wide(logits[:, position])
            return (at.log_softmax(-1) if self.log else at)[:, self.token]
        # One by one: a metric may be a mean over all the sequences it is given.
        each = []
        for i in range(len(tokens)):
            given = self.metric(logits[i : i + 1], tokens[i : i + 1])
            value = torch.as_tensor(given, device=logits.device).to(wide(logits[:0]))
            if value.shape not in ((), (1,), tokens[:1].shape):
                raise GatedInterpError(
                    "metric-wrong-shape",
                    shape=tuple(value.shape),
                    rows=(1,),
                    wanted=tuple(tokens[:1].shape),
                )
            each.append(value.reshape(-1)[position if value.ndim == 2 else 0])
        return torch.stack(each)


def own_metric(metric: MetricFunction) -> Asked:
    """A metric of the reader's, by its function's name."""
    return Asked(metric_name(metric), metric=metric)
