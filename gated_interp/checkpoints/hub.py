"""Models on the Hugging Face hub, behind the extra ``hub``.

Only these two functions ever use the network, and only when they are called.
"""

import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.checkpoints.shipped import MODEL_FILE
from gated_interp.core.errors import GatedInterpError
from gated_interp.models.toy import HookedTransformer, TaskTransformer


def push_to_hub(
    model: HookedTransformer,
    repo_id: str,
    *,
    filename: str = MODEL_FILE,
    notes: dict[str, Any] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload ``model`` as one checkpoint file to a hub repository, made where there is none.

    Args:
        repo_id: ``user/name``.
        filename: of the checkpoint in the repository.
        notes: as in :func:`gated_interp.checkpoints.checkpoint.save`.
        private: whether a new repository is private; ``None`` is the account's default.
        revision: branch to commit to; ``None`` is the main one.
        token: access token; ``None`` is the one that ``huggingface_hub`` has stored.
        endpoint: address of another hub; ``None`` is ``huggingface_hub``'s default.

    Returns:
        The address of the commit.

    Raises:
        GatedInterpError: the extra is missing, the model cannot be saved, or the hub cannot be
            reached or refuses.

    Examples:
        Not run by the tests, as it needs the network::

            push_to_hub(load("2H3ST-gated"), "user/2H3ST-gated")
    """
    hub = hub_library()
    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder) / MODEL_FILE, notes=notes)
        try:
            api = hub.HfApi(endpoint=endpoint, token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_file(
                path_or_fileobj=str(path),
                path_in_repo=filename,
                repo_id=repo_id,
                revision=revision,
                commit_message=commit_message or f"Upload {filename}",
            )
        # Which errors there are depends on the release: requests' before 1.0, httpx's since.
        except Exception as error:
            raise explained(error, repo_id, filename, revision) from error
    return str(commit.commit_url)


def from_hub(
    repo_id: str,
    *,
    filename: str = MODEL_FILE,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TaskTransformer:
    """Download a checkpoint from the hub, or take it from the local cache, and load it.

    Args:
        repo_id: ``user/name``.
        filename: of the checkpoint in the repository.
        revision: branch, tag or commit; ``None`` is the main branch. What is downloaded is
            checked like any file, but only a commit pins *which* weights it is.
        token: access token; ``None`` is the one that ``huggingface_hub`` has stored.
        endpoint: address of another hub; ``None`` is ``huggingface_hub``'s default.
        cache_dir: where downloads are kept; ``None`` is ``huggingface_hub``'s default.

    Returns:
        The model as :func:`gated_interp.checkpoints.checkpoint.load` gives it; ``model_name`` is
        ``repo_id``.

    Raises:
        GatedInterpError: the extra is missing, or the hub cannot be reached, has no such
            repository, revision or file.
        CheckpointError: the file is not a sound checkpoint.

    Examples:
        Not run by the tests, as it needs the network::

            model = from_hub("user/2H3ST-gated")
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
    except Exception as error:
        raise explained(error, repo_id, filename, revision) from error
    model = load(Path(path))
    model.model_name = repo_id
    return model


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
