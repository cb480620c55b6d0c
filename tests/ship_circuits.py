"""Turn compiled programs and planted models into known circuits that ship.

``ship_circuits.py FOLDER`` reads what ``compile_circuits.py`` wrote; any further arguments are
planted models to ship as they are. Each compiled layer gets idle heads, whose random writes are as
large as can be while they move the metric by 2% at most, all of them together.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from ship import SHIPPED, rounded

from gated_interp.analysis.interchange import node_effects
from gated_interp.anatomy.nodes import EMBED, LOGITS, nodes_of
from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.checkpoints.known import write_record
from gated_interp.experiments.plant import plant_settings, recorded, write_circuit
from gated_interp.models.program_model import ProgramConfig, ProgramTransformer, build_program
from gated_interp.tasks.program import ProgramTask

HEADS, SCALE, MOST = 4, 10.0, 0.02


def compiled(folder: Path, name: str) -> tuple[ProgramTransformer, dict, int]:
    """The model of tracr's weights, its idle heads still silent; what tracr said; its heads."""
    said = json.loads((folder / f"{name}.json").read_text())
    theirs = {
        k: torch.tensor(v, dtype=torch.float32) for k, v in np.load(folder / f"{name}.npz").items()
    }
    layer = "transformer/layer_{}/{}/{}"
    key, task = theirs[layer.format(0, "attn/key", "w")], ProgramTask(name)
    width, d_head = len(key), key.shape[1] // said["heads"]
    config = ProgramConfig(
        program=name,
        n_layers=said["layers"],
        d_model=width,
        n_heads=HEADS,
        d_head=d_head,
        d_mlp=theirs[layer.format(0, "mlp/linear_1", "w")].shape[1],
        normalization="none",
    )
    model = build_program(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for token, index in said["tokens"].items():
            model.embed.W_E[task.token_names.index(token)] = theirs["token_embed/embeddings"][index]
        model.pos_embed.W_pos.copy_(theirs["pos_embed/embeddings"][: task.n_positions])
        for i, block in enumerate(model.blocks):
            for h in range(said["heads"]):
                own = slice(h * d_head, (h + 1) * d_head)
                for ours, part in (("Q", "query"), ("K", "key"), ("V", "value")):
                    at = layer.format(i, f"attn/{part}", "{}")
                    getattr(block.attn, f"W_{ours}")[h] = theirs[at.format("w")][:, own]
                    getattr(block.attn, f"b_{ours}")[h] = theirs[at.format("b")][own]
                block.attn.W_O[h] = theirs[layer.format(i, "attn/linear", "w")][own]
            block.attn.b_O.copy_(theirs[layer.format(i, "attn/linear", "b")])
            for ours, part in (("in", "linear_1"), ("out", "linear_2")):
                at = layer.format(i, f"mlp/{part}", "{}")
                getattr(block.mlp, f"W_{ours}").copy_(theirs[at.format("w")])
                getattr(block.mlp, f"b_{ours}").copy_(theirs[at.format("b")])
        _read_out(model, said)
    return model, said, said["heads"]


def _read_out(model: ProgramTransformer, said: dict) -> None:
    """Logits: 10 for the answer. A number is nearest to its own: -(x - c)^2 is linear in x."""
    names, answers = model.task.token_names, model.task.answers
    if not said["numerical"]:
        for word, place in said["out"]:
            model.unembed.W_U[place, names.index(word)] = SCALE
        return
    ((_, place),) = said["out"]
    values = torch.tensor([float(names[token]) for token in answers])
    slope = SCALE / (values[1] - values[0]) ** 2
    model.unembed.b_U.fill_(-2 * slope)
    model.unembed.W_U[place, answers] = 2 * slope * values
    model.unembed.b_U[answers] = -slope * values**2


def by_weights(model: ProgramTransformer, heads: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The circuit that the weights of compiled nodes spell: what writes where something reads."""
    writes = {EMBED: model.embed.W_E.abs().sum(0) + model.pos_embed.W_pos.abs().sum(0)}
    edges: list[tuple[str, str]] = []

    def arrive(receiver: str, read: torch.Tensor) -> None:
        edges.extend((s, receiver) for s, w in writes.items() if ((w > 1e-6) & (read > 1e-6)).any())

    for i, block in enumerate(model.blocks):
        attn, new = block.attn, {}
        for h in range(heads):
            node = f"L{i}H{h}"
            arrive(f"{node}.q", (attn.W_Q[h] @ attn.W_K[h].T).abs().sum(1))
            arrive(f"{node}.k", (attn.W_Q[h] @ attn.W_K[h].T).abs().sum(0))
            arrive(f"{node}.v", (attn.W_V[h] @ attn.W_O[h]).abs().sum(1))
            new[node] = (attn.W_V[h] @ attn.W_O[h]).abs().sum(0)
        writes |= new
        arrive(f"L{i} mlp", block.mlp.W_in.abs().sum(1))
        writes[f"L{i} mlp"] = block.mlp.W_out.abs().sum(0)
    arrive(LOGITS, model.unembed.W_U.abs().sum(1))
    # Of these, what leads on to the logits.
    used, kept = {LOGITS}, []
    for sender, receiver in reversed(edges):
        if receiver.partition(".")[0] in used:
            used.add(sender)
            kept.append((sender, receiver))
    return [n for n in nodes_of(model) if n in used], kept[::-1]


@torch.no_grad()
def pad(model: ProgramTransformer, heads: int, seed: int) -> None:
    """Give the silent heads weights: they attend and write, and hardly anything follows."""
    source = torch.Generator().manual_seed(seed)
    idle = [f"L{i}H{h}" for i in range(model.cfg.n_layers) for h in range(heads, HEADS)]
    for block in model.blocks:
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            weight = getattr(block.attn, name)[heads:]
            weight.copy_(torch.randn(weight.shape, generator=source) / math.sqrt(weight.shape[-2]))
    # Halve what they write until it moves too little to matter.
    pairs = model.task.pairs(256, 0)
    while node_effects(model, pairs, [idle])["effect"].item() > MOST or not _right(model):
        for block in model.blocks:
            block.attn.W_O[heads:] /= 2


@torch.no_grad()
def _right(model: ProgramTransformer) -> bool:
    batch = model.task.sample(1000, 0)
    return bool((model(batch.tokens)[:, -1].argmax(-1) == batch.answer).all())


def main(folder: Path, planted: list[Path]) -> None:
    for seed, found in enumerate(sorted(folder.glob("*.json"))):
        model, _, heads = compiled(folder, found.stem)
        assert _right(model), found.stem
        truth = by_weights(model, heads)
        pad(model, heads, seed)
        for weight in model.parameters():
            weight.data = rounded(weight.data)
        path = SHIPPED / f"compiled-{found.stem}.safetensors"
        save(model, path, notes={"compiled_by": "tracr-pypi 1.0.0"})
        write_record(path, recorded(load(path), "compiled", {"weights": truth}, {}))
        print(
            path.name,
            path.stat().st_size,
            json.loads(path.with_suffix(".json").read_text())["measured"],
        )
    for path in planted:
        model = load(path)
        said = json.loads(path.with_suffix(".json").read_text())
        for weight in model.parameters():
            weight.data = rounded(weight.data)
        shipped = SHIPPED / path.name
        save(model, shipped, notes=model.notes)
        run = plant_settings(said["program"], variables=said["variables"], **_shape(model))
        circuit = write_circuit(shipped, run)
        print(shipped.name, shipped.stat().st_size, circuit.record.measured)


def _shape(model: ProgramTransformer) -> dict:
    return {k: v for k, v in model.program_config.to_dict().items() if k not in ("program", "seed")}


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
