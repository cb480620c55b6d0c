"""A deep model of another library, small enough for a test."""

from pathlib import Path

from test_open_model import SIZES, tiny, tokenizer, transformers

LAYERS, HEADS = 6, 4
DEEP = {**SIZES, "num_hidden_layers": LAYERS, "num_key_value_heads": 2}


def deep_llama(place: Path) -> Path:
    """A folder with a Llama of six layers, drawn at random, and its tokenizer."""
    tiny(transformers.LlamaConfig(**DEEP)).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place
