"""A score is the sum of its parts, and each part is what taking a component away takes away."""

import functools
import math

import attention_models as models
import pytest
import torch
from closeness import assert_close
from model_kinds import TASK, Column
from refusals import refuses
from truth import doubled

import gated_interp as gi
from gated_interp.analysis.heads import intervened

DRAW = torch.Generator().manual_seed(0)
TOKENS = torch.randint(0, TASK.d_vocab - 1, (3, 8), generator=DRAW)
ROW, HEAD, QUERY, KEY = 1, 2, 6, 3
COLUMNS = [
    Column("no norm"),
    Column("LN", "MLPs"),
    Column("LNPre", "parallel MLPs"),
    Column("grouped queries"),
    Column("rotary, partial", "MLPs"),
    Column("score soft cap"),
    Column("query-key norm"),
    Column("ALiBi"),
    Column("shortformer"),
    Column("norm before and after", "MLPs"),
    Column("norm after (OLMo 2)", "MLPs"),
    Column("log-n attention"),
    Column("Qwen3"),
    Column("LN", "", block="gated"),
    Column("rotary", "", block="TopK"),
    Column("LN", "", block="autoencoder"),
]


@functools.lru_cache(1)
def run_once(model):
    return model.run_with_cache(TOKENS)[1]


def scores(model, layer, edits, hook="hook_attn_scores"):
    """What stands at a hook of the head's layer after ``edits``, norms at their intact scale."""
    pinned, found = {}, {}
    for norm in ("ln1", "attn.q_norm", "attn.k_norm") if edits else ():
        name = f"blocks.{layer}.{norm}.hook_scale"
        if name in model.hook_dict:
            put = run_once(model)[name]
            pinned[name] = lambda _, put=put: put
    name = f"blocks.{layer}.attn.{hook}"

    def look(value):
        found[name] = value.detach()[ROW]

    with intervened(model, {**pinned, **edits, name: look}), torch.no_grad():
        model(TOKENS)
    return found[name]


def without(layer, at):
    """An edit of the stream: without these vectors at these positions."""

    def edit(stream):
        stream = stream.clone()
        for position, vector in at:
            stream[ROW, position] -= vector
        return stream

    return {f"blocks.{layer}.hook_resid_pre": edit}


def written(model, layer):
    """What each component wrote to the stream, ``[pos d_model]`` each, by hooks alone."""
    seen = run_once(model)
    found = {"embed": seen["hook_embed"][ROW]}
    if model.cfg.positional_embedding_type == "standard":
        found["pos_embed"] = seen["hook_pos_embed"][ROW]
    if layer:
        attn = model.blocks[0].attn
        intact = seen["blocks.0.hook_attn_out"][ROW]
        for h in range(len(attn.W_O)):
            # Behind a frozen norm, a head is what the layer's write loses without it.
            def off(z, h=h):
                z = z.clone()
                z[:, :, h] = 0
                return z

            frozen = {}
            for name in ("blocks.0.ln1_post.hook_scale", "blocks.0.ln1.hook_scale"):
                if name in model.hook_dict:
                    frozen[name] = lambda _, put=seen[name]: put
            other = {}
            with intervened(
                model,
                {
                    **frozen,
                    "blocks.0.attn.hook_z": off,
                    "blocks.0.hook_attn_out": lambda x, o=other: o.update(out=x[ROW]),
                },
            ):
                model(TOKENS)
            found[f"L0H{h}"] = intact - other["out"]
        if not model.cfg.attn_only:
            found["L0 mlp"] = seen["blocks.0.hook_mlp_out"][ROW]
    return {name: x.detach() for name, x in found.items()}


def product(model, score):
    """The sum of the pairs, from a score: the soft cap undone."""
    cap = model.cfg.attn_scores_soft_cap
    return cap * math.atanh(float(score) / cap) if cap > 0 else float(score)


@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_a_part_is_what_the_score_loses_without_the_component(column):
    model = doubled(column.build())
    for layer in range(model.cfg.n_layers):
        if column.block == "autoencoder" and layer == 0:
            continue
        found = gi.qk_attribution(model, layer, HEAD, TOKENS, QUERY, KEY, row=ROW)
        intact = scores(model, layer, {})[HEAD, QUERY, KEY]
        assert_close(found.score.total, float(intact))
        parts, names = written(model, layer), found.components
        assert set(names) - {"bias", "L0 b_O", "pos_embed"} == set(parts) - {"pos_embed"}
        size = found.score.pairs.abs().sum()
        # The norm's roundings, twice, and what an undone soft cap makes of them. The model has the
        # bias of the distance in float32.
        dtype = torch.float32 if found.score.beside.get("alibi") else torch.float64
        near = {"scale": size, "roundings": 1000, "dtype": dtype}
        whole = float(found.score.pairs.sum()) + sum(found.score.beside.values())
        assert_close(whole, found.score.total, **near)
        alibi = found.score.beside.get("alibi", 0.0)

        def at(edits, model=model, layer=layer, alibi=alibi):
            return product(model, scores(model, layer, edits)[HEAD, QUERY, KEY] - alibi)

        whole = at({})
        some = list(dict.fromkeys([next(iter(parts)), *[*parts][-2:]]))
        for name in some:
            i, x = names.index(name), parts[name]
            lost_q = whole - at(without(layer, [(QUERY, x[QUERY])]))
            lost_k = whole - at(without(layer, [(KEY, x[KEY])]))
            assert_close(lost_q, float(found.score.query[i]), **near)
            assert_close(lost_k, float(found.score.key[i]), **near)
            for other in some:
                j, y = names.index(other), parts[other]
                both = whole - at(without(layer, [(QUERY, x[QUERY]), (KEY, y[KEY])]))
                lost = whole - at(without(layer, [(KEY, y[KEY])]))
                assert_close(lost_q + lost - both, float(found.score.pairs[i, j]), **near)
        assert float(found.score.pairs.abs().max()) > 1e-3


@pytest.mark.parametrize("per", ["pair", "layer 1", "positions"])
def test_a_gate_score_is_split_in_the_same_way(per):
    layer = int(per == "layer 1")
    column = (
        Column("rotary", block="rotary gated")
        if per == "positions"
        else Column("LN", block="gated")
    )
    model = models.gated_layer(TASK) if layer else column.build()
    model = doubled(model)
    found = gi.qk_attribution(model, layer, HEAD, TOKENS, QUERY, KEY, row=ROW)

    def at(edits):
        return float(scores(model, layer, edits, "hook_gate_scores")[HEAD, QUERY, KEY])

    near = {"scale": found.gate.pairs.abs().sum(), "roundings": 1000, "dtype": torch.float64}
    assert_close(found.gate.total, at({}))
    assert_close(float(found.gate.pairs.sum()), at({}), **near)
    parts = written(model, layer)
    for name, x in parts.items():
        i = found.components.index(name)
        lost_q = at({}) - at(without(layer, [(QUERY, x[QUERY])]))
        lost_k = at({}) - at(without(layer, [(KEY, x[KEY])]))
        assert_close(lost_q, float(found.gate.query[i]), **near)
        assert_close(lost_k, float(found.gate.key[i]), **near)
        both = at({}) - at(without(layer, [(QUERY, x[QUERY]), (KEY, x[KEY])]))
        assert_close(lost_q + lost_k - both, float(found.gate.pairs[i, i]), **near)
    opened = scores(model, layer, {}, "hook_gate")[HEAD, QUERY, KEY]
    assert found.openness == float(opened)


@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_what_the_head_writes_is_split_by_what_stands_at_the_key(column):
    model = doubled(column.build())
    layer = model.cfg.n_layers - 1
    found = gi.qk_attribution(model, layer, HEAD, TOKENS, QUERY, KEY, row=ROW, target=4)
    at = torch.tensor([ROW]), torch.tensor([QUERY]), torch.tensor([4])
    if column.block != "autoencoder":  # it has no sources in layer 0
        edges = gi.source_attribution(model, TOKENS, *at)
        wanted = edges[0, -len(model.blocks[layer].attn.W_O) + HEAD, KEY]
        assert_close(found.written, float(wanted), dtype=torch.float64, roundings=1000)
    # A pattern (and gates) as they are, the value without a component: what z loses.
    held = ["hook_pattern"] + ["hook_gate"] * hasattr(model.blocks[layer].attn, "hook_gate")
    seen = run_once(model)
    pins = {
        f"blocks.{layer}.attn.{n}": (lambda _, put=seen[f"blocks.{layer}.attn.{n}"]: put)
        for n in held
    }
    direction = torch.randn(model.cfg.d_model, dtype=torch.float64, generator=DRAW)
    along = gi.qk_attribution(model, layer, HEAD, TOKENS, QUERY, KEY, row=ROW, target=3 * direction)
    W = model.blocks[layer].attn.W_O[HEAD].detach() @ (direction / direction.norm())
    z = scores(model, layer, pins, "hook_z")[QUERY, HEAD]
    for name, x in written(model, layer).items():
        less = scores(model, layer, pins | without(layer, [(KEY, x[KEY])]), "hook_z")[QUERY, HEAD]
        if column.block == "TopK" and not bool(z.any()):
            continue
        part = float(along.write[along.components.index(name)])
        if name == "pos_embed" and model.cfg.positional_embedding_type == "shortformer":
            assert part == 0
        near = {"scale": along.write.abs().sum() + z.abs().sum(), "dtype": torch.float64}
        assert_close(float((z - less) @ W), part, roundings=1000, **near)
    own = gi.qk_attribution(model, layer, HEAD, TOKENS, QUERY, KEY, row=ROW)
    assert own.written >= 0
    assert own.target == "the head's write from this key"


def test_tables_keep_the_sum_however_few_rows_they_show():
    model = models.gated_layer(TASK)
    found = gi.qk_attribution(model, 1, HEAD, TOKENS, QUERY, KEY)
    whole, few = found.table(), found.table(top=3)
    assert list(whole.columns) == [
        "component", "query", "key", "gate_query", "gate_key", "write",
    ]  # fmt: skip
    assert len(whole) == len(found.components)
    assert len(few) == 4
    assert few.component.iloc[-1] == "others"
    for name in whole.columns[1:]:
        near = {"scale": whole[name].abs().sum()}
        assert_close(few[name].sum(), whole[name].sum(), **near)
    assert_close(whole["query"].sum(), found.score.total, scale=found.score.pairs.abs().sum())
    frame = found.to_frame().groupby("part").value.sum()
    assert_close(frame["write"], found.written, scale=found.write.abs().sum())
    assert_close(frame["gate score"], found.gate.total, scale=found.gate.pairs.abs().sum())
    for gate in (False, True):
        pairs, rows, columns = found.top_pairs(3, gate=gate)
        parts = found.gate if gate else found.score
        assert pairs.shape == (4, 4) == (len(rows), len(columns))
        assert_close(float(pairs.sum()), parts.total, scale=parts.pairs.abs().sum())
        assert rows[-1] == columns[-1] == "others"
        i, j = (found.components.index(n[0]) for n in (rows, columns))
        assert pairs[0, 0] == parts.pairs[i, j]


@pytest.mark.parametrize("kind", ["rotary", "LN", "ALiBi"])
def test_padding_changes_nothing(kind):
    model = Column(kind).build()
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), TOKENS[:1, :5]], 1)
    mask = torch.tensor([[0] * 3 + [1] * 5])
    plain = gi.qk_attribution(model, 1, HEAD, TOKENS[:1, :5], 4, 1, target=2)
    found = gi.qk_attribution(model, 1, HEAD, padded, 7, 4, target=2, attention_mask=mask)
    assert_close(found.score.pairs, plain.score.pairs, scale=plain.score.pairs.abs().sum())
    assert_close(found.write, plain.write)
    with refuses("example-at-padding"):
        gi.qk_attribution(model, 1, HEAD, padded, 7, 1, attention_mask=mask)


def test_half_precision_is_split_to_its_own_precision():
    for dtype in ("bfloat16", "float16"):
        found = gi.qk_attribution(Column("LN", "MLPs", dtype).build(), 1, HEAD, TOKENS, QUERY, KEY)
        assert found.score.pairs.dtype == torch.float32


def test_bad_input_in_one_sentence():
    model = models.two_layers(TASK)
    for arguments, code in (
        ((8, 3), "no-such-entry"),
        ((3, -9), "no-such-entry"),
        ((3, 4), "key-not-visible"),
    ):
        with refuses(code):
            gi.qk_attribution(model, 1, HEAD, TOKENS, *arguments)
    for target, code in (
        (TASK.d_vocab, "no-such-entry"),
        (torch.zeros(13), "bad-target"),
        (torch.ones(12), "bad-target"),
    ):
        with refuses(code):
            gi.qk_attribution(model, 1, HEAD, TOKENS, 3, 1, target=target)
    with refuses("no-such-entry"):
        gi.qk_attribution(model, 1, HEAD, TOKENS, 3, 1, row=3)
    with refuses("no-gate-score"):
        gi.qk_attribution(model, 1, HEAD, TOKENS, 3, 1).top_pairs(gate=True)
    with refuses("clipped-here"):
        gi.qk_attribution(Column("clipped q, k, v").build(), 1, 0, TOKENS, 5, 2)
    scaled = models.two_layers(TASK)
    scaled.blocks[0].hook_resid_post.add_perma_hook(lambda out, hook: 2 * out)
    with refuses("parts-do-not-add-up"):
        # The norm forgives a factor, but not its epsilon and the added bias of the second layer.
        scaled.blocks[1].ln1.hook_scale.add_perma_hook(lambda out, hook: out + 1)
        gi.qk_attribution(scaled, 1, HEAD, TOKENS, 3, 1)
