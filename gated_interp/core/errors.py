"""The one error a user of the toolkit has to catch, and how to tell one that is not ours."""


class GatedInterpError(ValueError):
    """Bad input: one sentence that names what is wrong and what would be right.

    Examples:
        >>> from gated_interp.tasks.skip_trigrams import SkipTrigramTask
        >>> SkipTrigramTask(n_trigrams=0)
        Traceback (most recent call last):
        gated_interp.core.errors.GatedInterpError: n_trigrams is 0; it must be a whole number...
    """


class GatedInterpWarning(UserWarning):
    """A result that is there but is not what was asked for, and what to try.

    Examples:
        >>> import warnings
        >>> from gated_interp.models.toy import ToyConfig, build_toy
        >>> from gated_interp.training.fit import fit_gated
        >>> toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     _ = fit_gated(toy, steps=2, fvu=0.01, init="random", progress=False)
        >>> str(said[0].message)
        'the training of the block ended with an error of ...
    """


def unreached(hook: str, what: str) -> GatedInterpError:
    """The error of a hook that never ran, for want of which ``what`` happened to nothing."""
    return GatedInterpError(
        f"no forward pass reached {hook!r}, so {what}. A model from torch.compile skips hooks: use "
        "the model that was compiled. Some hook points must be switched on first, as hook_result "
        "by model.set_use_attn_result(True)."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, in the words of Python, of torch or of its drivers.

    Examples:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 16 GB"))
        True
    """
    said = str(error).lower()
    words = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "alloc_failed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in said for word in words)
    )


class CheckpointError(GatedInterpError):
    """A file that is not a checkpoint this version can load.

    Examples:
        >>> from gated_interp.checkpoints.checkpoint import load
        >>> load("model.bin")
        Traceback (most recent call last):
        gated_interp.core.errors.CheckpointError: there is no file model.bin; name a...
    """
