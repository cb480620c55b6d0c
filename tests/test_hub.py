"""Pushing to and loading from a hub, against a local fake of its file interface."""

import functools
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
import torch
from fake_hub import TOKEN, FakeHub, serving
from markdown_it import MarkdownIt
from refusals import refuses
from test_referenced import written

from gated_interp.checkpoints.hub import from_hub, push_to_hub
from gated_interp.checkpoints.opened import open_model
from gated_interp.core.errors import CheckpointError, GatedInterpError
from gated_interp.models.toy import HookedTransformer, ToyConfig, build_toy
from gated_interp.replacements.gated_attention import GatedAttention, GatedConfig
from gated_interp.replacements.layer_sketch import model_sketch
from gated_interp.replacements.splice import own_weights, splice, unsplice

REPO = "someone/2H3ST-gated"


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No request leaves this machine: connecting anywhere but to loopback fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    # The library waits seconds between its retries; what it does in the end is the same.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving() as running:
        yield running


@pytest.fixture
def model() -> HookedTransformer:
    toy = build_toy(ToyConfig(n_trigrams=3, n_heads=2))
    return splice(toy, 0, GatedAttention(GatedConfig(d_model=8, n_heads=5, d_head=3)))


def fetch(hub: FakeHub, folder: Path, **options: Any) -> HookedTransformer:
    return from_hub(
        options.pop("repo_id", REPO),
        endpoint=hub.endpoint,
        token=TOKEN,
        cache_dir=folder,
        **options,
    )


def test_a_pushed_model_comes_back(hub: FakeHub, model: HookedTransformer, tmp_path: Path) -> None:
    address = push_to_hub(model, REPO, notes={"l0": 0.4}, token=TOKEN, endpoint=hub.endpoint)
    assert address == f"{hub.endpoint}/{REPO}/commit/{hub.commit_id(REPO, 1)}"
    assert list(hub.repositories[REPO][-1]) == ["model.safetensors", "README.md"]

    loaded = fetch(hub, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert unsplice(loaded).toy_config == model.toy_config
    assert (loaded.model_name, loaded.notes) == (REPO, {"l0": 0.4})


def test_a_block_comes_out_of_a_repository(
    hub: FakeHub, model: HookedTransformer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"token": TOKEN, "endpoint": hub.endpoint, "cache_dir": tmp_path}
    push_to_hub(model, REPO, token=TOKEN, endpoint=hub.endpoint)
    block = GatedAttention.from_pretrained(REPO, **options)
    for name, value in model.blocks[0].attn.state_dict().items():
        assert torch.equal(value, block.state_dict()[name]), name
    with refuses("hub-no-repository") as said:
        GatedAttention.from_pretrained("someone/else", **options)
    sentence(said)


def test_a_revision_is_the_model_as_it_was_then(
    hub: FakeHub, model: HookedTransformer, tmp_path: Path
) -> None:
    for kind in (unsplice(model), model):
        push_to_hub(kind, REPO, token=TOKEN, endpoint=hub.endpoint)
    assert fetch(hub, tmp_path).info.kind == "gated"
    assert fetch(hub, tmp_path, revision=hub.commit_id(REPO, 1)).info.kind == "toy"


def test_several_models_share_a_repository(
    hub: FakeHub, model: HookedTransformer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"token": TOKEN, "endpoint": hub.endpoint}
    push_to_hub(unsplice(model), REPO, filename="toy.safetensors", **options)
    push_to_hub(model, REPO, filename="gated/a.safetensors", **options)
    assert fetch(hub, tmp_path, filename="toy.safetensors").info.kind == "toy"
    assert fetch(hub, tmp_path, filename="gated/a.safetensors").info.kind == "gated"


def test_what_was_downloaded_loads_from_the_cache_without_the_hub(
    model: HookedTransformer, tmp_path: Path
) -> None:
    with serving() as hub:
        push_to_hub(model, REPO, token=TOKEN, endpoint=hub.endpoint)
        before = fetch(hub, tmp_path)
    after = fetch(hub, tmp_path)  # the server is gone
    assert torch.equal(before.blocks[0].attn.W_Q, after.blocks[0].attn.W_Q)


def test_a_private_repository_is_asked_for(model: HookedTransformer) -> None:
    with serving() as hub:
        push_to_hub(model, REPO, private=True, token=TOKEN, endpoint=hub.endpoint)
        assert hub.private[REPO] in (True, "private")


# ---------------------------------------------------------------- the model card


def card_of(hub: FakeHub) -> huggingface_hub.ModelCard:
    return huggingface_hub.ModelCard(hub.repositories[REPO][-1]["README.md"].decode())


def test_the_card_says_what_it_is_and_how_to_load_it(
    hub: FakeHub, model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = pd.DataFrame({"measure": ["FVU"], "value": [0.0123456], "95% | low": [0.01]})
    options: dict[str, Any] = {"token": TOKEN, "endpoint": hub.endpoint}
    push_to_hub(model, REPO, measures=measures, license="mit", notes={"seed": 7}, **options)
    card = card_of(hub)
    assert card.data.to_dict() == {
        "library_name": "gated-interp", "license": "mit",
        "tags": ["interpretability", "attention", "gated"],
    }  # fmt: skip
    # What an independent reader of Markdown sees.
    html = MarkdownIt().enable("table").render(card.text)
    for cell in ("FVU", "0.01235", "95% | low", "notes.seed", "7", "GatedConfig"):
        assert re.search(rf"<t[dh]>{re.escape(cell)}</t[dh]>", html), cell
    assert "Mathwin" in card.text

    # The code on the card loads it.
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    theirs = functools.partial(from_hub, cache_dir=tmp_path, **options)
    monkeypatch.setattr("gated_interp.from_hub", theirs, raising=False)
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.equal(names["model"].blocks[0].attn.W_Q, model.blocks[0].attn.W_Q)


def test_the_card_names_the_base_model_and_no_folder(hub: FakeHub, tmp_path: Path) -> None:
    folder = written(tmp_path / "secret place")
    options: dict[str, Any] = {"token": TOKEN, "endpoint": hub.endpoint}
    opened = open_model(folder)
    block = GatedAttention.from_attention(opened.blocks[1].attn, 2)
    push_to_hub(splice(opened, 1, block), REPO, base_model="someone/base", **options)
    card = card_of(hub)
    assert card.data.base_model == "someone/base"
    assert 'base="someone/base"' in card.text
    assert "secret place" not in card.text
    (sketch,) = re.findall(r"fingerprint: `(.*?)`", card.text)
    assert float(sketch.split(",")[0]) == pytest.approx(
        model_sketch(own_weights(opened))[0], rel=1e-5
    )
    back = fetch(hub, tmp_path / "cache", base=folder)
    tokens = torch.arange(6)[None]
    expected = splice(opened, 1, block)(tokens)
    torch.testing.assert_close(back(tokens), expected)

    # Where the base model is missing, it is named: as the card does, or by its shape.
    folder.rename(tmp_path / "moved")
    with refuses("hub-base-missing", repo=REPO, base="someone/base"):
        fetch(hub, tmp_path / "cache")
    push_to_hub(splice(opened, 1, block), "someone/other", **options)
    shape = f"a {opened.cfg.original_architecture} of {opened.cfg.n_layers} layers"
    with refuses("hub-base-missing", CheckpointError) as caught:
        fetch(hub, tmp_path / "cache", repo_id="someone/other")
    assert shape in str(caught.value)


def test_a_card_that_the_checker_refuses_is_one_sentence(
    hub: FakeHub, model: HookedTransformer
) -> None:
    with refuses("hub-card-refused") as said:
        push_to_hub(model, REPO, base_model="a b", token=TOKEN, endpoint=hub.endpoint)
    sentence(said)
    assert '"base_model" with value "a b"' in str(said.value)
    assert hub.repositories[REPO][-1] == {}


def test_a_card_that_somebody_wrote_stays(hub: FakeHub, model: HookedTransformer) -> None:
    options: dict[str, Any] = {"token": TOKEN, "endpoint": hub.endpoint}
    push_to_hub(unsplice(model), REPO, **options)
    push_to_hub(model, REPO, **options)
    assert "gated" in card_of(hub).data.tags  # ours is written again
    hub.repositories[REPO][-1]["README.md"] = b"My own words."
    push_to_hub(unsplice(model), REPO, **options)
    assert hub.repositories[REPO][-1]["README.md"] == b"My own words."


# ---------------------------------------------------------------- refusals


def sentence(refused: pytest.ExceptionInfo[GatedInterpError]) -> str:
    text = str(refused.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert TOKEN not in text
    return text


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"repo_id": "someone/else"}, "hub-no-repository"),
        ({"revision": "v9"}, "hub-no-revision"),
        ({"filename": "none.safetensors"}, "hub-no-file"),
        ({"repo_id": "a/b/c"}, "hub-bad-name"),
    ],
)
def test_what_is_not_there_is_named(
    model: HookedTransformer, tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    with serving() as hub:
        push_to_hub(model, REPO, token=TOKEN, endpoint=hub.endpoint)
        with refuses(code) as refused:
            fetch(hub, tmp_path, **options)
    sentence(refused)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with serving() as hub:
        hub.repositories[REPO] = [{"model.safetensors": b"not a model at all"}]
        with refuses("not-safetensors", CheckpointError):
            fetch(hub, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(model: HookedTransformer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with serving() as hub:
        push_to_hub(model, REPO, token=TOKEN, endpoint=hub.endpoint)
        with refuses("hub-cache-unusable") as refused:
            fetch(hub, tmp_path / "file")
    sentence(refused)


def test_an_unreachable_hub_is_a_sentence(model: HookedTransformer, tmp_path: Path) -> None:
    with serving() as hub:
        pass  # its port is free again: nobody answers
    with refuses("hub-unreachable") as refused:
        fetch(hub, tmp_path)
    assert "load a local file" in sentence(refused)
    with refuses("hub-unreachable") as refused:
        push_to_hub(model, REPO, token=TOKEN, endpoint=hub.endpoint)
    sentence(refused)


def test_offline_mode_is_a_sentence(
    model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with refuses("hub-unreachable") as refused:
            fetch(hub, tmp_path)
        sentence(refused)
        with refuses("hub-unreachable") as refused:
            push_to_hub(model, REPO, token=TOKEN, endpoint=hub.endpoint)
        sentence(refused)
        assert hub.requests == []


@pytest.mark.parametrize("status", [403, 500])
def test_a_refusing_hub_is_quoted(model: HookedTransformer, tmp_path: Path, status: int) -> None:
    code = "hub-access-denied" if status == 403 else "hub-refused"
    with serving() as hub:
        hub.broken_with = status
        with refuses(code, status=status) as refused:
            fetch(hub, tmp_path)
        assert ("token" in sentence(refused)) == (status == 403)
        with refuses(code, status=status) as refused:
            push_to_hub(model, REPO, token=TOKEN, endpoint=hub.endpoint)
        sentence(refused)


def test_a_wrong_token_may_not_push(model: HookedTransformer) -> None:
    with serving() as hub:
        with refuses("hub-access-denied"):
            push_to_hub(model, REPO, token="another", endpoint=hub.endpoint)
        assert hub.repositories == {}


def test_a_model_that_cannot_be_saved_is_not_pushed(model: HookedTransformer) -> None:
    with torch.no_grad():
        model.blocks[0].attn.W_Q.fill_(torch.nan)
    with serving() as hub:
        with refuses("tensor-not-finite", CheckpointError, bad=120, total=120):
            push_to_hub(model, REPO, token=TOKEN, endpoint=hub.endpoint)
        assert hub.requests == []


def test_without_the_extra_the_sentence_names_it(
    model: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (lambda: from_hub(REPO), lambda: push_to_hub(model, REPO)):
        with refuses("hub-package-missing"):
            use()
