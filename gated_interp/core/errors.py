"""The one error a user of the toolkit has to catch."""


class GatedInterpError(ValueError):
    """Bad input: one sentence that names what is wrong and what would be right.

    Examples:
        >>> from gated_interp.tasks.skip_trigrams import SkipTrigramTask
        >>> SkipTrigramTask(n_trigrams=0)
        Traceback (most recent call last):
        gated_interp.core.errors.GatedInterpError: n_trigrams is 0; it must be a whole number...
    """


def unreached(hook: str, what: str) -> GatedInterpError:
    """The error of a hook that never ran, for want of which ``what`` happened to nothing."""
    return GatedInterpError(
        f"no forward pass reached {hook!r}, so {what}. A model from torch.compile skips hooks: use "
        "the model that was compiled. Some hook points must be switched on first, as hook_result "
        "by model.set_use_attn_result(True)."
    )


class CheckpointError(GatedInterpError):
    """A file that is not a checkpoint this version can load.

    Examples:
        >>> from gated_interp.checkpoints.checkpoint import load
        >>> load("model.bin")
        Traceback (most recent call last):
        gated_interp.core.errors.CheckpointError: there is no file model.bin; name a...
    """
