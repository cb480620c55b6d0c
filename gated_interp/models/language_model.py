"""Attention-only language models, of one to four layers."""

import dataclasses
from typing import Any, Literal

import torch
from transformer_lens import HookedTransformerConfig

from gated_interp.core.config import Config, positive
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import MAX_SEED
from gated_interp.models.toy import HookedTransformer, TaskTransformer, attention_only, draw_weights
from gated_interp.tasks.text import TextPart, TextTask
from gated_interp.tasks.tokenizers import read_tokenizer

MOST_LAYERS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(Config):
    """An attention-only transformer for text.

    Attributes:
        d_vocab: Use a vocabulary of this many tokens.
        n_ctx: Train on sequences of this many tokens.
        n_layers: Stack this many layers of attention, from 1 to 4.
        d_model: Make the residual stream this wide.
        n_heads: Give each layer this many attention heads.
        d_head: Give each head this many dimensions, and its share of the width if 0.
        normalization: Normalise the residual stream in this way. ``LNPre`` centres and scales;
            ``LN`` also has weights and biases that train (:func:`folded` makes ``LNPre`` of it).
        positions: Add positional embeddings everywhere, or to what queries and keys read alone.
            The second is ``shortformer`` (Press et al. 2020).
        seed: Draw the initial weights from this seed.

    Examples:
        >>> LanguageModelConfig(d_vocab=300, n_ctx=16, n_layers=2, d_model=32, n_heads=4).d_head
        8
    """

    d_vocab: int
    n_ctx: int = 64
    n_layers: int = 1
    d_model: int = 128
    n_heads: int = 8
    d_head: int = 0
    normalization: Literal["LNPre", "LN", "none"] = "LNPre"
    positions: Literal["standard", "shortformer"] = "standard"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.d_head == 0 and isinstance(self.n_heads, int) and self.n_heads > 0:
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        super().__post_init__()

    def problems(self) -> list[GatedInterpError]:
        found = positive(self, "d_vocab", "n_ctx", "n_layers", "d_model", "n_heads", "d_head")
        if self.n_layers > MOST_LAYERS:
            found.append(
                self.problem("config-too-many-layers", value=self.n_layers, most=MOST_LAYERS)
            )
        if self.n_ctx == 1:
            found.append(self.problem("config-context-too-short"))
        if not 0 <= self.seed <= MAX_SEED:
            found.append(self.problem("config-bad-seed", value=self.seed))
        return found

    @property
    def name(self) -> str:
        """Its shape, such as ``2L8H128``."""
        return f"{self.n_layers}L{self.n_heads}H{self.d_model}"


class TextTransformer(TaskTransformer):
    """A language model of any kind.

    Attributes:
        task: its text, with its tokenizer.
    """

    task: TextTask | None


class LanguageTransformer(TextTransformer):
    """A language model that was built here, with or without replacements spliced in.

    Attributes:
        language_config: what it was built as.

    Examples:
        >>> model = build_language_model(LanguageModelConfig(d_vocab=300, n_ctx=16, d_model=32))
        >>> model.model_name, model(torch.tensor([[0, 5, 7]])).shape
        ('1L8H32', torch.Size([1, 3, 300]))
    """

    language_config: LanguageModelConfig


def build_language_model(
    config: LanguageModelConfig, task: TextTask | None = None
) -> LanguageTransformer:
    """The model of ``config``, its weights drawn from ``config.seed``; global state is untouched.

    Weights are normal with a standard deviation of ``0.8 / sqrt(d_model)``, as TransformerLens
    draws them; biases are zero. Scores are divided by ``sqrt(d_head)``.

    Args:
        task: the text it is for; its tokenizer becomes the model's, so that TransformerLens'
            ``to_tokens``, ``to_str_tokens`` and ``generate`` work.

    Raises:
        GatedInterpError: a tokenizer of another vocabulary.

    Examples:
        >>> config = LanguageModelConfig(d_vocab=300, n_ctx=16, n_layers=2, d_model=32, n_heads=4)
        >>> build_language_model(config).blocks[1].attn.W_Q.shape
        torch.Size([4, 32, 8])
    """
    norm = None if config.normalization == "none" else config.normalization
    model = attention_only(
        HookedTransformerConfig(
            n_layers=config.n_layers,
            d_model=config.d_model,
            d_vocab=config.d_vocab,
            n_ctx=config.n_ctx,
            d_head=config.d_head,
            n_heads=config.n_heads,
            attn_only=True,
            normalization_type=norm,
            positional_embedding_type=config.positions,
            device="cpu",
        ),
        LanguageTransformer,
    )
    draw_weights(model, config.seed)
    model.language_config, model.model_name = config, config.name
    model.info, model.notes, model.task = None, {}, None
    if task is not None:
        give_text(model, task)
    return model


def give_text(model: TextTransformer, task: TextTask) -> None:
    """Let ``task`` be the text of ``model``, and its tokenizer the model's.

    Raises:
        GatedInterpError: a tokenizer of another vocabulary.
    """
    import transformers

    if task.d_vocab > model.cfg.d_vocab:  # some models leave the last of theirs unused
        task.require_vocabulary(model.cfg.d_vocab)
    model.task = task
    bos = None if task.bos is None else read_tokenizer(task.tokenizer).id_to_token(task.bos)
    # TransformerLens' own set_tokenizer would look for it on a hub.
    made: Any = transformers.PreTrainedTokenizerFast
    model.tokenizer = made(
        tokenizer_object=read_tokenizer(task.tokenizer),
        **({} if bos is None else dict.fromkeys(("bos_token", "eos_token", "pad_token"), bos)),
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    model.cfg.tokenizer_prepends_bos = False
    model.cfg.default_prepend_bos &= bos is not None


def require_text(model: HookedTransformer, text: TextTask | TextPart) -> None:
    """Refuse a text that is not in the tokens of ``model``."""
    own, task = getattr(model, "task", None), text.task if isinstance(text, TextPart) else text
    if not isinstance(own, TextTask):
        task.require_vocabulary(model.cfg.d_vocab)
    elif own.tokenizer != task.tokenizer:
        raise GatedInterpError("another-tokenizer", task=task)


@torch.no_grad()
def folded(model: LanguageTransformer) -> LanguageTransformer:
    """A model of the same predictions with ``LNPre`` in the place of ``LN``; others as they are.

    As TransformerLens does it: weights and biases of every norm go into the weights that read what
    it makes, and weights that write to the residual stream, and the unembedding, are centred. With
    shortformer positions, which are added behind the norm, that cannot be, and nothing changes.

    Examples:
        >>> shape = {"d_vocab": 300, "n_ctx": 16, "d_model": 32, "normalization": "LN"}
        >>> folded(build_language_model(LanguageModelConfig(**shape))).language_config.normalization
        'LNPre'
    """
    config = model.language_config
    if config.normalization != "LN" or config.positions == "shortformer":
        return model
    other = build_language_model(config.replace(normalization="LNPre"), model.task)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state = model.center_writing_weights(model.fold_layer_norm(state))
    state = model.center_unembed(state)
    for name, parameter in other.named_parameters():
        parameter.copy_(state[name])
    other.info, other.notes, other.model_name = model.info, model.notes, model.model_name
    return other
