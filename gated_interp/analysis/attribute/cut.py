"""The model with some of its edges cut: what they carry comes from the corrupted prompts."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated_interp.analysis.attribute.graph import Graph
from gated_interp.analysis.attribute.prompts import Prompts
from gated_interp.analysis.attribute.stream import (
    FIRST,
    Edit,
    attention_inputs,
    mlp_out,
    observed,
    read_norm,
    reading,
    real_in,
    weights_of,
    z_name,
)
from gated_interp.analysis.heads import intervened
from gated_interp.anatomy.stream import write_norm
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.precision import wide
from gated_interp.replacements.heads import project


class Cutter:
    """Runs the clean prompts with edges cut.

    A receiver at the end of a cut edge reads the stream with what the sender writes in this run
    replaced by what it writes on the corrupted prompts. All else is the model's own.

    Raises:
        GatedInterpError: a norm behind attention, through which heads do not add up.
    """

    def __init__(self, prompts: Prompts, graph: Graph):
        self.prompts, self.graph, self.model = prompts, graph, prompts.model
        for layer in range(self.model.cfg.n_layers):
            norm = write_norm(self.model, layer)
            if norm is not None:
                raise GatedInterpError("edges-through-norm", norm=norm.name)
        self.other = observed(prompts, prompts.other)

    @torch.no_grad()
    def metric(self, cut: Bool[Tensor, "receiver sender"]) -> Float[Tensor, " batch"]:
        """The metric of each clean prompt with these edges cut."""
        each = [self._values(cut & self.graph.there, rows) for rows in self.prompts.rows()]
        return torch.cat(each)

    def _values(self, cut: Bool[Tensor, "receiver sender"], rows: slice) -> Tensor:
        with attention_inputs(self.model) as called:
            run = _Run(self, cut, rows, called)
            with reading(self.model, run.reads()), intervened(self.model, run.edits()):
                logits = self.prompts.logits(self.prompts.clean[rows])
        return self.prompts.values(logits, rows)


class _Run:
    """One pass, with what each sender changes by as it comes up."""

    def __init__(
        self,
        cutter: Cutter,
        cut: Bool[Tensor, "receiver sender"],
        rows: slice,
        called: dict[int, list[dict[str, Tensor]]],
    ):
        self.graph, self.model, self.rows = cutter.graph, cutter.model, rows
        self.other = {name: x[rows] for name, x in cutter.other.items()}
        self.called, self.used = called, cut.any(0)
        self.cut = cut
        self.delta: dict[int, Tensor] = {}
        self.stream: dict[int, Tensor] = {}

    def edits(self) -> dict[str, Edit]:
        """For the hook points of the model."""
        found: dict[str, Edit] = {}
        for layer, inputs in enumerate(self.graph.inputs):
            name = f"blocks.{layer}."
            found[f"{name}hook_resid_pre"] = self._enter(layer)
            for role, where in inputs.items():
                if role in "qkv" and bool(self.cut[where].any()):
                    found[f"{name}attn.hook_{role}"] = self._project(layer, role)
            gates = [where for role, where in inputs.items() if role.startswith("gate")]
            if any(bool(self.cut[where].any()) for where in gates):
                found[f"{name}attn.hook_gate_scores"] = self._gates(layer)
            if bool(self.used[self.graph.heads[layer]].any()):
                found[z_name(layer)] = self._heads(layer)
            if layer in self.graph.mlps and bool(self.used[self.graph.mlps[layer][0]]):
                found[mlp_out(layer)] = self._writes(mlp_out(layer), self.graph.mlps[layer][0])
        return found

    def reads(self) -> dict[int | None, Edit]:
        """For what MLPs and the logits read."""
        where: dict[int | None, int] = {i: r for i, (_, r) in self.graph.mlps.items()}
        where[None] = len(self.graph.receivers) - 1
        return {i: self._add(r) for i, r in where.items() if bool(self.cut[r].any())}

    def _add(self, receiver: int) -> Edit:
        return lambda x: x + self._change(slice(receiver, receiver + 1))[:, :, 0].to(x)

    def _change(self, receivers: slice | Tensor) -> Float[Tensor, "batch pos receiver d_model"]:
        """What each receiver's input changes by."""
        cut = self.cut[receivers]
        there = [s for s in cut.any(0).nonzero()[:, 0].tolist() if s in self.delta]
        delta = torch.stack([self.delta[s] for s in there])
        return torch.einsum("rs,sbpm->bprm", cut[:, there].to(delta), delta)

    def _enter(self, layer: int) -> Edit:
        def edit(x: Tensor) -> None:
            self.stream[layer] = x
            if layer == 0 and bool(self.used[0]):
                self.delta[0] = wide(self.other[FIRST]) - wide(x)

        return edit

    def _writes(self, name: str, sender: int) -> Edit:
        def edit(x: Tensor) -> None:
            self.delta[sender] = wide(self.other[name]) - wide(x)

        return edit

    def _heads(self, layer: int) -> Edit:
        def edit(z: Tensor) -> None:
            change = wide(self.other[z_name(layer)]) - wide(z)
            W_O = wide(self.model.blocks[layer].attn.W_O)
            first = self.graph.heads[layer].start
            for h in range(len(W_O)):
                if bool(self.used[first + h]):
                    self.delta[first + h] = change[:, :, h] @ W_O[h]

        return edit

    def _moved(self, layer: int, role: str) -> tuple[Tensor, Tensor]:
        """Which heads have an edge cut there, and what their queries (or such) change by."""
        where = self.graph.inputs[layer][role]
        heads = self.cut[where].any(1).nonzero()[:, 0]
        x = self.stream[layer]
        change = self._change(heads + where.start).to(x)
        stream = x[:, :, None].expand(change.shape)
        # The difference of inputs: biases and what is added behind the norm stay as they are.
        normed = read_norm(self.model, layer, stream + change) - read_norm(
            self.model, layer, stream
        )
        weight = weights_of(self.model.blocks[layer].attn, role)[heads]
        return heads, torch.einsum("bphm,hmd->bphd", normed, weight)

    def _project(self, layer: int, role: str) -> Edit:
        attn = self.model.blocks[layer].attn

        def edit(x: Tensor) -> Tensor:
            heads, moved = self._moved(layer, role)
            x = x.clone()
            scored = getattr(attn, "scored", None)
            if role == "v" and scored is not None:  # a replacement clips before hook_v
                raw = project(self.called[layer][-1]["value_input"], attn.W_V) + attn.b_V
                x[:, :, heads] = scored.clipped(raw[:, :, heads] + moved)
                return x
            x[:, :, heads] += moved
            return x

        return edit

    def _gates(self, layer: int) -> Edit:
        attn = self.model.blocks[layer].attn

        def edit(_scores: Tensor) -> Tensor:
            called = self.called[layer][-1]
            pair = dict(
                zip(
                    ("gate_q", "gate_k"),
                    attn.gate_projected(called["query_input"], called["key_input"]),
                    strict=True,
                )
            )
            for role in pair:
                if bool(self.cut[self.graph.inputs[layer][role]].any()):
                    heads, moved = self._moved(layer, role)
                    pair[role] = pair[role].clone()
                    pair[role][:, :, heads] += moved
            return attn.gate_scores(**pair, real=real_in(called))

        return edit
