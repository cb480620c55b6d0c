"""Models of other libraries, from a folder, a name, a file or from memory.

Nothing is unpickled, and no code of a repository is run.
"""

import copy
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer

from gated_interp.checkpoints.attn_only import is_attn_only
from gated_interp.core.errors import CheckpointError, GatedInterpError, is_out_of_memory
from gated_interp.core.hub import explained
from gated_interp.core.shipped import MODEL_FILE, shipped_names
from gated_interp.models.language_model import give_text
from gated_interp.models.pretrained import PretrainedTransformer, from_transformers, quiet
from gated_interp.models.toy import TaskTransformer
from gated_interp.tasks.text import TextTask

CONFIG, GGUF = "config.json", ".gguf"
# What a tool for training or quantizing leaves beside, or in the place of, weights in safetensors.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def from_place(source: str, text: Any, n_ctx: int | None) -> PretrainedTransformer:
    """The model in a folder or a GGUF file, or of that name.

    Args:
        text: as for :func:`with_text`.
    """
    path = Path(source)
    if os.path.isdir(path):
        _require_weights(path)
    model, tokenizer = _read(source)
    here = os.path.exists(path)
    name = path.resolve().name if here else source
    found = from_transformers(model, name=name, n_ctx=n_ctx)
    found.place = path.resolve() if here else source
    return with_text(found, tokenizer, text)


def from_memory(source: Any, text: Any, n_ctx: int | None) -> TaskTransformer:
    """A ``HookedTransformer``, a model of the library transformers or a bridge around one."""
    if isinstance(source, HookedTransformer):
        return _of_hooked(source, text)
    original = getattr(source, "original_model", source)  # of a TransformerBridge
    if not hasattr(original, "config") or not isinstance(original, torch.nn.Module):
        raise GatedInterpError("cannot-open-this", kind=type(source).__name__)
    model = from_transformers(original, n_ctx=n_ctx)
    return with_text(model, getattr(source, "tokenizer", None), text)


def is_foreign(source: str | os.PathLike[str]) -> bool:
    """Whether it is on the disk, a GGUF file or the folder of a Hugging Face model."""
    path = Path(source)
    if _is_gguf(path):
        return True
    return os.path.isfile(path / CONFIG) and not is_attn_only(path) and not _is_ours(path)


def _is_gguf(path: Path) -> bool:
    return path.suffix == GGUF and os.path.isfile(path)


def _is_ours(folder: Path) -> bool:
    """A folder written by ``save_pretrained``, whose config is in the weights' file."""
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # load says what is wrong
    return not isinstance(said, dict) or not ({"architectures", "model_type"} & set(said))


def may_be_a_name(source: str) -> bool:
    """Whether the hub is worth asking: as ``owner/name``, or as TransformerLens names models."""
    of_the_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None
    return of_the_hub or _official(source) is not None


def _require_weights(folder: Path) -> None:
    """Refuse a folder without weights in safetensors, or with more of them than memory holds."""
    files = [f for f in folder.glob("*.safetensors") if f.is_file()]
    if not files:
        pickled = next((f for kind in PICKLES for f in sorted(folder.glob(kind))), None)
        if pickled is not None:
            raise CheckpointError("weights-run-code", folder=folder, file=pickled.name)
        raise CheckpointError(
            "folder-without-weights", folder=folder, config=CONFIG, file=MODEL_FILE
        )
    # In float32, once as it was and once converted.
    needed, there = 4 * sum(f.stat().st_size for f in files), _memory()
    if needed > there:
        raise CheckpointError(
            "too-large-to-open", folder=folder, needed=needed / 1e9, there=there / 1e9
        )


def _memory() -> float:
    """Bytes that are free, as far as this system says."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            said = dict(line.split(":", 1) for line in file)
        return 1024.0 * int(said["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return float("inf")


def _read(source: str) -> tuple[Any, Any]:
    """The model and its tokenizer, by transformers; from the disk where they are there."""
    import transformers

    path, name = Path(source), _official(source) or source
    place: dict[str, Any] = {"pretrained_model_name_or_path": name}
    weights: dict[str, Any] = {"use_safetensors": True}
    if _is_gguf(path):
        _require_gguf()
        name, weights = str(path.parent), {}
        place = {"pretrained_model_name_or_path": name, "gguf_file": path.name}
    local = os.path.exists(name)
    model_type: Any = transformers.AutoModelForCausalLM
    with _no_noise(), torch.random.fork_rng(devices=[]):
        for offline in (True,) if local else (True, False):
            asked = {**place, "local_files_only": offline, "trust_remote_code": False}
            try:
                model, report = model_type.from_pretrained(
                    **asked, **weights, dtype=torch.float32, output_loading_info=True
                )
                break
            except Exception as error:
                if not offline or local:
                    raise _in_a_sentence(error, source, local) from error
        _require_whole(source, report)
        try:
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(**asked)
            # Where the files are missing, transformers makes one that knows no text.
            if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
                tokenizer = None
        except Exception as error:  # a model can do without one, but not with a damaged one
            damaged = Path(name, "tokenizer.json")
            if damaged.exists():
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(
                    "cannot-read-tokenizer", path=damaged, reason=reason
                ) from error
            tokenizer = None
    return model.eval(), tokenizer


def _official(source: str) -> str | None:
    """The hub's name of a model that TransformerLens knows by a shorter one."""
    from transformer_lens.loading_from_pretrained import get_official_model_name

    if os.path.exists(source):
        return None
    try:
        return str(get_official_model_name(source))
    except ValueError:
        return None


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise GatedInterpError("gguf-package-missing") from error


def _require_whole(source: str, report: Any) -> None:
    """Refuse weights that lack some of the model's, which transformers draws at random, or that
    have more, which it leaves out: without its biases or its last layers a model is another."""
    for problem, words in {
        "missing_keys": "its weights lack",
        "mismatched_keys": "its weights have another shape than its config says, first",
        "unexpected_keys": "its config knows nothing of the weights",
    }.items():
        # Old files hold the value that masks attention.
        keys = (str(key) for key in report.get(problem) or ())
        if found := sorted(key for key in keys if not key.endswith(".masked_bias")):
            raise CheckpointError("model-incomplete", source=source, words=words, tensor=found[0])


def _in_a_sentence(error: Exception, source: str, local: bool) -> GatedInterpError:
    if isinstance(error, GatedInterpError):
        return error
    if is_out_of_memory(error):
        return CheckpointError("model-larger-than-memory", source=source)
    words = " ".join(str(error).split())
    if "trust_remote_code" in words:
        return CheckpointError("model-with-own-code", source=source)
    if "does not recognize this architecture" in words or "Unrecognized" in words:
        return CheckpointError("unknown-architecture", source=source)
    if local:
        first = words.split(". ")[0][:200]
        return CheckpointError("not-a-model", source=source, reason=first)
    if isinstance(error, OSError):
        return CheckpointError("no-such-model-anywhere", source=source, names=shipped_names())
    return explained(error, source, CONFIG, None)


@contextmanager
def _no_noise() -> Iterator[None]:
    """Progress bars and reports of transformers go nowhere; what matters is an error of ours."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as untyped

    theirs: Any = untyped
    reader: Any = modeling_gguf_pytorch_utils
    bars, bar = theirs.is_progress_bar_enabled(), getattr(reader, "tqdm", None)
    theirs.disable_progress_bar()
    # Of GGUF files it shows a bar that it cannot be told to leave out.
    reader.tqdm = lambda tensors, **_: tensors
    try:
        with quiet(logging.ERROR):
            yield
    finally:
        reader.tqdm = bar
        if bars:
            theirs.enable_progress_bar()


def _of_hooked(model: HookedTransformer, text: Any) -> TaskTransformer:
    """The same model, its weights shared, as one that knows its text."""
    opened: Any = copy.copy(model)
    opened.__class__ = PretrainedTransformer
    opened.task, opened.info, opened.notes = getattr(model, "task", None), None, {}
    opened.model_name = str(getattr(model.cfg, "model_name", "") or "HookedTransformer")
    opened.processed = "as it was given"
    if opened.task is not None and text is None:
        return opened
    return with_text(opened, model.tokenizer, text)


def with_text(model: PretrainedTransformer, tokenizer: Any, text: Any) -> PretrainedTransformer:
    """Let the model's text be ``text``, in its own tokens; without a tokenizer it has none.

    Args:
        text: a task, what :class:`~gated_interp.tasks.text.TextTask` reads (``austen`` unless
            given), or the fields of one that a file names, by name.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    own = "" if backend is None else str(backend.to_str())
    if isinstance(text, Mapping) and not text.get("tokenizer"):
        text = {**text, "tokenizer": own} if own else None
    if isinstance(text, Mapping):
        text = TextTask.stored(**text)
    if isinstance(text, TextTask):
        give_text(model, text)
        model.own_tokenizer = text.tokenizer == own
        return model
    if not own:
        return model
    length = min(model.cfg.n_ctx, 64)
    task = TextTask.stored([], length, own, "")
    if task.d_vocab > model.cfg.d_vocab:
        raise CheckpointError(
            "tokenizer-of-another-model",
            model=model.model_name,
            tokens=task.d_vocab,
            d_vocab=model.cfg.d_vocab,
        )
    give_text(model, TextTask("austen" if text is None else text, length, own))
    return model
