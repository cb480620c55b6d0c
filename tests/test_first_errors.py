"""What somebody tries first on a model of their own, and the error whose sentence says what to do.

In a process of its own: here the shape checker would refuse wrong types first.
"""

import json
import subprocess
import sys

import pytest
import torch
from attention_models import two_layers
from refusals import refuses

import gated_interp as gi
from gated_interp.replacements.sae import OutputAutoencoder, SAEConfig

TRIED = """
import json, torch
from attention_models import two_layers
import gated_interp as gi

task = gi.SkipTrigramTask(3)
model = two_layers(task)
block = gi.GatedAttention.from_attention(model.blocks[0].attn)
spliced = gi.splice(model, 0, block)
tokens = task.sample(9, seed=0).tokens
loader = torch.utils.data.DataLoader(tokens, batch_size=3)
QUIET = {"verbose": False, "stop_at_eos": False}
config = gi.TrainConfig(steps=2, batch_size=3, device="cpu")

def split():
    spliced.set_use_split_qkv_input(True)
    try:
        spliced(tokens)
    finally:
        spliced.set_use_split_qkv_input(False)

def by_name():
    gi.splice(model, "0", block)

def generate():
    spliced.generate(tokens[:1, :3], max_new_tokens=2, do_sample=False, **QUIET)

TRIED = {
    "split": split,
    "generate": generate,
    "no task": lambda: gi.verdict(two_layers(task), None, layer=1),
    "no task, one layer": lambda: gi.verdict(gi.analytic.manual_model(2, 3).model, None),
    "whole model": lambda: gi.GatedAttention.from_attention(model),
    "swapped": lambda: gi.splice(model, block, 1),
    "attention": lambda: gi.splice(model, 0, model.blocks[0].attn),
    "name": by_name,
    "loader": lambda: gi.train_gated(model, block, config, data=loader, progress=False),
    "held out": lambda: gi.train_gated(
        model, block, config.replace(log_every=1, evaluate_every=1), data=tokens,
        held_out=loader, progress=False,
    ),
    "number": lambda: gi.train_gated(model, block, config, data=3, progress=False),
    "floats": lambda: gi.train_gated(model, block, config, data=tokens / 2, progress=False),
    "row": lambda: gi.train_gated(model, block, config, data=tokens[0], progress=False),
    "explorer": lambda: gi.HeadExplorer(model, None),
}
said = {}
for name, call in TRIED.items():
    try:
        call()
        said[name] = "nothing"
    except gi.GatedInterpError as error:
        said[name] = [error.code, str(error)]
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
# What works instead.
ids = spliced.generate(
    tokens[:1, :3], max_new_tokens=2, do_sample=False, **QUIET, use_past_kv_cache=False
)
said["generated"] = list(ids.shape)
print(json.dumps(said))
"""

SAYS = {
    "split": "split-input-in-replacement",
    "generate": "replacement-takes-no-cache",
    "no task": "no-task",
    "no task, one layer": "no-task",
    "whole model": "not-an-attention-layer",
    "swapped": "not-a-replacement",
    "attention": "not-a-replacement",
    "name": "layer-not-a-number",
    "loader": "data-not-repeatable",
    "held out": "data-not-repeatable",
    "number": "data-not-repeatable",
    "floats": "tokens-wrong-shape",
    "row": "tokens-wrong-shape",
    "explorer": "no-examples",
}


@pytest.fixture(scope="module")
def said(pytestconfig):
    code = "import sys; sys.path.insert(0, 'tests'); exec(sys.stdin.read())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], input=TRIED, cwd=pytestconfig.rootpath,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SAYS)
def test_the_error_is_one_of_ours(said, name):
    code, sentence = said[name]
    assert code == SAYS[name]
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_generation_without_a_cache(said):
    assert said["generated"] == [1, 5]


def test_an_autoencoder_takes_no_cache_either():
    model = two_layers(gi.SkipTrigramTask(3))
    block = OutputAutoencoder(SAEConfig(d_model=13, n_heads=4, k=2), model.blocks[0].attn)
    x = torch.zeros(1, 3, 13)
    with refuses("replacement-takes-no-cache"):
        block(query_input=x, key_input=x, value_input=x, past_kv_cache_entry=object())
    with refuses("split-input-in-replacement"):
        block(query_input=x[:, :, None].repeat(1, 1, 3, 1))
