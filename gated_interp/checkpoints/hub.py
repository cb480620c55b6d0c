"""Models on the Hugging Face hub, behind the extra ``hub``.

Of the package only these two functions use the network, a block's ``from_pretrained`` where it is
given a repository, and ``load`` of ``attn-only-…`` by name.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.core.hub import downloaded, explained, hub_library
from gated_interp.core.shipped import MODEL_FILE
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
    path = downloaded(
        repo_id,
        filename,
        revision=revision,
        token=token,
        endpoint=endpoint,
        cache_dir=cache_dir,
    )
    model = load(path)
    model.model_name = repo_id
    return model
