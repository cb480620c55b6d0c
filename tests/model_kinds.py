"""Tiny models of every kind, with random weights: the columns of the conformance matrix.

A kind is a set of TransformerLens' flags. Each may be built with or without MLPs, in any dtype, and
with a replacement in the place of its first layer's attention. No bias and no norm's weight is
zero or one, so that whatever leaves one out is off by much. A new kind is one entry of ``KINDS``.
"""

import dataclasses
import itertools
import warnings
from typing import Any

import torch
from transformer_lens import HookedTransformerConfig

from gated_interp.models.toy import HookedTransformer, attention_only
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.sae import OutputAutoencoder, SAEConfig
from gated_interp.replacements.splice import splice
from gated_interp.replacements.topk import TopKAttention, TopKConfig
from gated_interp.tasks.skip_trigrams import SkipTrigramTask

TASK = SkipTrigramTask(n_trigrams=5)  # 12 tokens
N_CTX = 13
BASE: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 17,
    "n_heads": 3,
    "d_head": 6,
    "n_ctx": N_CTX,
    "d_vocab": TASK.d_vocab,
    "act_fn": "relu",
    "normalization_type": "LN",
    "device": "cpu",
}
GROUPED = {"n_heads": 4, "n_key_value_heads": 2}
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 6, "rotary_base": 7}
LOCAL = {"use_local_attn": True, "window_size": 4}
RMS = {"normalization_type": "RMS"}
OLMO2 = {"original_architecture": "Olmo2ForCausalLM", "d_model": 18}  # norms q and k of all heads

KINDS: dict[str, dict[str, Any]] = {
    "no norm": {"normalization_type": None},
    "one layer, no norm": {"normalization_type": None, "n_layers": 1},
    "LN": {},
    "LNPre": {"normalization_type": "LNPre"},
    "RMS": RMS,
    "RMSPre": {"normalization_type": "RMSPre"},
    "grouped queries": GROUPED,
    "multi-query": {"n_heads": 3, "n_key_value_heads": 1},
    "rotary": ROTARY,
    "rotary, adjacent pairs": ROTARY | {"rotary_adjacent_pairs": True},
    "rotary, partial": ROTARY | {"rotary_dim": 4},
    "rotary, scaled": ROTARY | {"rotary_scaling_factor": 3.0},
    "rotary, by parts": ROTARY
    | {
        "use_NTK_by_parts_rope": True,
        "NTK_by_parts_factor": 4.0,
        "NTK_original_ctx_len": 8,
    },
    "local windows": LOCAL | {"attn_types": ["local", "global"]},
    "score soft cap": {"attn_scores_soft_cap": 1.5},
    "query-key norm": {"use_qk_norm": True},
    "ALiBi": {"positional_embedding_type": "alibi"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "attention sinks": {"use_attention_sinks": True},
    "clipped q, k, v": {"clip_qkv": 0.8},
    "output soft cap": {"output_logits_soft_cap": 1.5},
    "bidirectional": {"attention_dir": "bidirectional"},
    "norm before and after": RMS | {"use_normalization_before_and_after": True},
    "norm after (OLMo 2)": RMS | OLMO2,
    "norm of the embedding": {"post_embedding_ln": True},
    "final RMS norm": {"final_rms": True},
    "log-n attention": {"use_logn_attn": True, "train_seq_length": 4},
    "scores by inverse layer": {"scale_attn_by_inverse_layer_idx": True},
    "no attention scale": {"use_attn_scale": False},
    "fewer outputs than inputs": {"d_vocab_out": 7},
}
# What models of these names are made of, all at once; with weights folded into their neighbours
# ("LNPre", "RMSPre") or not.
GATED_MLP = {"gated_mlp": True, "act_fn": "silu"}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT-2": {"act_fn": "gelu_new"},
    "Pythia": ROTARY | {"rotary_dim": 2, "parallel_attn_mlp": True, "act_fn": "gelu"},
    "Llama": GROUPED
    | ROTARY
    | RMS
    | GATED_MLP
    | {
        "final_rms": True,
        "use_NTK_by_parts_rope": True,
        "NTK_by_parts_factor": 4.0,
        "NTK_original_ctx_len": 8,
    },
    "Qwen3": GROUPED | ROTARY | RMS | GATED_MLP | {"final_rms": True, "use_qk_norm": True},
    "Gemma 2": GROUPED
    | ROTARY
    | RMS
    | GATED_MLP
    | LOCAL
    | {
        "attn_types": ["global", "local"],
        "act_fn": "gelu_pytorch_tanh",
        "use_normalization_before_and_after": True,
        "attn_scores_soft_cap": 2.0,
        "output_logits_soft_cap": 3.0,
    },
    "Mistral": GROUPED | ROTARY | RMS | GATED_MLP | LOCAL | {"attn_types": ["local", "local"]},
}
FOLDED = {"LN": "LNPre", "RMS": "RMSPre"}
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
BLOCKS = ("", "gated", "TopK", "autoencoder")
# Its gates are rotated as the layer's queries and keys, where these are.
SEES_POSITIONS = "rotary gated"
MLPS = ("", "MLPs", "parallel MLPs")


@dataclasses.dataclass(frozen=True)
class Column:
    """One kind of model.

    Attributes:
        kind: a key of ``KINDS`` or ``FAMILIES``; the latter also with ", folded" behind it.
        mlps: which MLPs there are; a family has its own.
        block: what stands in the place of layer 0's attention; empty: its own.
    """

    kind: str
    mlps: str = ""
    dtype: str = "float32"
    block: str = ""

    def __str__(self) -> str:
        more = [self.mlps, self.dtype if self.dtype != "float32" else ""]
        more.append(f"{self.block} block" if self.block else "")
        return "; ".join([self.kind, *filter(None, more)])

    @property
    def family(self) -> str:
        """Which of the families it is of; empty: of none."""
        name = self.kind.removesuffix(", folded")
        return name if name in FAMILIES else ""

    @property
    def flags(self) -> dict[str, Any]:
        """What the model's config says, all of it."""
        if self.family:
            flags = BASE | FAMILIES[self.family]
            if self.kind != self.family:
                flags["normalization_type"] = FOLDED[flags["normalization_type"]]
        else:
            flags = BASE | KINDS[self.kind]
        if self.family or self.mlps:
            flags |= {"d_mlp": 19, "attn_only": False}
            flags["parallel_attn_mlp"] = flags.get("parallel_attn_mlp", "parallel" in self.mlps)
        else:
            flags |= {"attn_only": True}
        return flags | {"dtype": DTYPES[self.dtype]}

    def build(self) -> HookedTransformer:
        """The model, with its block if it has one; each call makes the same."""
        model = self.original()
        if not self.block:
            return model
        width = model.cfg.d_model
        block: Any
        if self.block == "gated":
            block = GatedAttention(
                GatedConfig(d_model=width, n_heads=5, d_head=4, d_gate=2, output_bias=True)
            )
        elif self.block == SEES_POSITIONS:
            block = GatedAttention.from_attention(
                model.blocks[0].attn, 5 / model.cfg.n_heads, d_gate=3, gate_rotary=2
            )
        elif self.block == "TopK":
            config = TopKConfig(d_model=width, n_heads=7, d_head=1, d_qk=4, k=4, output_bias=True)
            block = TopKAttention(config)
        else:
            block = OutputAutoencoder(
                SAEConfig(d_model=width, n_heads=11, k=5), model.blocks[0].attn
            )
        _fill({n: p for n, p in block.named_parameters() if not n.startswith("original.")}, 2)
        return splice(model, 0, block.to(DTYPES[self.dtype]))

    def original(self) -> HookedTransformer:
        """The model without a block, with the same weights."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TransformerLens, as it is made
            model = attention_only(HookedTransformerConfig(**self.flags))
        _fill(dict(model.named_parameters()), 1)
        return model.eval()


def rotates(kind: str) -> bool:
    """Whether models of this kind or family have rotary embeddings."""
    return "rotary_dim" in (KINDS | FAMILIES)[kind]


SIZES = {"W_E": 1.0, "W_pos": 0.7, "W_U": 0.6, "sinks": 0.7, "b_E": 0.5}


@torch.no_grad()
def _fill(parameters: dict[str, torch.Tensor], seed: int) -> None:
    """Normal weights everywhere, those of norms around one."""
    source = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        drawn = torch.randn(parameter.shape, generator=source)
        last = name.split(".")[-1]
        size = SIZES.get(last.removeprefix("raw_"), 0.4 if last.startswith("b") else 0.35)
        parameter.copy_(1 + 0.4 * drawn if last == "w" else size * drawn)


def columns() -> list[Column]:
    """Every kind: without and with MLPs, and those without (and the families, which have their
    own) also in each dtype and with each block."""
    families = [f"{name}{folded}" for name in FAMILIES for folded in ("", ", folded")]
    plain = [
        *(Column(kind, mlps) for kind in KINDS for mlps in MLPS[:2]),
        *(Column(kind, MLPS[2]) for kind in ("no norm", "LN")),
        *(Column(kind) for kind in families),
    ]
    varied = [column for column in plain if not column.mlps]
    return [
        *plain,
        *(
            dataclasses.replace(column, dtype=dtype)
            for column, dtype in itertools.product(varied, list(DTYPES)[1:])
        ),
        *(
            dataclasses.replace(column, block=block)
            for column, block in itertools.product(varied, BLOCKS[1:])
        ),
        *(Column(kind, block=SEES_POSITIONS) for kind in ("rotary", *FAMILIES) if rotates(kind)),
    ]
