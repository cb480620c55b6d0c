"""Models side by side, the states an explorer of them can be in, and what follows from one."""

import contextlib
import dataclasses
import operator
import re
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, get_args

import torch

from gated_interp.analysis.ablation import Method
from gated_interp.analysis.heads import (
    Head,
    HeadLike,
    all_heads,
    head_counts,
    head_name,
    require_heads,
)
from gated_interp.analysis.induction import attention_in, induction_scores, repeated_random_tokens
from gated_interp.analysis.logits import MetricFunction
from gated_interp.analysis.overview import DEEP, MARKED, MARKS, text_scores
from gated_interp.anatomy.batch import Batch, Mask, Tokens, token_vocabulary
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.core.threads import one_thread
from gated_interp.core.written import quoted
from gated_interp.explorer.asked import KINDS, SAID, Asked, own_metric
from gated_interp.explorer.bench import PATTERNS, Bench, Reading
from gated_interp.explorer.examples import armed_positions, examples_of
from gated_interp.explorer.notes import note_of, rows_of, with_note
from gated_interp.explorer.patches import PARTS, Patches
from gated_interp.explorer.state import ExplorerState, link_parts, number
from gated_interp.explorer.vocabulary import vocabulary_of
from gated_interp.explorer.words import brief, require_switch, require_words
from gated_interp.models.language_model import require_text
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import originals, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask
from gated_interp.tasks.text import TextPart, TextTask

# Weights from which on a model runs on every thread.
LARGE = 2**25
# Sequences of text, and of repeated random tokens, that heads are marked on.
REPEATED = 2
# Weights behind each head, times tokens: below it, every head is ablated before anyone asks.
AT_ONCE = 2**33


class Session:
    """Models on the same example, and the states an explorer of them can be in.

    Every ``with_…`` and ``at_…`` method returns a new state and changes nothing. It raises a
    ``GatedInterpError`` where a state would be one that these models cannot be in.

    Args:
        model: any ``HookedTransformer``, with blocks spliced in or not.
        task: what it was trained on; its own unless given.
        original: to stand beside it; by default what blocks were spliced over.
        tokens: ``[batch pos]``, the examples, in the place of the task's.
        metric: what is asked, a function of logits ``[batch pos d_vocab]`` and tokens
            ``[batch pos]``; unless given the logit of the answer or, where none is known, the log
            probability of the token that comes next.
        seed: of the examples and of everything else that is drawn.
    """

    def __init__(
        self,
        model: HookedTransformer,
        task: Any = None,
        original: HookedTransformer | None = None,
        seed: int = 0,
        tokens: Tokens | None = None,
        metric: MetricFunction | None = None,
        attention_mask: Mask | None = None,
    ):
        task = getattr(model, "task", None) if task is None else task
        spliced = sorted(originals(model))
        if original is None and spliced:
            original = unsplice(model)
        models = {"model": model} if original is None else {"original": original, "model": model}
        for each in models.values():
            _require_fit(each, model, task if tokens is None else None)
        self.task, self.metric = task, metric
        self.vocabulary = vocabulary_of(model, task)
        self.longest = min(m.cfg.n_ctx for m in models.values())
        with one_thread():
            self.examples = examples_of(model, task, tokens, self.vocabulary, seed, attention_mask)
        resample = derive(seed, Stream.EXPLORER_RESAMPLE)
        benches = {
            n: Bench(m, self.examples.reference, self.examples.probes, resample)
            for n, m in models.items()
        }
        self.main = "gated" if any(benches["model"].gated) else "model"
        self.benches = {self.main if n == "model" else n: b for n, b in benches.items()}
        self.patches = {n: Patches(bench) for n, bench in self.benches.items()}
        self.n_layers: int = model.cfg.n_layers
        self._last: dict[str, tuple[object, Reading]] = {}
        # The best constant is searched for on the whole reference: of a text that takes minutes.
        known = self.examples.probes is not None
        needs = () if self.examples.reference is None else get_args(Method)[1:]
        self.methods: tuple[str, ...] = ("zero", *(m for m in needs if known or m != "optimal"))
        off: dict[str, frozenset[Head]] = {n: frozenset() for n in self.benches}
        self._large = sum(p.numel() for p in model.parameters()) > LARGE
        self.marks = self._marked(model)
        deep = model.cfg.n_layers > DEEP
        inducing = [layer for word, (layer, _) in self.marks if deep and word == "induction"]
        first = (spliced or inducing or [0])[0]
        start = ExplorerState((0,), 0, off, layer=first)
        self.start = self.at_example(start, 0)

    def read(self, state: ExplorerState) -> dict[str, Reading]:
        """What every model does in ``state``; of a model that it leaves alone, the last reading."""
        with self.threads():
            asked, found = self.asked(state), {}
            for name, bench in self.benches.items():
                off = state.off[name]
                setting = (state.tokens, state.position, off, state.method, state.layer, asked)
                if name not in self._last or self._last[name][0] != setting:
                    self._last[name] = setting, bench.read(*setting)
                found[name] = self._last[name][1]
            return found

    def overview(self, state: ExplorerState) -> tuple[list[list[float]] | None, int]:
        """By layer, what is asked changes by without each head, and how many layers are unknown.

        Of a large model it is ``None`` until :meth:`measure` went through every layer.
        """
        asked, bench = self.asked(state), self.benches[self.main]
        each = (state.tokens, state.position, state.method)
        with self.threads():
            unknown = bench.unmeasured(*each, asked)
            if bench.heads_behind * len(state.tokens) < AT_ONCE:
                unknown = []
            if unknown:
                return None, len(unknown)
            layers = range(self.n_layers)
            return [bench.effects(*each, layer, asked) for layer in layers], 0

    def measure(self, state: ExplorerState) -> None:
        """Measure the heads of one more layer, from the last one down, for :meth:`overview`."""
        asked, bench = self.asked(state), self.benches[self.main]
        each = (state.tokens, state.position, state.method)
        with self.threads():
            for layer in bench.unmeasured(*each, asked)[-1:]:
                bench.effects(*each, layer, asked)

    def strip(self, state: ExplorerState) -> tuple[int, list[list[float]]] | None:
        """Of several layers, a token and what each head writes to its logit, by layer."""
        if self.n_layers < 2:
            return None
        with self.threads():
            asked = self.asked(state)
            bench = self.benches[self.main]
            token = asked.token
            if not asked.tokens:
                token = int(bench.intact(state.tokens)[state.position].argmax())
            return token, bench.strip(state.tokens, state.position, token)

    def _marked(self, model: HookedTransformer) -> list[tuple[str, Head]]:
        """Heads that attend in a known way, of a model of several layers."""
        if model.cfg.n_layers < 2:
            return []
        scores: list[dict[Any, Any]] = []
        repeats, text = None, self.examples.reference
        # A model without room for repeats has none.
        with self.threads(), contextlib.suppress(GatedInterpError):
            bos = int(self.examples.tokens[0][0])
            repeats = Batch.of(model, repeated_random_tokens(model, REPEATED, bos=bos))
            scores = induction_scores(model, repeats.tokens).to_dict("records")
        text = repeats if text is None else text[:REPEATED]
        if text is not None:
            with self.threads():
                first = _first_token(model, text)
            scores = scores or [{} for _ in first]
            scores = [{**row, "first_token": at} for row, at in zip(scores, first, strict=True)]
        rows = zip(all_heads(model), scores, strict=False)
        found = [
            (word, head)
            for head, row in rows
            for column, word in MARKS.items()
            if row.get(column, 0.0) >= MARKED
        ]
        gated = self.benches[self.main].gated
        return found + [("gated", head) for head in all_heads(model) if gated[head[0]]]

    def threads(self) -> AbstractContextManager[None]:
        """One thread for a small model; of a large one, the pieces are large enough to share."""
        return nullcontext() if self._large else one_thread()

    def effects(self, state: ExplorerState) -> dict[str, list[float]]:
        """Per model, by how much what is asked changes without each head of the layer alone."""
        with self.threads():
            asked = self.asked(state)
            return {
                name: bench.effects(state.tokens, state.position, state.method, state.layer, asked)
                for name, bench in self.benches.items()
            }

    def expected(self, state: ExplorerState) -> int | None:
        """The token that must come next at the position; ``None`` where any may."""
        if isinstance(self.task, SkipTrigramTask):
            if state.position in armed_positions(self.task, state.tokens):
                return self.task.completion(state.tokens[state.position])
            return None
        i = state.example
        if i is not None and state.position == self.examples.position[i]:
            return self.examples.target[i]
        return None

    def asked(self, state: ExplorerState) -> Asked:
        """What is asked at the position: the state's question, else see the class's ``metric``."""
        if state.question is not None:
            return self._asked(state.question)
        if self.metric is not None:
            return own_metric(self.metric)
        expected, name = self.expected(state), self.vocabulary.name
        if expected is not None:
            return Asked(f"logit of {name(expected)}", expected)
        following, cfg = state.position + 1, self.benches[self.main].model.cfg
        known = self.examples.probes is None and cfg.d_vocab_out == cfg.d_vocab
        if known and following < len(state.tokens):
            token, which = state.tokens[following], "the true next token"
        else:
            token = int(self.benches[self.main].intact(state.tokens)[state.position].argmax())
            which = "the likeliest token"
        return Asked(f"log p of {which}, {quoted(name(token).strip() or ' ')}", token, log=True)

    def with_head(
        self, state: ExplorerState, head: int | HeadLike, on: bool, model: str | None = None
    ) -> ExplorerState:
        """``state`` with one head switched on or off.

        Args:
            head: its number in the layer shown, ``(layer, head)`` or its name.
        """
        require_switch("on", on)
        name = self.name(model)
        one = self.head(state, head, name)
        off = state.off[name] - {one} if on else state.off[name] | {one}
        return dataclasses.replace(state, off={**state.off, name: off})

    def with_only(
        self, state: ExplorerState, head: int | HeadLike, model: str | None = None
    ) -> ExplorerState:
        """``state`` with every other head of the head's layer off."""
        name = self.name(model)
        one = self.head(state, head, name)
        layer = {(one[0], h) for h in range(self.benches[name].counts[one[0]])}
        off = (state.off[name] - layer) | (layer - {one})
        return dataclasses.replace(state, off={**state.off, name: off})

    def with_all_on(self, state: ExplorerState, model: str | None = None) -> ExplorerState:
        """``state`` with every head of one model on."""
        return dataclasses.replace(state, off={**state.off, self.name(model): frozenset()})

    def with_method(self, state: ExplorerState, method: str) -> ExplorerState:
        """``state`` with another method of ablation."""
        return dataclasses.replace(state, method=_one_of("method", method, self.methods))

    def with_words(self, state: ExplorerState, kind: str, words: str) -> ExplorerState:
        """``state`` with another question: its kind, and the tokens or positions that it names.

        A token is written as the page shows it, ``·`` for the space before a word.
        """
        require_words("words", words)
        said = dict(zip(KINDS, (None, *SAID), strict=True))[_one_of("kind", kind, KINDS)]
        if said is None:
            return dataclasses.replace(state, question=None)
        if said == "loss":
            parts = re.findall(r"\d+", words)
        elif said == "kl":
            parts = []
        elif self.vocabulary.is_text:
            parts = [str(self._token(word)) for word in words.split()]
        else:
            parts = [str(t) for t in self.vocabulary.parse(words, self.longest)]
        return self.with_question(state, ".".join([said, *parts]))

    def _token(self, word: str) -> int:
        """The first token of a word, as the page shows it."""
        tokens = self.vocabulary.parse(word.replace("·", " ").replace("⏎", "\n"), self.longest)
        behind = len(tokens) > 1 and tokens[0] == getattr(self.vocabulary, "bos", None)
        return tokens[1 if behind else 0]

    def with_question(self, state: ExplorerState, question: str) -> ExplorerState:
        """``state`` with another question, as a link says it."""
        kind, *parts = question.split(".")
        wanted = {"token": 1, "difference": 2, "kl": 0, "loss": 2}
        if kind not in wanted or len(parts) != wanted[kind]:
            raise GatedInterpError("bad-question", last=len(state.tokens) - 1)
        numbers = [number(part) for part in parts]
        if kind == "loss":
            self.benches[self.main].row(state.tokens).require_loss()
            if not 1 <= numbers[0] <= numbers[1] < len(state.tokens):
                raise GatedInterpError("bad-question", last=len(state.tokens) - 1)
        elif max(numbers, default=0) >= self.benches[self.main].model.cfg.d_vocab_out:
            raise GatedInterpError("link-to-unknown-tokens")
        return dataclasses.replace(state, question=".".join([kind, *map(str, numbers)]))

    def _asked(self, question: str) -> Asked:
        """What a state's question asks."""
        kind, *parts = question.split(".")
        numbers = [*map(int, parts)]
        if kind == "kl":
            return Asked("KL from every head on (nats)", kl=True)
        if kind == "loss":
            first, last = numbers
            return Asked(
                f"loss at positions {first} to {last} (nats per token)", span=(first, last)
            )
        names = [quoted(self.vocabulary.name(token)) for token in numbers]
        if kind == "token":
            return Asked(f"log p of {names[0]}", numbers[0], log=True)
        return Asked(
            f"logit of {names[0]} minus that of {names[1]}", numbers[0], against=numbers[1]
        )

    def with_layer(self, state: ExplorerState, layer: int) -> ExplorerState:
        """``state`` with another layer's heads shown."""
        if type(layer) is not int or not 0 <= layer < self.n_layers:
            raise GatedInterpError("no-such-layer", layer=layer, last=self.n_layers - 1)
        return dataclasses.replace(state, layer=layer, opened=None, edge=None)

    def with_pattern(self, state: ExplorerState, pattern: str) -> ExplorerState:
        """``state`` with another pattern of each head shown."""
        return dataclasses.replace(state, pattern=_one_of("pattern", pattern, PATTERNS))

    def with_opened(
        self, state: ExplorerState, head: int | HeadLike | None, model: str | None = None
    ) -> ExplorerState:
        """``state`` with the pattern of one head enlarged, or of none."""
        if head is None:
            return dataclasses.replace(state, opened=None, edge=None)
        name = self.name(model)
        one = self.head(state, head, name)
        return dataclasses.replace(state, opened=(name, one), layer=one[0])

    def with_edge(self, state: ExplorerState, query: int, key: int) -> ExplorerState:
        """``state`` with one cell of the enlarged head's pattern taken apart."""
        if state.opened is None:
            raise GatedInterpError("no-head-opened")
        for position in (query, key):
            self.at_position(state, position)
        return dataclasses.replace(state, edge=(query, key))

    def at_example(self, state: ExplorerState, example: int) -> ExplorerState:
        """``state`` at a numbered example, read where its answer comes; the numbers go round."""
        try:
            row = operator.index(example) % len(self.examples)
        except TypeError as error:
            raise GatedInterpError("example-not-a-number", example=brief(example)) from error
        tokens = self.examples.tokens[row]
        return dataclasses.replace(
            state,
            tokens=tokens,
            position=self.examples.position[row],
            example=row,
            **_elsewhere(state, tokens),
        )

    def at_tokens(self, state: ExplorerState, words: str) -> ExplorerState:
        """``state`` at typed tokens, read where the last answer must come, else at the end."""
        require_words("words", words)
        # What is shown, entered as it is, is the same tokens: also those without a first token.
        same = words == self.vocabulary.written(state.tokens)
        tokens = state.tokens if same else self.vocabulary.parse(words, self.longest)
        last: list[int] = []
        if isinstance(self.task, SkipTrigramTask):
            last = armed_positions(self.task, tokens)[-1:]
        at = (last or [len(tokens) - 1])[0]
        rest = _elsewhere(state, tokens)
        return dataclasses.replace(state, tokens=tokens, position=at, example=None, **rest)

    def at_position(self, state: ExplorerState, position: int) -> ExplorerState:
        """``state`` read at another position."""
        n = len(state.tokens)
        if type(position) is not int or not 0 <= position < n:
            raise GatedInterpError("no-such-position", position=position, last=n - 1)
        return dataclasses.replace(state, position=position)

    def at_link(self, link: str) -> ExplorerState:
        """The state that a link says."""
        said = link_parts(link)
        row = number(said["example"]) - 1 if "example" in said else -1
        there = 0 <= row < len(self.examples)
        if "tokens" in said:
            tokens = self._linked(said["tokens"])
            example = row if there and self.examples.tokens[row] == tokens else None
            state = dataclasses.replace(self.start, tokens=tokens, position=0, example=example)
        elif there:
            state = self.at_example(self.start, row)
        else:
            raise GatedInterpError("link-to-no-example", example=row + 1)
        state = self.at_position(state, number(said.get("read", str(state.position))))
        state = self.with_method(state, said.get("method", "zero"))
        state = self.with_layer(state, number(said.get("layer", "0")))
        if "ask" in said:
            state = self.with_question(state, said["ask"])
        if "pattern" in said:
            state = self.with_pattern(state, said["pattern"])
        state = dataclasses.replace(
            state,
            by_effect=said.get("sort") == "effect",
            readers=said.get("bars") == "readers",
            first=said.get("first") != "out",
        )
        for name in self.benches:
            for head in filter(None, said.get(f"off.{name}", "").split(".")):
                state = self.with_head(state, head, False, name)
        if "other" in said:
            state = dataclasses.replace(state, other=self._linked(said["other"]))
        if "into" in said:
            name, end, part = (*said["into"].split("."), "", "")[:3]
            part = next((p for p in PARTS if p.split()[0] == part), part)
            state = self.with_receiver(state, name, None if end == "logits" else end, part)
        for model, label, *words in rows_of(said["notes"]) if "notes" in said else []:
            of = self.name(str(model))
            one = of, self.head(state, str(label), of)
            state = dataclasses.replace(state, notes=with_note(state.notes, one, note_of(*words)))
        if "open" in said:
            name, _, head = said["open"].partition(".")
            state = self.with_opened(state, head, name)
        if "edge" in said:
            query, _, key = said["edge"].partition(".")
            state = self.with_edge(state, number(query), number(key))
        return state

    def _linked(self, said: str) -> tuple[int, ...]:
        """The tokens in a link."""
        tokens = tuple(number(t) for t in said.split("."))
        d_vocab = self.benches[self.main].model.cfg.d_vocab
        if len(tokens) > self.longest or max(tokens) >= d_vocab:
            raise GatedInterpError("link-to-unknown-tokens")
        return tokens

    def with_receiver(
        self, state: ExplorerState, model: str, head: HeadLike | None, part: str = PARTS[0]
    ) -> ExplorerState:
        """``state`` with the paths shown that end at the ``part`` of a head, or at the logits."""
        name = self.name(model)
        if head is None:
            return dataclasses.replace(state, receiver=(name, None, PARTS[0]))
        one = self.head(state, head, name)
        if one[0] == 0:
            raise GatedInterpError("no-such-receiver", receiver=head_name(one))
        part = _one_of("part", part, self.patches[name].parts(one))
        return dataclasses.replace(state, receiver=(name, one, part))

    def head(self, state: ExplorerState, head: int | HeadLike, model: str) -> Head:
        """A head as (layer, head); a number alone is one of the layer shown."""
        if not isinstance(head, int):
            return require_heads(self.benches[model].model, [head])[0]
        n = self.benches[model].counts[state.layer]
        if type(head) is not int or not 0 <= head < n:
            raise GatedInterpError("no-such-head-of-model", head=head, model=model, last=n - 1)
        return state.layer, head

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells the model from others: its name, its shape, and the norm of each layer."""
        bench = self.benches[self.main]
        model: Any = bench.model
        name = getattr(model, "model_name", None) or model.cfg.model_name or "a model"
        each = [[p.detach().double().norm() for p in b.parameters()] for b in model.blocks]
        norms = [float(torch.stack(parts).norm()) for parts in each]
        return {
            "name": str(name),
            "heads": list(bench.counts),
            "tokens": model.cfg.d_vocab,
            "norms": norms,
        }

    def name(self, model: str | None = None) -> str:
        """Name of a model; of the one explored where none is given."""
        return _one_of("model", self.main if model is None else model, tuple(self.benches))

    def head_names(self, heads: frozenset[Head]) -> str:
        """``L0H1, L0H3``."""
        return ", ".join(map(head_name, sorted(heads)))


def _elsewhere(state: ExplorerState, tokens: tuple[int, ...]) -> dict[str, Any]:
    """What a state leaves behind with its example: positions of it, and what it was compared to."""
    question = None if (state.question or "").startswith("loss") else state.question
    found: dict[str, Any] = {"edge": None, "question": question}
    return found if tokens == state.tokens else {**found, "other": None, "receiver": None}


def _first_token(model: HookedTransformer, text: Batch) -> list[float]:
    """How much of each head's attention goes to the first token."""
    ends = ("hook_pattern", "hook_gated_pattern")
    _, cache = text.cache(model, lambda name: name.endswith(ends))
    found: list[float] = []
    for layer, n in enumerate(head_counts(model)):
        scores = [0.0] * n
        with contextlib.suppress(GatedInterpError):  # a layer that attends to nothing
            scores = text_scores(attention_in(cache, layer, n), text)["first_token"].tolist()
        found += scores
    return found


def _one_of(what: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise GatedInterpError("not-one-of", name=what, value=value, choices=[*map(repr, allowed)])
    return value


def _require_fit(each: HookedTransformer, model: HookedTransformer, task: Any) -> None:
    """Refuse a model that the task does not fit, or that does not fit the one explored."""
    if each.cfg.d_vocab != model.cfg.d_vocab or each.cfg.n_layers != model.cfg.n_layers:
        raise GatedInterpError(
            "original-does-not-fit",
            layers=each.cfg.n_layers,
            tokens=each.cfg.d_vocab,
            model_layers=model.cfg.n_layers,
            model_tokens=model.cfg.d_vocab,
        )
    if task is None:
        return
    if isinstance(task, TextTask | TextPart):
        require_text(each, task)  # a model may have more tokens than its tokenizer
    elif hasattr(task, "require_vocabulary"):
        task.require_vocabulary(token_vocabulary(each))
    if each.cfg.n_ctx < getattr(task, "n_positions", 0):
        raise GatedInterpError("task-longer-than-context", n=task.n_positions, n_ctx=each.cfg.n_ctx)
