"""Models of the library transformers as HookedTransformers, checked against their own predictions.

TransformerLens converts the weights. Its configs go by the names of models on a hub, so a folder on
the disk, or a model in memory, gets its config here. What a converter leaves out (a bias, a kind of
scaling) shows in the predictions, which is why both models are asked once before one is returned.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformerConfig, loading_from_pretrained

from gated_interp.core.errors import CheckpointError, GatedInterpError, is_out_of_memory
from gated_interp.core.seeds import generator
from gated_interp.metrics.predictions import require_finite_logits
from gated_interp.models.language_model import TextTransformer
from gated_interp.models.toy import attention_only

# TransformerLens holds a mask of n_ctx x n_ctx numbers in every layer.
LONGEST = 2048
# Both models are asked about so many tokens, after a window of attention if there is one, and no
# log probability may differ by more (nats).
ASKED, TOLERANCE = 48, 1e-3


class PretrainedTransformer(TextTransformer):
    """A pretrained language model, with or without replacements spliced in.

    Attributes:
        processed: what was done to its weights, in words, such as ``norms folded``.
        place: where it was opened: a folder or a file on the disk, or else a name on the hub;
            ``None`` where it was given from memory.
        own_tokenizer: whether its task has the tokenizer that was found with it.
    """

    processed: str
    place: Path | str | None = None
    own_tokenizer: bool = True


def from_transformers(
    model: Any, *, name: str = "", n_ctx: int | None = None
) -> PretrainedTransformer:
    """A causal language model of the library transformers as a ``HookedTransformer`` on the CPU.

    Norms are folded into the weights that read them, value biases into the output bias; where norms
    centre their input, weights that write to the residual stream are centred, and so is the
    unembedding unless logits are capped. This is what TransformerLens does by default. None of it
    changes a prediction.

    Args:
        model: such as ``transformers.AutoModelForCausalLM.from_pretrained`` returns; its class is
            one of :data:`ARCHITECTURES`.
        name: of the result; the model's own unless given.
        n_ctx: the longest sequence; the model's own, but at most 2,048, unless given.
    """
    hf = model.config
    kind = type(model).__name__
    if kind not in ARCHITECTURES:
        raise GatedInterpError("architecture-not-supported", kind=kind, known=[*ARCHITECTURES])
    # Of a GGUF file transformers gives the weights dequantized.
    if "gguf" not in str(said := getattr(hf, "quantization_config", None) or "gguf").lower():
        raise GatedInterpError("quantized-weights", how=str(said))
    most = int(hf.max_position_embeddings)
    if n_ctx is not None and n_ctx not in range(2, most + 1):
        raise GatedInterpError("bad-context-length", n_ctx=n_ctx, most=most)
    length = min(most, LONGEST) if n_ctx is None else int(n_ctx)
    try:
        hooked = _converted(_plain(model), name or hf.name_or_path, length, most)
    except GatedInterpError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise CheckpointError("model-larger-than-memory", source=name or kind) from error
        reason = " ".join(str(error).split())[:80]
        raise GatedInterpError("conversion-fails", kind=kind, reason=reason) from error
    return hooked.requires_grad_(False)


def _plain(model: Any) -> Any:
    """The model in float32 on the CPU: itself, or a copy."""
    there = {(p.dtype, p.device.type) for p in model.parameters()}
    return model if there == {(torch.float32, "cpu")} else copy.deepcopy(model).cpu().float()


def _converted(model: Any, name: str, length: int, most: int) -> PretrainedTransformer:
    kind = type(model).__name__
    fields = _shared(model.config, length) | ARCHITECTURES[kind](model.config)
    centres = fields["normalization_type"] == "LNPre"
    config = HookedTransformerConfig(
        **fields, original_architecture=kind, device="cpu", model_name=name
    )
    # TransformerLens logs what it leaves out; ``processed`` says it.
    with quiet(logging.WARNING), torch.no_grad():
        found = loading_from_pretrained.get_pretrained_state_dict(".", config, model)
        if fields["positional_embedding_type"] == "standard":
            found["pos_embed.W_pos"] = found["pos_embed.W_pos"][:length]
        hooked = attention_only(config, PretrainedTransformer)
        hooked.load_and_process_state_dict(
            found,
            fold_ln=True,
            center_writing_weights=centres,
            center_unembed=not config.output_logits_soft_cap > 0,
            fold_value_biases=True,
        )
    _laid_out(hooked)
    hooked.task, hooked.info, hooked.notes = None, None, {}
    hooked.model_name = str(config.model_name)
    steps = ["norms folded", "value biases folded"]
    steps += ["written weights centred"] if centres else []
    steps += [] if config.output_logits_soft_cap > 0 else ["unembedding centred"]
    steps += [f"context cut from {most} to {length}"] if length < most else []
    hooked.processed = ", ".join(steps)
    _require_equal(hooked, model)
    return hooked


# The order of axes in which TransformerLens' forward pass reads each weight, the last one first.
LAYOUTS = {
    **dict.fromkeys(("unembed.W_U", "mlp.W_gate", "mlp.W_in", "mlp.W_out"), (1, 0)),
    **dict.fromkeys(("attn.W_Q", "attn.W_K", "attn.W_V", "attn._W_K", "attn._W_V"), (0, 2, 1)),
    "attn.W_O": (2, 0, 1),
}


def _laid_out(model: PretrainedTransformer) -> None:
    """Hold weights in memory as forward passes read them, which else copy them each time.

    On short sequences these copies are half of a pass. Shapes and values stay.
    """
    for name, weight in model.named_parameters():
        order = LAYOUTS.get(".".join(name.split(".")[-2:]))
        # An MLP without a gate multiplies by its weights as they are.
        if order is None or (".mlp." in name and not model.cfg.gated_mlp):
            continue
        back = [order.index(axis) for axis in range(weight.ndim)]
        weight.data = weight.data.permute(order).contiguous().permute(back)


@torch.no_grad()
def _require_equal(hooked: PretrainedTransformer, model: Any) -> None:
    """Refuse a conversion that predicts something else."""
    window, n_ctx = getattr(model.config, "sliding_window", None) or 0, hooked.cfg.n_ctx
    length = min(n_ctx, ASKED + window if window < n_ctx else ASKED)
    tokens = torch.randint(hooked.cfg.d_vocab, (1, length), generator=generator(0))
    training = [module for module in model.modules() if module.training]
    try:
        wanted = model.eval()(tokens).logits.log_softmax(-1)
    finally:
        for module in training:
            module.training = True
    require_finite_logits(wanted)
    off = float((hooked(tokens).log_softmax(-1) - wanted).abs().max())
    if not off <= TOLERANCE:
        raise GatedInterpError("conversion-predicts-otherwise", off=off, kind=type(model).__name__)


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """Inside, nothing up to ``level`` is logged, whoever logs it."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


def _shared(hf: Any, length: int) -> dict[str, Any]:
    heads, width = hf.num_attention_heads, hf.hidden_size
    keys = getattr(hf, "num_key_value_heads", None) or heads
    inner = getattr(hf, "intermediate_size", None) or getattr(hf, "n_inner", None) or 4 * width
    acts = ("hidden_activation", "hidden_act", "activation_function")
    eps = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    return {
        "n_layers": hf.num_hidden_layers,
        "d_model": width,
        "n_heads": heads,
        "n_key_value_heads": None if keys == heads else keys,
        "d_head": _d_head(hf),
        "d_mlp": inner,
        "n_ctx": length,
        "d_vocab": hf.vocab_size,
        "act_fn": _first(hf, acts),
        "eps": _first(hf, eps, 1e-5),
        "default_prepend_bos": False,
    }


def _d_head(hf: Any) -> int:
    return int(getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads)


def _first(hf: Any, names: tuple[str, ...], otherwise: Any = None) -> Any:
    return next((v for n in names if (v := getattr(hf, n, None)) is not None), otherwise)


def _rotary(rope: Any, d_head: int, *, local: bool = False) -> dict[str, Any]:
    """How queries and keys turn, from what transformers says of it."""
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "llama3", "linear"):
        raise GatedInterpError("rotary-not-converted", kind=kind)
    if local:
        return {"rotary_base_local": rope["rope_theta"]}
    found = {
        "positional_embedding_type": "rotary",
        "rotary_base": rope["rope_theta"],
        "rotary_dim": int(rope.get("partial_rotary_factor", 1.0) * d_head),
        "rotary_adjacent_pairs": False,
    }
    if kind == "linear":
        found["rotary_scaling_factor"] = rope["factor"]
    if kind == "llama3":
        found |= {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_by_parts_factor": rope["factor"],
        }
    return found


def _windows(hf: Any) -> dict[str, Any]:
    """Which layers see the last tokens alone."""
    # A config keeps what its file says besides; a model reads what its class knows.
    kinds = hf.layer_types if hasattr(type(hf), "layer_types") else None
    size = hf.sliding_window if hasattr(type(hf), "sliding_window") else None
    if kinds is None:
        kinds = ["sliding_attention" if size else "full_attention"] * hf.num_hidden_layers
    types = ["local" if kind == "sliding_attention" else "global" for kind in kinds]
    if "local" not in types:
        return {}
    return {"use_local_attn": True, "window_size": size, "attn_types": types}


def _rms(hf: Any, **more: Any) -> dict[str, Any]:
    """As Llama, and most since: RMSNorm, rotary embeddings, gated MLPs."""
    found = {"normalization_type": "RMSPre", "final_rms": True, "gated_mlp": True}
    found |= _rotary(hf.rope_parameters, _d_head(hf)) if "rope_type" in hf.rope_parameters else {}
    return found | _windows(hf) | more


def _layer_norm(hf: Any, **more: Any) -> dict[str, Any]:
    turns = _rotary(hf.rope_parameters, _d_head(hf))
    return {"normalization_type": "LNPre", **turns, **more}


def _gpt2(hf: Any) -> dict[str, Any]:
    return {
        "normalization_type": "LNPre",
        "positional_embedding_type": "standard",
        "use_attn_scale": hf.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": hf.scale_attn_by_inverse_layer_idx,
    }


def _gemma(hf: Any, **more: Any) -> dict[str, Any]:
    capped = {
        "attn_scores_soft_cap": getattr(hf, "attn_logit_softcapping", None) or -1.0,
        "output_logits_soft_cap": getattr(hf, "final_logit_softcapping", None) or -1.0,
    }
    named = {
        "attn_scale": hf.query_pre_attn_scalar**0.5,
        "n_key_value_heads": hf.num_key_value_heads,  # its converter wants them even if all differ
    }
    return _rms(hf, use_normalization_before_and_after=True, **capped, **named, **more)


def _gemma3(hf: Any) -> dict[str, Any]:
    ropes = hf.rope_parameters
    turns = _rotary(ropes["full_attention"], hf.head_dim)
    turns |= _rotary(ropes["sliding_attention"], hf.head_dim, local=True)
    return _gemma(hf, use_qk_norm=True, **turns)


ARCHITECTURES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "GPT2LMHeadModel": _gpt2,
    "GPTNeoXForCausalLM": lambda hf: _layer_norm(hf, parallel_attn_mlp=hf.use_parallel_residual),
    "LlamaForCausalLM": _rms,
    "MistralForCausalLM": _rms,
    "Qwen2ForCausalLM": _rms,
    "Qwen3ForCausalLM": lambda hf: _rms(hf, use_qk_norm=True),
    "Gemma2ForCausalLM": _gemma,
    "Gemma3ForCausalLM": _gemma3,
    "OlmoForCausalLM": lambda hf: _layer_norm(hf, gated_mlp=True, clip_qkv=hf.clip_qkv),
    "Phi3ForCausalLM": _rms,
    "PhiForCausalLM": lambda hf: _layer_norm(hf, parallel_attn_mlp=True),
}
"""How each architecture says what its layers do; one that TransformerLens converts is a line."""
