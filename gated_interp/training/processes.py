"""One training in several processes, on one machine or many: data parallel, by ``accelerate``.

Every process holds the whole model and takes an equal share of each part of the batch; gradients
are averaged before the update. A loss is a mean over sequences, so that it and the update are those
of one process with the same batch, whatever the number of processes.
"""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated_interp.anatomy.batch import Batch
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.launch import n_processes
from gated_interp.core.signals import STOPS, Terminated, held_back
from gated_interp.training.config import TrainConfig
from gated_interp.training.device import pick_device


class Group:
    """The processes of one training; this class is one process by itself.

    Attributes:
        rank, size: which process this is, from 0, and how many there are.
        device: where this one trains.

    Examples:
        >>> group = group_for(TrainConfig(device="cpu"))
        >>> group.size, len(group.share(Batch(torch.arange(6).view(3, 2))))
        (1, 3)
    """

    rank, size = 0, 1

    def __init__(self, config: TrainConfig):
        self.device = pick_device(config)

    def share(self, batch: Batch) -> Batch:
        """This process's part of ``batch``, as large as every other's."""
        return batch

    def mean(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The mean over processes; they all get the same."""
        return values

    def alike(self, weights: Iterable[nn.Parameter]) -> None:
        """Give every process the weights of the first."""

    def average(
        self, weights: Iterable[nn.Parameter], loss: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Put the mean over processes into the gradients of ``weights``; give that of ``loss``."""
        return loss

    def listening(self) -> Any:
        """A context in which a signal to one process waits until :meth:`stop`."""
        return nullcontext()

    def stop(self) -> None:
        """Called after each update."""

    def first_here(self) -> Any:
        """A context that one process of each machine runs before the others do."""
        return nullcontext()


class Several(Group):
    """One of the processes that a launcher started, joined by ``accelerate``."""

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        size = n_processes()
        if config.batch_size % size:
            raise GatedInterpError(
                "batch-not-shared-equally", batch_size=config.batch_size, size=size
            )
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise GatedInterpError("accelerate-package-missing") from error
        self.state = PartialState(cpu=self.device.type == "cpu")
        self.rank, self.size = self.state.process_index, self.state.num_processes
        self.device = self.state.device
        self.heard: list[int] = []
        self.asked: Tensor | None = None  # per signal of STOPS, whether any process heard it
        self.asked_before: Tensor | None = None

    def share(self, batch: Batch) -> Batch:
        return batch.chunk(self.size)[self.rank]

    def mean(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        found = values.detach().to(self.device, copy=True)
        with _told_if_others_end():
            torch.distributed.all_reduce(found)
        return (found / self.size).to(values.device)

    def alike(self, weights: Iterable[nn.Parameter]) -> None:
        with _told_if_others_end():
            for weight in weights:
                torch.distributed.broadcast(weight.detach(), 0)

    def average(
        self, weights: Iterable[nn.Parameter], loss: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        # One message for everything: many small ones take longer.
        gradients = [w.grad for w in weights if w.grad is not None]
        heard = loss.new_tensor([number in self.heard for number in STOPS])
        message = self.mean(torch.cat([*(g.flatten() for g in gradients), loss[None], heard]))
        sizes = [g.numel() for g in gradients]
        *parts, found, self.asked = torch.split(message, [*sizes, 1, len(STOPS)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return found[0]

    @contextmanager
    def listening(self) -> Iterator[None]:
        with held_back() as self.heard:
            yield
        if self.heard:  # too late for the others to hear
            signal.raise_signal(self.heard[0])

    def stop(self) -> None:
        # What was asked a step ago: the device need not be waited for.
        asked, self.asked_before = self.asked_before, self.asked
        if asked is not None and bool(asked.any()):
            self.heard.clear()
            terminated = asked.tolist()[STOPS.index(signal.SIGTERM)]
            raise Terminated if terminated else KeyboardInterrupt

    def first_here(self) -> Any:
        return self.state.local_main_process_first()


@contextmanager
def _told_if_others_end() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the connection to it is closed
        raise GatedInterpError("another-process-ended") from error


def group_for(config: TrainConfig) -> Group:
    """The processes that train together: those a launcher started with this one, or it alone."""
    return Several(config) if n_processes() > 1 else Group(config)
