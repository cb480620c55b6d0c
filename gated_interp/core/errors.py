"""The one error a user of the toolkit has to catch."""


class GatedInterpError(ValueError):
    """Bad input: one sentence that names what is wrong and what would be right."""


class CheckpointError(GatedInterpError):
    """A file that is not a checkpoint this version can load."""
