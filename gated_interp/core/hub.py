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

    Raises:
        GatedInterpError: the extra is missing, or the hub cannot be reached, has no such
            repository, revision or file.
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
        raise GatedInterpError(
            "the hub needs the package huggingface_hub; install gated-interp[hub]."
        ) from error
    module: ModuleType = huggingface_hub
    return module


def explained(
    error: Exception, repo_id: str, filename: str, revision: str | None
) -> GatedInterpError:
    """One sentence for whatever went wrong on the way to the hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return GatedInterpError(f"{repo_id!r} is not a hub repository; write 'user/name'.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return GatedInterpError(
            f"the hub has no model repository {repo_id!r} that you may use; check the name, or "
            "pass a token that may."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return GatedInterpError(
            f"the repository {repo_id!r} has no revision {revision!r}; name a branch, tag or "
            "commit."
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return GatedInterpError(
            f"the repository {repo_id!r} has no file {filename!r}; pass filename= for another."
        )
    # What really happened may hide behind "not in the local cache" or "error while uploading".
    reason: BaseException = error
    while reason.__cause__ is not None and getattr(reason, "response", None) is None:
        reason = reason.__cause__
    response = getattr(reason, "response", None)
    if response is not None:
        may = "; pass a token that may" if response.status_code in (401, 403) else ""
        return GatedInterpError(
            f"the hub refused {repo_id!r} with status {response.status_code}{may}."
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return GatedInterpError("no access token is stored; pass token= or log in to the hub.")
    if isinstance(reason, OSError) and reason.filename is not None:
        return GatedInterpError(
            f"cannot use {reason.filename} ({reason.strerror}); name another folder as cache_dir."
        )
    words = str(reason).strip().splitlines() or [type(reason).__name__]
    return GatedInterpError(
        f"the hub cannot be reached for {repo_id!r} ({words[0]}); check the network, or load a "
        "local file."
    )
