"""What is asked of a model's logits at a position: the number that switching a head off changes."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.analysis.logits import MetricFunction, metric_name
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide

KINDS = ("the next token", "a token", "a difference", "KL", "the loss on a span")
"""What a reader may ask, in the words of the page; a link says the first words of :data:`SAID`."""
SAID = dict(zip(("token", "difference", "kl", "loss"), KINDS[1:], strict=True))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked: a number that a model's logits give.

    One of the logit or the log probability of a token, the difference of two logits, the KL
    divergence from the model with every head on, the loss on a span, and a metric of one's own.

    Attributes:
        name: how it is called.
        token: whose logit or log probability.
        log: whether it is the log probability (nats).
        against: a token whose logit is taken away.
        kl: whether it is the KL divergence, in the place of all these.
        span: the first and the last position of the tokens whose mean loss it is, likewise.
        metric: likewise, a function of logits ``[batch pos d_vocab]`` and tokens ``[batch pos]``.
    """

    name: str
    token: int = 0
    log: bool = False
    against: int | None = None
    kl: bool = False
    span: tuple[int, int] | None = None
    metric: MetricFunction | None = None

    @property
    def tokens(self) -> list[int]:
        """The tokens that are asked for by name."""
        if self.metric is not None or self.kl or self.span is not None:
            return []
        return [self.token] if self.against is None else [self.token, self.against]

    def where(self, position: int) -> slice:
        """The positions whose logits it needs, where it is read at ``position``."""
        if self.metric is not None:
            return slice(None)
        if self.span is not None:
            return slice(self.span[0] - 1, self.span[1])
        return slice(position, position + 1)

    def of(
        self,
        logits: Float[Tensor, "batch some_pos d_vocab"],
        tokens: Int[Tensor, "batch token_pos"],
        position: int,
        intact: Float[Tensor, "some_pos d_vocab"],
    ) -> Float[Tensor, " batch"]:
        """Its value for each sequence.

        Args:
            logits: at the positions of :meth:`where`.
            intact: those with every head on, at the same positions.
        """
        if self.span is not None:
            following = tokens[:, self.span[0] : self.span[1] + 1, None]
            return -wide(logits).log_softmax(-1).gather(-1, following)[..., 0].mean(1)
        if self.metric is None:
            at, before = wide(logits[:, 0]), wide(intact[0])
            if self.kl:
                before = before.log_softmax(-1)
                return (before.exp() * (before - at.log_softmax(-1))).sum(-1)
            value = (at.log_softmax(-1) if self.log else at)[:, self.token]
            return value if self.against is None else value - at[:, self.against]
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
