"""One model on the bench: what it does with an example while some of its heads are off."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from gated_interp.analysis.ablation import Method, ablated
from gated_interp.analysis.heads import head_counts, head_name
from gated_interp.analysis.writes import head_writes, require_linear
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.metrics.predictions import leads
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import gated_block
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

# Sub-streams of the explorer's seed.
ACCURACY_SEQUENCES = 100  # per trigram
REFERENCE_SEQUENCES = 200


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What one model does with one example, read at one position.

    Attributes:
        attention: ``[head_index query_pos key_pos]``, rows sum to 1.
        gates: ``[head_index query_pos key_pos]``, zero for keys behind the query; ``None`` for
            ordinary attention.
        writes: ``[head_index d_vocab]``, what each head (or what its ablation left in its place)
            writes to the logits at the position.
        direct: ``[d_vocab]``, what reaches the logits there past the heads: the token's own
            embedding and the biases. ``writes.sum(0) + direct`` are the logits.
        logits: ``[d_vocab]``, at the position.
        prediction, probability: the most likely next token, and how likely.
        intact_prediction: the same with every head on.
        accuracy, intact_accuracy: per trigram the share of sequences in which its C is strictly
            on top at its B.
    """

    attention: Float[np.ndarray, "head_index query_pos key_pos"]
    gates: Float[np.ndarray, "head_index query_pos key_pos"] | None
    writes: Float[np.ndarray, "head_index d_vocab"]
    direct: Float[np.ndarray, " d_vocab"]
    logits: Float[np.ndarray, " d_vocab"]
    prediction: int
    probability: float
    intact_prediction: int
    accuracy: dict[int, float]
    intact_accuracy: dict[int, float]


class Bench:
    """A one-layer model with the batches its readings need.

    Args:
        model: one attention-only layer without normalisation, gated or not.
        task: of the same vocabulary.
        seed: of the sequences that accuracy, ``mean``, ``resample`` and ``optimal`` use.

    Raises:
        GatedInterpError: a model that is not linear in its heads or has another vocabulary.
    """

    def __init__(self, model: HookedTransformer, task: SkipTrigramTask, seed: int = 0):
        require_linear(model)
        task.require_vocabulary(model.cfg.d_vocab)
        if model.cfg.n_ctx < task.n_positions:
            raise GatedInterpError(
                f"the task has {task.n_positions} positions; the model reads {model.cfg.n_ctx}."
            )
        self.model, self.task = model, task
        self.n_heads = head_counts(model)[0]
        self.head_names = [head_name((0, h)) for h in range(self.n_heads)]
        self.gated = gated_block(model) is not None
        self.device = model.embed.W_E.device
        n = ACCURACY_SEQUENCES * task.n_trigrams
        self.batch = task.sample_single(n, derive(seed, Stream.EXPLORER_ACCURACY)).to(self.device)
        reference = task.sample(REFERENCE_SEQUENCES, derive(seed, Stream.EXPLORER_REFERENCE)).tokens
        self.reference = reference.to(self.device)
        self.resample_seed = derive(seed, Stream.EXPLORER_RESAMPLE)
        self.write_limit, self.gate_limit = self._limits()
        self._accuracies: dict[tuple[frozenset[int], Method], dict[int, float]] = {}

    @torch.no_grad()
    def read(
        self,
        tokens: Sequence[int],
        position: int,
        off: frozenset[int] = frozenset(),
        method: Method = "zero",
    ) -> Reading:
        """What the model does with ``tokens`` while the heads in ``off`` are ablated.

        Raises:
            GatedInterpError: a head or method that is not there, or tokens it cannot read.
        """
        row = torch.tensor([list(tokens)], device=self.device)
        names = ["hook_pattern", "hook_z"] + ["hook_gate"] * self.gated
        hooks = {name: f"blocks.0.attn.{name}" for name in names}
        intact = self.model(row)[0, position]
        if off:
            accuracy, logits, cache = self._without(row, off, method, list(hooks.values()))
        else:
            accuracy = self._accuracy(off, method)
            logits, cache = self.model.run_with_cache(row, names_filter=list(hooks.values()))
        W_OU = self.model.blocks[0].attn.W_O @ self.model.unembed.W_U
        writes = torch.einsum("hd,hdv->hv", cache[hooks["hook_z"]][0, position], W_OU)
        at = logits[0, position]
        gates = cache[hooks["hook_gate"]][0].tril() if self.gated else None
        prediction = int(at.argmax())
        return Reading(
            attention=_numpy(cache[hooks["hook_pattern"]][0]),
            gates=None if gates is None else _numpy(gates),
            writes=_numpy(writes),
            direct=_numpy(at - writes.sum(0)),
            logits=_numpy(at),
            prediction=prediction,
            probability=float(at.softmax(-1)[prediction]),
            intact_prediction=int(intact.argmax()),
            accuracy=accuracy,
            intact_accuracy=self._accuracy(frozenset(), "zero"),
        )

    @torch.no_grad()
    def _limits(self) -> tuple[float, float]:
        """The largest write or logit, and the widest gate (at least 1), at the B of every example.

        A colour then means the same for every example and whichever heads are off.
        """
        batch = self.batch
        names = ["blocks.0.attn.hook_gate"] * self.gated
        writes, logits = head_writes(self.model, batch.tokens, batch.example, batch.destination_pos)
        _, cache = self.model.run_with_cache(batch.tokens, names_filter=names)
        widest = max([1.0, *(float(cache[name].max()) for name in names)])
        return float(max(writes.abs().max(), logits.abs().max())), widest

    def _without(
        self, row: Tensor, off: frozenset[int], method: Method, hooks: list[str]
    ) -> tuple[dict[int, float], Tensor, ActivationCache]:
        """Accuracy, logits and activations with the heads in ``off`` ablated."""
        with ablated(
            self.model,
            [(0, h) for h in sorted(off)],
            method,
            reference_tokens=self.reference,
            seed=self.resample_seed,
        ):
            logits, cache = self.model.run_with_cache(row, names_filter=hooks)
            return self._accuracy(off, method), logits, cache

    def _accuracy(self, off: frozenset[int], method: Method) -> dict[int, float]:
        """Of the model as it is now; remembered by what is off, for no example changes it."""
        key = (off, method if off else "zero")
        if key not in self._accuracies:
            batch = self.batch
            at = self.model(batch.tokens)[batch.example, batch.destination_pos]
            right = leads(at, batch.trigram + self.task.n_trigrams) > 0
            self._accuracies[key] = {
                b: float(right[batch.trigram == b].double().mean()) for b in self.task.trigrams
            }
        return self._accuracies[key]


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float64)
