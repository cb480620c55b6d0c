"""What each head writes to the logits, where these are linear in the heads of a layer."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated_interp.anatomy.batch import Batch, Tokens, token_vocabulary
from gated_interp.anatomy.stream import RAW_LOGITS, HeadReadout, why_not_linear
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.models.toy import HookedTransformer
from gated_interp.tasks.task import ProbedTask, Probes, Task, probes_for


def is_linear(model: HookedTransformer, layer: int) -> bool:
    """Whether the logits are a sum over the heads of ``layer``, whatever the layers below do."""
    return why_not_linear(model, layer) is None


def require_linear(model: HookedTransformer, layer: int | None = None) -> None:
    """Refuse a model whose logits are not a sum over the heads of one layer.

    Args:
        layer: where named, the model may have others: they are taken as they are.
    """
    if layer is None and model.cfg.n_layers != 1:
        raise GatedInterpError("needs-one-layer", layers=model.cfg.n_layers)
    why = why_not_linear(model, layer or 0)
    if why is not None:
        raise GatedInterpError("logits-not-a-sum", layer=layer or 0, why=why)


@torch.no_grad()
def head_writes(
    model: HookedTransformer,
    tokens: Tokens,
    rows: Int[Tensor, " example"],
    positions: Int[Tensor, " example"],
    layer: int = 0,
    *,
    direct: bool = False,
) -> tuple[Float[Tensor, "example head_index d_vocab"], Float[Tensor, "example d_vocab"]]:
    """What each head writes to the logits at some positions, and the model's own logits there.

    Args:
        rows, positions: which row and position of ``tokens`` each example is.
        layer: whose heads; the last.
        direct: of a model whose logits are no sum over the heads, take what each writes on its
            direct path, norms at their scale in this pass, logits before a cap.

    Returns:
        writes ``[example head_index d_vocab]`` (biases b_O and b_U left out) and logits
        ``[example d_vocab]``, from one forward pass.
    """
    if not direct:
        require_linear(model, layer)
    name, readout = f"blocks.{layer}.attn.hook_z", HeadReadout.of(model, layer)
    _, cache = Batch.of(model, tokens).cache(model, [name, RAW_LOGITS, *readout.scales])
    z = wide(cache[name]) / readout.scale(cache)
    writes = torch.einsum("ehd,hdv->ehv", z[rows, positions], readout.matrix)
    return writes, wide(cache[RAW_LOGITS][rows, positions])


def logit_writes(
    model: HookedTransformer, z: Float[Tensor, "example head_index d_head"], layer: int = 0
) -> Float[Tensor, "example head_index d_vocab"]:
    """What heads with this ``z`` write to the logits of a model that is linear in its heads."""
    W_OU = model.blocks[layer].attn.W_O @ model.unembed.W_U
    return torch.einsum("ehd,hdv->ehv", z, W_OU)


@dataclasses.dataclass(frozen=True)
class ProbeWrites:
    """What the heads of a model write to the logits where the answers of a task are known.

    Attributes:
        writes: ``[example head_index d_vocab]``, as :func:`head_writes`.
        logits: ``[example d_vocab]``, the model's own.
        probes: the examples, with some of every case.
    """

    writes: Float[Tensor, "example head_index d_vocab"]
    logits: Float[Tensor, "example d_vocab"]
    probes: Probes

    def double(self) -> "ProbeWrites":
        """The same on the CPU in float64: sums in another order leave ties where they are."""
        return ProbeWrites(
            self.writes.double().cpu(), self.logits.double().cpu(), self.probes.to("cpu")
        )


def probe_writes(
    model: HookedTransformer, task: Task, n: int, seed: int, layer: int = 0, direct: bool = False
) -> ProbeWrites:
    """What each head of a model's last layer writes at the probes of ``task``, from one forward.

    Args:
        n, seed: of the sequences that hold the probes.
        layer: the last.
        direct: see :func:`head_writes`.
    """
    if not direct and isinstance(task, ProbedTask):
        require_linear(model, layer)  # then the direct path is all there is: the same numbers
    probes = probes_for(task, token_vocabulary(model), n, seed).to(model.embed.W_E.device)
    writes, logits = head_writes(
        model, probes.tokens, probes.row, probes.position, layer, direct=direct
    )
    return ProbeWrites(writes, logits, probes)
