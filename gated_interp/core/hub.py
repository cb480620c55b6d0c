"""Files on the Hugging Face hub, behind the extra ``hub``; asked only by what says so."""

import os
from pathlib import Path
from types import ModuleType

from gated_interp.core.errors import GatedInterpError


def downloaded(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """A file of a hub repository, downloaded or taken from the local cache.

    The arguments are those of :func:`gated_interp.checkpoints.hub.from_hub`.
    """
    hub = hub_library()
    try:
        path = hub.hf_hub_download(
            repo_id,
            filename,
            revision=revision,
            token=token,
            endpoint=endpoint,
            cache_dir=cache_dir,
        )
    # Which errors there are depends on the release: requests' before 1.0, httpx's since.
    except Exception as error:
        raise explained(error, repo_id, filename, revision) from error
    return Path(path)


def hub_library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise GatedInterpError("hub-package-missing") from error
    module: ModuleType = huggingface_hub
    return module


def explained(
    error: Exception, repo_id: str, filename: str, revision: str | None
) -> GatedInterpError:
    """One sentence for whatever went wrong on the way to the hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return GatedInterpError("hub-bad-name", repo=repo_id)
    if isinstance(error, errors.RepositoryNotFoundError):
        return GatedInterpError("hub-no-repository", repo=repo_id)
    if isinstance(error, errors.RevisionNotFoundError):
        return GatedInterpError("hub-no-revision", repo=repo_id, revision=revision)
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return GatedInterpError("hub-no-file", repo=repo_id, file=filename)
    if isinstance(error, ValueError) and "metadata" in str(error):
        reasons = "; ".join(str(error).splitlines()[1:])
        return GatedInterpError("hub-card-refused", repo=repo_id, reason=reasons)
    # What really happened may hide behind "not in the local cache" or "error while uploading".
    reason: BaseException = error
    while reason.__cause__ is not None and getattr(reason, "response", None) is None:
        reason = reason.__cause__
    response = getattr(reason, "response", None)
    if response is not None:
        return GatedInterpError(
            "hub-access-denied" if response.status_code in (401, 403) else "hub-refused",
            repo=repo_id,
            status=response.status_code,
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return GatedInterpError("hub-no-token")
    if isinstance(reason, OSError) and reason.filename is not None:
        return GatedInterpError("hub-cache-unusable", path=reason.filename, reason=reason.strerror)
    words = str(reason).strip().splitlines() or [type(reason).__name__]
    return GatedInterpError("hub-unreachable", repo=repo_id, reason=words[0])
