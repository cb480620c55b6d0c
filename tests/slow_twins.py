"""Plain re-implementations that the benchmarks time the package against, in the same run."""

import random
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gated_interp.models.language_model import LanguageTransformer
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.gated_attention import GatedAttention
from gated_interp.tasks.skip_trigrams import SkipTrigramTask, TrigramBatch
from gated_interp.training.config import TrainConfig


def sample_token_by_token(task: SkipTrigramTask, n: int, source: random.Random) -> list[list[int]]:
    """Sequences of the task, one token at a time, in plain Python."""
    sequences = []
    for _ in range(n):
        tokens, is_open, must = [task.bos], False, None
        for _ in range(task.n_positions - 1):
            if must is not None:
                token, must = must, None
            else:
                token = source.randrange(1 if is_open else 0, task.d_vocab)
                if token == task.source:
                    is_open = True
                elif is_open and token in task.trigrams:
                    is_open, must = False, task.completion(token)
            tokens.append(token)
        sequences.append(tokens)
    return sequences


class PlainGatedStep:
    """A training step of the post's block on whole sequences, as the post describes it.

    Every head's pattern, gate and value for every (query, key) pair is multiplied out in one
    five-dimensional product ``[batch head query key d_head]`` and summed afterwards.
    """

    def __init__(self, block: GatedAttention, lr: float, alpha: float):
        self.block, self.alpha = block, alpha
        self.optimizer = torch.optim.Adam(block.parameters(), lr=lr)

    def __call__(
        self, x: Float[Tensor, "batch pos d_model"], target: Float[Tensor, "batch pos d_model"]
    ) -> float:
        b = self.block
        q = torch.einsum("bpm,hmd->bhpd", x, b.W_Q) + b.b_Q[:, None]
        k = torch.einsum("bpm,hmd->bhpd", x, b.W_K) + b.b_K[:, None]
        v = torch.einsum("bpm,hmd->bhpd", x, nn.functional.normalize(b.raw_W_V, dim=1))
        v = v + b.b_V[:, None]
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / b.attn_scale
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(hidden, -1e5).softmax(-1)
        gate_q = torch.einsum("bpm,hmg->bhpg", x, b.W_gate_Q) + b.b_gate_Q[:, None]
        gate_k = torch.einsum("bpm,hmg->bhpg", x, b.W_gate_K) + b.b_gate_K[:, None]
        gate = torch.einsum("bhqg,bhkg->bhqk", gate_q, gate_k).clamp(0, 1)
        products = torch.einsum("bhqk,bhqk,bhkd->bhqkd", gate, pattern, v)
        W_O = nn.functional.normalize(b.raw_W_O, dim=2)
        output = torch.einsum("bhqkd,hdm->bqm", products, W_O)
        penalty = ((gate + 1e-9) ** 0.6).sum(1).pow(1 / 0.6).mean()
        loss = nn.functional.mse_loss(output, target) + self.alpha * penalty
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())


@torch.no_grad()
def owners_by_every_subset(
    model: HookedTransformer, task: SkipTrigramTask, batch: TrigramBatch
) -> dict[int, list[int]]:
    """Sole owners by running the model's layer once per head and subset of removed heads."""
    n_heads = model.blocks[0].attn.W_Q.shape[0]
    heads = range(n_heads)
    at = (batch.example, batch.destination_pos)

    def output(kept: tuple[int, ...]) -> Float[Tensor, "example d_vocab"]:
        mask = torch.zeros(n_heads)
        mask[list(kept)] = 1.0
        # Kept in a list because a hook's output replaces the activation.
        seen: list[Tensor] = []

        def keep(z: Tensor, hook: object) -> Tensor:
            return z * mask[:, None]

        def note(out: Int[Tensor, "..."] | Tensor, hook: object) -> None:
            seen.append(out)

        hooks = [("blocks.0.attn.hook_z", keep), ("blocks.0.hook_attn_out", note)]
        model.run_with_hooks(batch.tokens, fwd_hooks=hooks)
        return seen[0][at]

    owners: dict[int, list[int]] = {b: [] for b in task.trigrams}
    for h in heads:
        others = [o for o in heads if o != h]
        held = dict.fromkeys(task.trigrams, True)
        for size in range(len(others)):
            for kept in combinations(others, size):
                top = output((h, *kept)).argmax(-1)
                for b in task.trigrams:
                    mine = batch.trigram == b
                    share = (top[mine] == task.completion(b)).double().mean()
                    held[b] &= bool(share > 0.99)
        for b in task.trigrams:
            if held[b]:
                owners[b].append(h)
    return owners


class PlainLanguageStep:
    """A training step of a language model: nothing but PyTorch's own loop around its forward."""

    def __init__(self, model: nn.Module, config: TrainConfig):
        self.model, self.clip_norm = model, config.clip_norm
        named = [(name.rpartition(".")[2], p) for name, p in model.named_parameters()]
        matrices = [p for name, p in named if not name.startswith("b")]
        others = [p for name, p in named if name.startswith("b")]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            weight_decay=config.weight_decay,
        )

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Tensor:
        self.optimizer.zero_grad()
        logits = self.model(tokens)[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return loss.detach()


class PlainLanguageModel(nn.Module):
    """The same transformer without TransformerLens: linear layers and PyTorch's own attention."""

    def __init__(self, model: LanguageTransformer):
        super().__init__()
        c = model.language_config
        self.heads, self.epsilon = c.n_heads, model.cfg.eps
        self.tokens, self.positions = (
            nn.Parameter(w.detach().clone()) for w in (model.embed.W_E, model.pos_embed.W_pos)
        )
        self.read = nn.ModuleList(
            nn.Linear(c.d_model, 3 * c.n_heads * c.d_head) for _ in model.blocks
        )
        self.write = nn.ModuleList(nn.Linear(c.n_heads * c.d_head, c.d_model) for _ in model.blocks)
        self.unembed = nn.Linear(c.d_model, c.d_vocab)
        with torch.no_grad():
            for read, write, block in zip(self.read, self.write, model.blocks, strict=True):
                attn = block.attn
                W = torch.stack([attn.W_Q, attn.W_K, attn.W_V])  # [3 head d_model d_head]
                read.weight.copy_(W.transpose(2, 3).reshape(-1, c.d_model))
                read.bias.copy_(torch.stack([attn.b_Q, attn.b_K, attn.b_V]).flatten())
                write.weight.copy_(attn.W_O.reshape(-1, c.d_model).T)
                write.bias.copy_(attn.b_O)
            self.unembed.weight.copy_(model.unembed.W_U.T)
            self.unembed.bias.copy_(model.unembed.b_U)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        batch, pos = tokens.shape
        x = self.tokens[tokens] + self.positions[:pos]
        for read, write in zip(self.read, self.write, strict=True):
            qkv = read(self._normal(x)).view(batch, pos, 3, self.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + write(z.transpose(1, 2).flatten(2))
        return self.unembed(self._normal(x))

    def _normal(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], eps=self.epsilon)
