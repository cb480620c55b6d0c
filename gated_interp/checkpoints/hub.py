"""Models on the Hugging Face hub, behind the extra ``hub``.

Of the package only these two functions use the network, a block's ``from_pretrained`` where it is
given a repository, and ``load`` of ``attn-only-…`` by name.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gated_interp.checkpoints.card import MARK, model_card
from gated_interp.checkpoints.checkpoint import load, read_info, save
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.core.hub import downloaded, explained, hub_library
from gated_interp.core.shipped import MODEL_FILE
from gated_interp.models.toy import HookedTransformer, TaskTransformer

if TYPE_CHECKING:
    import pandas as pd


def push_to_hub(
    model: HookedTransformer,
    repo_id: str,
    *,
    filename: str = MODEL_FILE,
    notes: dict[str, Any] | None = None,
    measures: "pd.DataFrame | None" = None,
    base_model: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload ``model`` as one checkpoint file to a hub repository, made where there is none.

    A model card goes with it (``README.md``): what it is, how to load it, its base model and that
    one's fingerprint, settings, measures and citation. A card that somebody else wrote stays.

    Args:
        repo_id: ``user/name``.
        filename: of the checkpoint in the repository.
        notes: as in :func:`gated_interp.checkpoints.checkpoint.save`.
        measures: a table for the card, shown as it is; name units, n and intervals in its columns.
        base_model: for the card, the repository of the model that the blocks stand in; ``None``
            takes the name under which it was opened, if that was one on the hub.
        license: for the card, as the hub writes it, such as ``mit``.
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
        card = model_card(
            read_info(path),
            repo_id,
            filename=filename,
            base_model=base_model,
            license=license,
            measures=measures,
        )
        try:
            api = hub.HfApi(endpoint=endpoint, token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            files: dict[str, str | bytes] = {filename: str(path)}
            if _card_is_ours(hub, repo_id, revision, token, endpoint, folder):
                files["README.md"] = card.encode()
            commit = api.create_commit(
                repo_id,
                [hub.CommitOperationAdd(name, what) for name, what in files.items()],
                revision=revision,
                commit_message=commit_message or f"Upload {filename}",
            )
        # Which errors there are depends on the release: requests' before 1.0, httpx's since.
        except Exception as error:
            raise explained(error, repo_id, filename, revision) from error
    return str(commit.commit_url)


def _card_is_ours(
    hub: Any,
    repo_id: str,
    revision: str | None,
    token: str | None,
    endpoint: str | None,
    folder: str,
) -> bool:
    """Whether there is no card yet, or one that was written here."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    options = {"token": token, "endpoint": endpoint, "cache_dir": folder}
    try:
        found = hub.hf_hub_download(repo_id, "README.md", revision=revision, **options)
    except LocalEntryNotFoundError:  # the hub did not answer
        raise
    except EntryNotFoundError:
        return True
    return MARK in Path(found).read_text(encoding="utf-8")


def from_hub(
    repo_id: str,
    *,
    filename: str = MODEL_FILE,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    base: Any = None,
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
        base: of a checkpoint that holds blocks alone, their model, see
            :func:`gated_interp.checkpoints.checkpoint.load`.

    Returns:
        The model as :func:`gated_interp.checkpoints.checkpoint.load` gives it; ``model_name`` is
        ``repo_id``.

    Raises:
        GatedInterpError: the extra is missing, or the hub cannot be reached, has no such
            repository, revision or file.
        CheckpointError: the file is not a sound checkpoint, or it holds blocks alone and their
            model is not to be found; the sentence names that model.

    Examples:
        Not run by the tests, as it needs the network::

            model = from_hub("user/2H3ST-gated")
    """
    place: dict[str, Any] = {
        "revision": revision, "token": token, "endpoint": endpoint, "cache_dir": cache_dir
    }  # fmt: skip
    path = downloaded(repo_id, filename, **place)
    try:
        model = load(path, base=base)
    except CheckpointError as error:
        if error.code not in ("referenced-model-missing", "referenced-model-in-memory"):
            raise
        named = _base_in_card(repo_id, place) or error.fields["model"]
        raise CheckpointError("hub-base-missing", repo=repo_id, base=named) from error
    model.model_name = repo_id
    return model


def _base_in_card(repo_id: str, place: dict[str, Any]) -> str | None:
    """The base model that the repository's card names."""
    try:
        said = hub_library().metadata_load(downloaded(repo_id, "README.md", **place)) or {}
    except (GatedInterpError, ValueError):  # no card, or one that cannot be read
        return None
    found = said.get("base_model")
    return found if isinstance(found, str) else None
